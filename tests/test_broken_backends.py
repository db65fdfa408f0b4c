"""A distribution that offers a backend and is broken, in every way: a row with the reason, and nothing for the others."""

import json
import os
import re
from pathlib import Path

import pytest
from command_line import FRAMEWORKS, SMALL, STRANGER, run_apart, without

PLAIN = STRANGER.format(name="plain", reason=None, factor=1)
BROKEN = {  # the module's source, None where there is none; and what is said of it
    "its module is not there": (None, "there is no module 'multirnn_broken'"),
    "a module that it needs is not there": (
        "import json.nowhere",
        "ModuleNotFoundError: No module named 'json.nowhere'",
    ),
    "a library is not there": ("raise OSError('libfast.so.3:\\n cannot open')", "OSError: libfast.so.3: cannot open"),
    "it raises what nobody else does": ("class Odd(Exception): ...\nraise Odd('odd')", "Odd: odd"),
    "it ends the interpreter": ("import sys\nsys.exit(7)", "SystemExit: 7"),
    "it is no Python": ("def", "SyntaxError: invalid syntax"),
    "it has no such name": ("", "AttributeError: module 'multirnn_broken' has no attribute 'BACKEND'"),
    "it is of another type": ("BACKEND = 7", "which is an int and not a multirnn Backend"),
    "it is None": ("BACKEND = None", "which is None and not a multirnn Backend"),
    "its class raises when it is looked at": (
        f"{PLAIN}\nclass Raising(Stranger):\n    @property\n    def differentiable(self): raise ZeroDivisionError('ha')\n"
        "BACKEND = Raising()",
        "ZeroDivisionError: ha",
    ),
}


def offer(site: Path, group: str, name: str, value: str, distribution: str) -> None:
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}


@pytest.fixture(params=BROKEN, ids=[name.replace(" ", "-") for name in BROKEN])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], str]:
    """An environment with a broken backend, and what has to be said of it."""
    source, says = BROKEN[request.param]
    if source is not None:
        (tmp_path / "multirnn_broken.py").write_text(source)
    offer(tmp_path, "multirnn.backends", "broken", "multirnn_broken:BACKEND", "broken-rnn")
    return environment(tmp_path), says


def test_it_is_a_row(broken: tuple[dict[str, str], str]) -> None:
    env, says = broken
    status, out, err = run_apart("backends", env=env, prelude=without(*FRAMEWORKS))
    assert (status, err) == (0, "")
    assert re.search(r"^broken +broken +", out, re.MULTILINE)
    assert re.search(r"^numpy +installed +", out, re.MULTILINE)
    assert says in out
    code = f"""{without(*FRAMEWORKS)}
import json, multirnn as mr
from multirnn.parity import train_parity
spec = mr.RecurrentSpec("gru", 4, 3)
for found in (mr.compare(spec), train_parity(spec, steps=2, optimisers="sgd")):
    assert found.ok
    rows = {{row.backend: row for row in found.rows}}
    assert rows["broken"].verdict == "broken", rows
    assert {says!r} in rows["broken"].reason, rows["broken"].reason
    assert {says!r} in str(found), str(found)
    assert rows["numpy"].verdict == "equal"
    json.loads(found.to_json())
assert "broken" in mr.backends()
assert mr.read(mr.build(spec, "numpy").native).spec == spec
raise SystemExit(0)
"""
    status, _, err = run_apart(env=env, prelude=code)
    assert (status, err) == (0, "")


def test_asked_for_by_name_it_is_told_and_shows_its_own_error(broken: tuple[dict[str, str], str]) -> None:
    env, says = broken
    for command in (("compare", *SMALL, "--cell", "gru"), ("backends",)):
        status, _, err = run_apart(*command, "--backend", "broken", "--backend", "numpy", env=env)
        assert status == 3
        assert err.startswith("Error: ")
        assert says in err
        assert "Traceback" not in err
    status, _, err = run_apart("compare", *SMALL, "--cell", "gru", "--backend", "broken", "--debug", env=env)
    assert "Traceback" in err
    code = f"""
import multirnn as mr
try:
    mr.backend("broken")
except BaseException as error:
    text = " ".join(f"{{type(error).__name__}}: {{error}}".split())
    assert {says!r} in text, text
else:
    raise AssertionError
raise SystemExit(0)
"""
    assert run_apart(env=env, prelude=code) == (0, "", "")


def test_two_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "multirnn_plain.py").write_text(PLAIN)
    offer(tmp_path, "multirnn.backends", "plain", "multirnn_plain:BACKEND", "plain")
    offer(tmp_path, "multirnn.backends", "plain", "nowhere:BACKEND", "other")
    says = "two distributions offer 'plain': multirnn_plain:BACKEND, nowhere:BACKEND; uninstall one of them"
    apart = {"env": environment(tmp_path), "prelude": without(*FRAMEWORKS)}
    status, out, err = run_apart("backends", "--json", **apart)
    assert (status, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)["backends"]}
    assert (rows["plain"]["status"], rows["numpy"]["status"]) == ("broken", "installed")
    assert says in rows["plain"]["reason"]
    status, out, err = run_apart("compare", *SMALL, "--cell", "gru", **apart)
    assert (status, err) == (0, "")
    assert f"plain: {says}" in out


@pytest.mark.parametrize("value", ["nowhere:BACKEND", "math:pi", "raising:BACKEND"])
def test_a_broken_reader_hides_none_that_works(tmp_path: Path, value: str) -> None:
    (tmp_path / "raising.py").write_text("raise OSError('no')")
    offer(tmp_path, "multirnn.natives", "multirnn_numpy", value, "second-reader")
    offer(tmp_path / "more", "multirnn.natives", "stranger", value, "third-reader")
    env = environment(tmp_path)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path / "more")
    code = """
import multirnn as mr
spec = mr.RecurrentSpec("gru", 4, 3)
assert mr.read(mr.build(spec, "numpy").native).spec == spec
assert mr.diagnose(mr.build(spec, "numpy"), mr.build(spec, "numpy").native).equal
try:
    mr.read(object())
except mr.Unrepresentable as error:
    assert "stranger" in str(error)
raise SystemExit(0)
"""
    assert run_apart(env=env, prelude=code) == (0, "", "")


def test_an_object_that_only_a_broken_reader_reads(tmp_path: Path) -> None:
    (tmp_path / "strange.py").write_text("class Layer: ...")
    offer(tmp_path, "multirnn.natives", "strange", "nowhere:BACKEND", "strange-rnn")
    code = """
import multirnn as mr, strange
try:
    mr.read(strange.Layer())
except mr.UnknownBackend as error:
    assert "the distribution 'strange-rnn' offers 'strange' as 'nowhere:BACKEND', and there is no module 'nowhere'" in str(error)
else:
    raise AssertionError
raise SystemExit(0)
"""
    assert run_apart(env=environment(tmp_path), prelude=code) == (0, "", "")


def test_in_pytest_it_fails_its_own_tests_alone(tmp_path: Path) -> None:
    offer(tmp_path, "multirnn.backends", "broken", "nowhere:BACKEND", "broken-rnn")
    (tmp_path / "test_mine.py").write_text("def test_mine(rnn_backend):\n    assert rnn_backend.name == 'numpy'\n")
    code = f"import pytest, sys\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}]))"
    status, out, _ = run_apart(env=environment(tmp_path), prelude=f"{without(*FRAMEWORKS)}\n{code}", cwd=tmp_path)
    assert status == 1
    assert re.search(r"^1 passed, \d skipped, 1 error", out.splitlines()[-1])
    assert "there is no module 'nowhere'" in out
