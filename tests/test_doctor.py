"""`multirnn doctor`: what each check says of what it measured, one real measurement, and the command."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from click.testing import CliRunner
from multirnn_bench import alone, ceilings, doctor, machine
from multirnn_bench.doctor import CHECKS, Finding, examine

from multirnn.cli import main

Measure = Callable[..., Any]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*machine.VARIABLES, "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", *doctor.SLOWING):
        monkeypatch.delenv(name, raising=False)


def answers(monkeypatch: pytest.MonkeyPatch, measure: Measure, **facts: Any) -> None:
    """The doctor measures this, on a machine of two cores with AVX-512 where nothing else is said."""
    facts = {
        "allowed_cores": lambda: (0, 1),
        "quota": lambda: None,
        "cpu_features": lambda: {"avx2", "avx512f"},
        **facts,
    }
    for name, fact in facts.items():
        monkeypatch.setattr(doctor, name, fact)
    monkeypatch.setattr(ceilings, "cpu_features", facts["cpu_features"])
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "measure_alone", measure)


def check(name: str) -> Finding:
    return CHECKS[name](name)


def test_blas_that_misses_the_best_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(gauge: str, *given: Any, cores: Any = (), environment: Mapping[str, str] = {}) -> float:
        return 2.5e11 if environment else 1.3e11

    answers(monkeypatch, measure)
    found = check("NumPy's matrix products")
    assert found.status == "slow"
    assert found.ratio == pytest.approx(2.5 / 1.3)
    assert "130 GFLOP/s" in found.says
    assert "250 GFLOP/s" in found.says
    assert "AVX-512" in found.says
    assert "export OPENBLAS_CORETYPE=SkylakeX" in found.remedy
    answers(monkeypatch, lambda *given, **settings: 2.5e11)
    assert check("NumPy's matrix products").status == "fine"
    answers(monkeypatch, measure, cpu_features=frozenset)
    assert check("NumPy's matrix products").status == "unknown"


def test_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda gauge, *given, cores, **settings: {0: 1.01, 1: 2.0}[cores[0]])
    found = check("other work on this machine")
    assert (found.status, found.ratio) == ("slow", 2.0)
    assert "50 % of the time" in found.says
    answers(monkeypatch, lambda *given, **settings: 1.01)
    assert check("other work on this machine").status == "fine"


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda *given, environment={}, **settings: 2e11 if environment else 5e10)
    assert check("threads and cores").status == "fine"  # nothing asks for more
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    found = check("threads and cores")
    assert (found.status, found.ratio) == ("slow", 4.0)
    assert "OMP_NUM_THREADS=8, but 2 can run at once" in found.says
    assert "set OMP_NUM_THREADS to 2" in found.remedy
    monkeypatch.delenv("OMP_NUM_THREADS")
    answers(monkeypatch, lambda *given, environment={}, **settings: 2e11 if environment else 1e11, quota=lambda: 1.5)
    found = check("threads and cores")
    assert "the control group allows 1.5 cores" in found.says
    assert found.remedy.endswith("to 1.")


def test_the_build_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda *given, environment={}, **settings: 4e-8 if environment else 1e-7)
    assert check("the build of Python").status == "fine"  # nothing is set: that the two differ is chance
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    found = check("the build of Python")
    assert found.status == "slow"
    assert found.ratio == pytest.approx(2.5)
    assert "PYTHONDEVMODE" in found.remedy
    monkeypatch.delenv("PYTHONDEVMODE")
    monkeypatch.setattr(doctor.sysconfig, "get_config_var", lambda name: "-g -O3 -Wall -O0")
    assert "compiled with -O0" in check("the build of Python").says
    monkeypatch.setattr(doctor.sys, "gettotalrefcount", lambda: 0, raising=False)
    assert "debug build" in check("the build of Python").says


def test_the_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import multirnn.kernel

    answers(monkeypatch, lambda gauge, implementation, *given: {"native": 1e-3, "fast": 1e-4}[implementation])
    monkeypatch.setattr(multirnn.kernel, "refuses", lambda: "there is no C compiler")
    found = check("the compiled loop")
    assert found.status == "slow"
    assert "1 ms in NumPy: there is no C compiler" in found.says
    monkeypatch.setattr(multirnn.kernel, "refuses", lambda: None)
    found = check("the compiled loop")
    assert found.status == "fine"
    assert "100 µs" in found.says


def test_a_framework_with_slow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch": 4e10, "jax": 1.4e11, "tensorflow": 1.3e11}
    answers(monkeypatch, lambda gauge, first, *given, **settings: rates.get(first, 1.5e11))
    found = check("matrix products of the frameworks")
    assert found.status == "slow"
    assert found.ratio == pytest.approx(15 / 4)
    assert "torch makes matrix products 3.75 times as slowly as numpy" in found.says

    def breaks(gauge: str, first: str, *given: Any, **settings: Any) -> float:
        if first == "torch":
            raise alone.GaugeError("the gauge failed: no such library")
        return 1.5e11

    answers(monkeypatch, breaks)
    found = check("matrix products of the frameworks")
    assert found.status == "fine"
    assert "torch could not be measured" in found.says


def test_instructions_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*given: Any, environment: Mapping[str, str] = {}) -> dict[str, Any]:
        return {"instructions": "AVX512", "rate": 3e9} if environment else {"instructions": "DEFAULT", "rate": 1e9}

    answers(monkeypatch, measure)
    found = check("PyTorch's instruction set")
    assert (found.status, found.ratio) == ("slow", 3.0)
    assert "ATEN_CPU_CAPABILITY=avx512" in found.remedy
    answers(monkeypatch, lambda *given, environment={}: {"instructions": "AVX512", "rate": 3e9 if environment else 1e9})
    assert check("PyTorch's instruction set").status == "fine"  # the same instructions: that the two differ is chance


def test_pools_that_fight(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*given: Any, environment: Mapping[str, str] = {}) -> dict[str, float]:
        return {"numpy": 2e-4, "torch": 3e-4, "in turn": 6e-4 if environment else 4e-3}

    answers(monkeypatch, measure)
    found = check("thread pools side by side")
    assert found.status == "note"  # wherever both have two threads: nothing is wrong with the machine
    assert found.ratio == pytest.approx(8)
    assert "unless one process alternates between the two" in found.remedy
    assert "OMP_WAIT_POLICY=PASSIVE" in found.remedy
    answers(monkeypatch, lambda *given, **settings: {"numpy": 2e-4, "torch": 3e-4, "in turn": 4e-3})
    assert "torch.set_num_threads(1)" in check("thread pools side by side").remedy
    answers(monkeypatch, lambda *given, **settings: {"numpy": 2e-4, "torch": 3e-4, "in turn": 5e-4})
    assert check("thread pools side by side").status == "fine"
    answers(monkeypatch, measure, allowed_cores=lambda: (0,))
    assert check("thread pools side by side").status == "fine"


def test_denormals_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda *given: {"normal": 1e-6, "denormal": 2e-5})
    found = check("denormal numbers")
    assert (found.status, round(found.ratio or 0)) == ("note", 20)
    answers(monkeypatch, lambda *given: {"normal": 1e-6, "denormal": 1e-6})
    assert check("denormal numbers").status == "fine"


def test_without_a_framework_its_checks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda *given, **settings: 1e11)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert check("PyTorch's instruction set").status == "unknown"
    assert check("thread pools side by side").status == "unknown"
    assert check("matrix products of the frameworks").measured == {"numpy": 1e11}


def test_a_gauge_that_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **settings: Any) -> Any:
        raise alone.GaugeError("the gauge 'x' failed: Killed")

    answers(monkeypatch, fails)
    said: list[str] = []
    findings = examine(said.append)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.status for finding in findings} <= {"unknown", "fine"}
    assert len(said) == len(CHECKS)


# --- Measured -----------------------------------------------------------------------------------------------------------------


def test_every_gauge_runs_in_a_process_of_its_own() -> None:
    assert alone.measure_alone("product", "float32", 32, 0.001) > 0
    assert alone.measure_alone("waiting", 0.01) > 0
    assert alone.measure_alone("python_loop", 1000) > 0
    assert set(alone.measure_alone("denormals", 0.003)) == {"normal", "denormal"}
    assert alone.measure_alone("numpy_layer", "native", 0.003) > 0
    first, second = alone.measure_together("reading", 4096, 0.003, cores=[(), machine.allowed_cores()[:1]])
    assert set(first) == set(second)


def test_a_gauge_that_raises_says_what() -> None:
    with pytest.raises(alone.GaugeError, match="'product' failed: TypeError"):
        alone.measure_alone("product", "no such dtype", 4, 0.001)


def test_kernels_of_another_instruction_set_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    blas = np.__config__.CONFIG["Build Dependencies"]["blas"]["name"]
    if "openblas" not in blas or ceilings.best_kernels() is None:
        pytest.skip("needs NumPy with OpenBLAS on a processor with AVX2")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # SSE3: four times narrower than AVX2 with its fused products
    found = check("NumPy's matrix products")
    assert found.status == "slow"
    assert found.ratio is not None
    assert found.ratio > 1.5


# --- The command --------------------------------------------------------------------------------------------------------------


FINE = Finding("threads and cores", "fine", "nothing asks for more")
NOTE = Finding("denormal numbers", "note", "they cost", "nothing", 10.0)
SLOW = Finding(
    "NumPy's matrix products", "slow", "half as fast", "export OPENBLAS_CORETYPE=SkylakeX", 1.9, {"now": 1e11}
)


@pytest.mark.parametrize(("findings", "status"), [((FINE, NOTE), 0), ((FINE, SLOW), 1)])
def test_the_command(monkeypatch: pytest.MonkeyPatch, findings: tuple[Finding, ...], status: int) -> None:
    monkeypatch.setattr("multirnn_bench.cli.doctor.examine", lambda say: findings)
    done = CliRunner().invoke(main, ["doctor"], env={"COLUMNS": "200"})
    assert done.exit_code == status
    assert ("Nothing found" in done.output) == (status == 0)
    for finding in findings:
        assert finding.check in done.output
        assert finding.remedy in done.output
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == status
    assert [one["check"] for one in json.loads(done.output)["findings"]] == [one.check for one in findings]


def test_the_command_is_known() -> None:
    done = CliRunner().invoke(main, ["doctor", "--help"])
    assert done.exit_code == 0, done.output
    assert "what is slowing this machine" in done.output
