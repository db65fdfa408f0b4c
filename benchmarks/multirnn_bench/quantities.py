"""Numbers as people read them: times, bytes, rates, factors, shares."""

from collections.abc import Sequence

__all__ = ["NONE", "bytes_", "count", "eps", "factor", "few", "operations", "seconds", "shape", "share"]

NONE = "–"
"""What is not known."""


def seconds(value: float | None) -> str:
    """A time in the unit that needs no zeros: 13.2 µs, 1.23 ms, 2.4 s."""
    return NONE if value is None else _scaled(value, ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1, "s")))


def operations(value: float | None, per: str = "") -> str:
    """A number of floating-point operations: 34 MFLOP; with per="/s" a rate."""
    steps = ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))
    return NONE if value is None else _scaled(value, tuple((size, f"{prefix}FLOP{per}") for size, prefix in steps))


def bytes_(value: float | None, per: str = "") -> str:
    """A number of bytes in powers of 1024; a rate in powers of 1000, as is the custom."""
    if value is None:
        return NONE
    base = 1000 if per else 1024
    prefixes = ("", "k" if per else "Ki", "M" if per else "Mi", "G" if per else "Gi", "T" if per else "Ti")
    return _scaled(value, tuple((base**power, f"{prefix}B{per}") for power, prefix in enumerate(prefixes)))


def count(number: int, thing: str) -> str:
    """How many of a thing: 1 thread, 3,200 rows."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def few(names: Sequence[str], most: int = 4) -> str:
    """The names, or the first of them and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def factor(value: float) -> str:
    """A ratio, to two digits behind the point below 10: 1.42, 13.7, 250."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A part of 1 in percent."""
    return NONE if value is None else f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def eps(value: float | None) -> str:
    """An error in units of eps."""
    return NONE if value is None else f"{value:.3g} eps"


def shape(problem: dict[str, object]) -> str:
    """The sizes of a problem, and what is not usual about it."""
    sizes = ", ".join(
        f"{letter} {problem[name]}"
        for letter, name in (("T", "time"), ("B", "batch"), ("I", "input_size"), ("H", "hidden_size"))
    )
    unusual: list[str] = []
    if problem.get("num_layers", 1) != 1:
        unusual.append(f"{problem['num_layers']} layers")
    if problem.get("bidirectional"):
        unusual.append("both directions")
    if isinstance(lengths := problem.get("lengths"), Sequence):
        unusual.append(f"lengths {lengths[0]} to {lengths[-1]}")
    if problem.get("dtype", "float32") != "float32":
        unusual.append(str(problem["dtype"]))
    if problem.get("recurrent_only"):
        unusual.append("recurrence only")
    return ", ".join([sizes, *unusual])


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next(((size, unit) for size, unit in reversed(units) if abs(value) >= size * 0.9995), units[0])
    number = value / size
    digits = 0 if number == int(number) and number < 1000 else 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {unit}"
