"""Measurements in processes of their own: whatever becomes of one, it is told within a bounded time."""

import subprocess
import sys
import time
from typing import Any

import pytest
from multirnn_bench import alone
from multirnn_bench.gauges import tile

from multirnn.kernel import refuses

HANGING = "import time; time.sleep(3600)"
READY = "print('ready', flush=True); "


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (HANGING, r"it was not loaded within 0\.5 s"),
        (READY + HANGING, r"no answer within 0\.5 s"),
        ("raise SystemExit(3)", "it ended with status 3"),
        (READY + "input(); import os; os.kill(os.getpid(), 9)", "it ended with status -9"),
        (READY + "input(); print('no number')", "it answered 'no number'"),
        (READY + "input()", "it ended with status 0"),
        ("import sys; sys.exit('no such library')", "no such library"),
    ],
)
def test_a_gauge_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(*given: Any) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen([sys.executable, "-S", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        )
        return started[-1]

    monkeypatch.setattr(alone, "_started", start)
    monkeypatch.setattr(alone, "CAP", 0.5 if HANGING in code else 60.0)
    begun = time.monotonic()
    with pytest.raises(alone.GaugeError, match=f"the gauge 'x' failed: {reason}"):
        alone.measure_together("x", cores=[(), ()])
    assert time.monotonic() - begun < 60
    assert all(process.poll() is not None for process in started)


def test_what_a_framework_prints_before_the_answer_is_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = READY + "input(); print('a banner'); print('[1, 2]')"
    pipe = subprocess.PIPE
    monkeypatch.setattr(
        alone,
        "_started",
        lambda *given: subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ),
    )
    assert alone.measure_alone("x") == [1, 2]


def test_the_tile_of_the_compiled_recurrence_is_measured() -> None:
    for dtype in ("float32", "float64"):
        rate = tile(dtype, 0.003)
        assert (rate is None) == bool(refuses())
        assert rate is None or rate > 1e8
