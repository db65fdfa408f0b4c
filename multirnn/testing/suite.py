"""The conformance suite for backends, ours and third parties'.

A check is a function of a backend that raises `AssertionError` with a sentence. With pytest:

    import pytest
    from multirnn.testing import cases

    @pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
    def test_conformance(check):
        check(MY_BACKEND)

or all at once: `check_backend(MY_BACKEND)`. A refused spec passes if `refuses` gives a reason and `build` raises it. The
layers of a backend that is not `differentiable` must refuse gradients.
"""

from collections.abc import Callable, Mapping
from functools import partial

from multirnn.cells import FORMS, Cell
from multirnn.comparison import compare
from multirnn.errors import Unsupported
from multirnn.protocol import Backend
from multirnn.spec import RecurrentSpec
from multirnn.testing.grid import HIDDEN_SIZE, INPUT_SIZE, covering_specs
from multirnn.testing.laws import LAWS, Law, hold
from multirnn.weights import initialise

__all__ = ["VERSION", "Check", "cases", "check_backend"]

VERSION = 3
"""Rises when a check is added or demands more, so that a backend that passed may fail."""

Check = Callable[[Backend], None]


def cases() -> list[tuple[str, Check]]:
    """Every check by name; those that find plain mistakes come first."""
    checks: list[tuple[str, Check]] = [("accepts something", _accepts_something)]
    for spec in covering_specs():
        words = repr(spec).removeprefix("RecurrentSpec(").removesuffix(")").replace("'", "")
        checks.append((f"agrees: {words}", partial(_agrees, spec)))
    for name, law in LAWS.items():
        checks += [(f"{name}: {form}", partial(_obeys, law, cell)) for form, cell in FORMS.items()]
    return checks


def check_backend(backend: Backend, *, expected_failures: Mapping[str, str] | None = None) -> int:
    """Run every check on a backend.

    Args:
        backend: the Backend object.
        expected_failures: names of known failures, with the reason; each of them must fail.

    Returns:
        The number of checks that passed.

    Raises:
        AssertionError: lists the checks that fail, with their sentences or errors, and expected failures that pass.
        KeyError: `expected_failures` names an unknown check.
    """
    expected = dict(expected_failures or {})
    checks = dict(cases())
    if unknown := [name for name in expected if name not in checks]:
        raise KeyError(f"no check is named {unknown[0]!r}")
    failures = {}
    for name, check in checks.items():
        try:
            check(backend)
        except AssertionError as error:
            failures[name] = str(error)
        except Exception as error:  # noqa: BLE001  # an error in one check must not hide the others
            failures[name] = f"{type(error).__name__}: {error}"
    lines = [f"{name}: {sentence}" for name, sentence in failures.items() if name not in expected]
    held = {name: reason for name, reason in expected.items() if name not in failures}
    lines += [f"{name}: expected to fail ({reason}), and it holds" for name, reason in held.items()]
    if lines:
        raise AssertionError(
            f"backend {backend.name!r} fails {len(lines)} of {len(checks)} checks\n" + "\n".join(lines)
        )
    return len(checks) - len(failures)


def _accepts_something(backend: Backend) -> None:
    refused = [backend.refuses(spec) for spec in covering_specs()]
    hold(None in refused, f"it refuses every one of {len(refused)} specs; the first because: {refused[0]}")


def _agrees(spec: RecurrentSpec, backend: Backend) -> None:
    weights = initialise(spec, seed=1)
    if (reason := backend.refuses(spec)) is None:
        row = compare(weights, backends=[backend], seed=2).rows[0]
        hold(row.verdict == "equal", row.reason)
        return
    hold(isinstance(reason, str) and bool(reason.strip()), "it refuses without a reason")
    try:
        backend.build(weights)
    except Unsupported as error:
        hold(reason in str(error), f"refuses() says {reason!r}, build() raises {str(error)!r}")
    else:
        raise AssertionError(f"it refuses because {reason!r}, and builds all the same")


def _obeys(law: Law, form: Cell, backend: Backend) -> None:
    """The law on one layer, with the first bias form that the backend accepts; `_agrees` covers stacks and refusals."""
    for bias in ("double", "single", "none"):
        spec = RecurrentSpec(form.name, INPUT_SIZE, HIDDEN_SIZE, bias=bias, reset_after=form.reset_after)
        if backend.refuses(spec) is None:
            law(backend, spec)
            return
