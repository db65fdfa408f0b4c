"""The conformance suite for backends, ours and third parties'.

A check is a name and a function of a backend that raises `AssertionError` with a sentence. With pytest:

    import pytest
    from multirnn.testing import cases

    @pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
    def test_conformance(check):
        check(MY_BACKEND)

or all at once: `check_backend(MY_BACKEND)`. A refused spec passes if `refuses` gives a reason and `build` raises it. The
layers of a backend that is not `differentiable` must refuse gradients.
"""

from collections.abc import Callable, Mapping

from multirnn.cells import FORMS, Cell
from multirnn.comparison import compare
from multirnn.errors import Unsupported
from multirnn.protocol import Backend
from multirnn.spec import RecurrentSpec
from multirnn.testing.grid import HIDDEN_SIZE, INPUT_SIZE, covering_specs
from multirnn.testing.laws import LAWS, Law, hold
from multirnn.weights import Weights, initialise

__all__ = ["VERSION", "Check", "cases", "check_backend"]

VERSION = 3
"""The version of the suite: it rises when a check is added or demands more, so that a backend that passed may fail."""

Check = Callable[[Backend], None]


def cases() -> list[tuple[str, Check]]:
    """Every check by name, those that find plain mistakes first."""
    checks: list[tuple[str, Check]] = [("accepts something", _accepts_something)]
    checks += [(f"agrees: {_words(spec)}", _agreement(spec)) for spec in covering_specs()]
    for name, law in LAWS.items():
        checks += [(f"{name}: {form}", _on_an_accepted(law, cell)) for form, cell in FORMS.items()]
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
    lines += [
        f"{name}: expected to fail ({reason}), and it holds"
        for name, reason in expected.items()
        if name not in failures
    ]
    if lines:
        raise AssertionError(
            f"backend {backend.name!r} fails {len(lines)} of {len(checks)} checks\n" + "\n".join(lines)
        )
    return len(checks) - len(failures)


def _words(spec: RecurrentSpec) -> str:
    return repr(spec).removeprefix("RecurrentSpec(").removesuffix(")").replace("'", "")


def _accepts_something(backend: Backend) -> None:
    refused = [backend.refuses(spec) for spec in covering_specs()]
    hold(None in refused, f"it refuses every one of {len(refused)} specs; the first because: {refused[0]}")


def _agreement(spec: RecurrentSpec) -> Check:
    def check(backend: Backend) -> None:
        weights = initialise(spec, seed=1)
        if (reason := backend.refuses(spec)) is not None:
            _refuses_properly(backend, weights, reason)
            return
        row = compare(weights, backends=[backend], seed=2).rows[0]
        hold(row.verdict == "equal", row.reason)

    return check


def _refuses_properly(backend: Backend, weights: Weights, reason: str) -> None:
    hold(isinstance(reason, str) and bool(reason.strip()), "it refuses without a reason")
    try:
        backend.build(weights)
    except Unsupported as error:
        hold(reason in str(error), f"refuses() says {reason!r}, build() raises {str(error)!r}")
    else:
        raise AssertionError(f"it refuses because {reason!r}, and builds all the same")


def _on_an_accepted(law: Law, form: Cell) -> Check:
    """The law on one layer, with the first bias form that the backend accepts.

    Stacks are in the grid; that a refused cell is refused properly was held there too.
    """

    def check(backend: Backend) -> None:
        for bias in ("double", "single", "none"):
            spec = RecurrentSpec(form.name, INPUT_SIZE, HIDDEN_SIZE, bias=bias, reset_after=form.reset_after)
            if backend.refuses(spec) is None:
                law(backend, spec)
                return

    return check
