"""`multirnn backends`: what is installed, what is missing or broken, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
from command_line import FRAMEWORKS, SMALL, STRANGER, install, run, run_apart, without

import multirnn as mr
from multirnn.cells import CELLS


def test_backends_lists_what_is_installed_and_what_it_refuses() -> None:
    rows = json.loads(run("backends", "--json").stdout)["backends"]
    assert [row["name"] for row in rows] == list(mr.backends())
    for row in rows:
        if row["status"] == "missing":
            assert f'pip install "multirnn[{row["name"]}]"' in row["reason"]
            continue
        backend = mr.backend(row["name"])
        assert row["status"] == "installed"
        assert row["versions"] == backend.versions()
        refused = {(refusal["cell"], refusal["field"]): refusal for refusal in row["refuses"]}
        for cell in CELLS:
            spec = mr.RecurrentSpec(cell, 5, 3, bias="double")
            if mr.RecurrentSpec(cell, 5, 3).bias != "double" and (reason := backend.refuses(spec)):
                assert refused[spec.form.title, "bias"]["reason"] == reason
                assert "double" in refused[spec.form.title, "bias"]["values"]


def test_backends_of_numpy() -> None:
    result = run("backends", "--backend", "numpy")
    assert result.exit_code == 0
    assert re.search(rf"^numpy +installed +numpy {re.escape(np.__version__)} ", result.stdout, re.MULTILINE)
    assert re.search(r"^numpy +all +nothing$", result.stdout, re.MULTILINE)


def test_backends_where_only_numpy_is_installed() -> None:
    status, out, err = run_apart("backends", prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    for name in ("torch", "keras", "jax"):
        assert re.search(rf"^{name} +missing ", out, re.MULTILINE)
        assert f'pip install "multirnn[{name}]"' in out
    status, _, err = run_apart("backends", "--backend", "torch", prelude=without("torch"))
    assert status == 3
    assert err == "Error: backend 'torch' needs 'torch', which is not installed: pip install \"multirnn[torch]\"\n"


def test_a_broken_framework_is_a_row_with_its_own_error(tmp_path: Path) -> None:
    env = install(tmp_path, "broken", "raise OSError('libfast.so.3: cannot open shared object file')")
    status, out, err = run_apart("backends", env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    assert "broken: OSError: libfast.so.3: cannot open shared object file" in out
    status, _, err = run_apart("compare", "--backend", "broken", *SMALL, env=env)
    assert status == 3
    assert err == "Error: backend 'broken' is broken: OSError: libfast.so.3: cannot open shared object file\n"


def test_backends_of_a_stranger(tmp_path: Path) -> None:
    env = install(tmp_path, "picky", STRANGER.format(name="picky", reason="it never does", factor=1))
    status, out, _ = run_apart("backends", "--backend", "picky", env=env)
    assert status == 0
    assert re.search(r"^picky +installed +stranger 1.0 ", out, re.MULTILINE)
    assert len(re.findall(r" it never does$", out, re.MULTILINE)) == 4
