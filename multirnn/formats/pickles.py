"""Pickles read as data, by a machine of our own. A pickle is a program; this one can build containers, and calls nothing.

A name in a pickle stands for what a table says, and a name that is not in the table ends the reading: nothing is imported.
Operations: `pickle.py` and `pickletools.py` of Python. Time and memory grow as the bytes that are read: a container that a
pickle refers to again and again is never copied, and never a key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import error, unpack
from typing import Any, NamedTuple

from multirnn.errors import FormatError

__all__ = ["Function", "Inert", "Module", "unpickled"]

LONGEST_NUMBER, MOST_ARGUMENTS = 255, 64


class Function(NamedTuple):
    """A function in the table of names: it takes the sequence of arguments."""

    run: Callable[[Sequence[Any]], Any]


class Inert:
    """Stands for a value that holds no weights: a device, a dtype, a number of a metric."""


@dataclass(eq=False)
class Module:
    """An object of a TorchScript archive: its attributes, and none of its code."""

    attributes: dict[Any, Any] = field(default_factory=dict)


def unpickled(
    data: memoryview, start: int, known: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """What the pickle at a byte builds, and the byte behind it.

    Args:
        data: the bytes around the pickle.
        start: its first byte.
        known: what stands for a name `(module, name)`: a `Function` if it may be called.
        persistent: takes the identifier of an object that is stored elsewhere.

    Raises:
        FormatError: it names something else, or is damaged.
    """
    machine = _Machine(data, start, known, persistent)
    try:
        while (operation := machine.byte()) != STOP:
            if operation not in OPERATIONS:
                raise FormatError(f"its pickle is damaged: byte {machine.at - 1} is no operation that is read here")
            OPERATIONS[operation](machine)
        return machine.stack.pop(), machine.at
    except FormatError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError, OverflowError, error) as reason:
        raise FormatError(f"its pickle is damaged at byte {machine.at}: {type(reason).__name__}: {reason}") from reason


class _Machine:
    """A stack of values, the stacks below its marks, and the values that the pickle refers to again."""

    def __init__(
        self,
        data: memoryview,
        at: int,
        known: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.data, self.at, self.known, self.persistent = data, at, known, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise FormatError("it ends in the middle of its pickle")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise FormatError("it ends in the middle of its pickle")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def counted(self, size: int) -> bytes:
        """The bytes behind their number, which has this size itself."""
        return self.take(int.from_bytes(self.take(size), "little"))

    def line(self) -> bytes:
        end = self.at
        while end < len(self.data) and self.data[end] != 10:
            end += 1
        return self.take(end + 1 - self.at)[:-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """The values above the last mark."""
        above, self.stack = self.stack, self.below.pop()
        return above

    def named(self, module: Any, name: Any) -> Any:
        if (type(module), type(name)) != (str, str):
            raise FormatError("its pickle is damaged: a name is no text")
        if (module, name) in self.known:
            return self.known[module, name]
        if module == "__torch__" or module.startswith("__torch__."):
            return Function(lambda arguments: Module())
        raise FormatError(
            f"it asks for {module[:80]}.{name[:80]}, and only tensors and containers are read, since a pickle can run any "
            "program; save the weights alone: torch.save(model.state_dict(), path)"
        )

    def called(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Function) or not isinstance(arguments, list | tuple):
            raise FormatError("its pickle is damaged: it calls what is no function")
        if len(arguments) > MOST_ARGUMENTS:
            raise FormatError(f"its pickle calls a function with {len(arguments)} arguments")
        self.push(function.run(arguments))

    def filled(self, items: list[Any]) -> None:
        """Sets keys and values in the dictionary at the top."""
        found = self.stack[-1]
        if type(found) is not dict or len(items) % 2:
            raise FormatError("its pickle is damaged: it sets items in what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[key if isinstance(key, str | int | float | bytes | None) else f"#{len(found)}"] = value

    def extended(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise FormatError("its pickle is damaged: it appends to what is no list")
        self.stack[-1].extend(items)

    def built(self) -> None:
        """Gives a state to an object: of all objects, those of TorchScript keep theirs."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Module) and isinstance(state, dict):
            self.stack[-1].attributes = state

    def dictionary(self) -> None:
        items = self.marked()
        self.push({})
        self.filled(items)

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def long(self, raw: bytes) -> None:
        if len(raw) > LONGEST_NUMBER:
            raise FormatError(f"its pickle has a number of {len(raw)} bytes")
        self.push(int.from_bytes(raw, "little", signed=True))

    def number(self, text: bytes) -> None:
        if len(text) > LONGEST_NUMBER:
            raise FormatError(f"its pickle has a number of {len(text)} digits")
        self.push(text == b"01" if text in (b"00", b"01") else int(text.rstrip(b"L")))

    def quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise FormatError("its pickle is damaged: a text is not quoted")
        self.push(text[1:-1].decode("unicode_escape"))

    def popped(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _mark(m: _Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


def _global(m: _Machine) -> None:
    m.push(m.named(_text(m.line()), _text(m.line())))


def _stack_global(m: _Machine) -> None:
    name = m.stack.pop()
    m.push(m.named(m.stack.pop(), name))


def _inst(m: _Machine) -> None:
    function = m.named(_text(m.line()), _text(m.line()))
    m.called(function, m.marked())


def _obj(m: _Machine) -> None:
    function, *arguments = m.marked()
    m.called(function, arguments)


def _reduce(m: _Machine) -> None:
    arguments = m.stack.pop()
    m.called(m.stack.pop(), arguments)


def _newobj_ex(m: _Machine) -> None:
    m.stack.pop()  # arguments by name, of which no name in the table has any
    _reduce(m)


def _setitem(m: _Machine) -> None:
    value = m.stack.pop()
    m.filled([m.stack.pop(), value])


def _tuple(count: int) -> Callable[[_Machine], None]:
    def build(m: _Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("pop from an empty stack")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return build


def _extension(m: _Machine) -> None:
    raise FormatError("it asks for an extension of pickle, and only tensors and containers are read")


def _unpacked(form: str, size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(unpack(form, m.take(size))[0])


STOP = ord(".")
OPERATIONS: Mapping[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME, whose bytes follow as any others
        "(": _mark,
        "0": _Machine.popped,
        "1": _Machine.marked,
        "2": lambda m: m.push(m.stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": lambda m: m.number(m.line()),
        "L": lambda m: m.number(m.line()),
        "J": _unpacked("<i", 4),
        "K": _unpacked("<B", 1),
        "M": _unpacked("<H", 2),
        "\x8a": lambda m: m.long(m.counted(1)),
        "\x8b": lambda m: m.long(m.counted(4)),
        "F": lambda m: m.push(float(m.line())),
        "G": _unpacked(">d", 8),
        "S": _Machine.quoted,
        "T": lambda m: m.push(_text(m.counted(4))),
        "U": lambda m: m.push(_text(m.counted(1))),
        "V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        "X": lambda m: m.push(_text(m.counted(4))),
        "\x8c": lambda m: m.push(_text(m.counted(1))),
        "\x8d": lambda m: m.push(_text(m.counted(8))),
        "B": lambda m: m.push(m.counted(4)),
        "C": lambda m: m.push(m.counted(1)),
        "\x8e": lambda m: m.push(m.counted(8)),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.marked())),
        "\x85": _tuple(1),
        "\x86": _tuple(2),
        "\x87": _tuple(3),
        "]": lambda m: m.push([]),
        "l": lambda m: m.push(m.marked()),
        "a": lambda m: m.extended([m.stack.pop()]),
        "e": lambda m: m.extended(m.marked()),
        "}": lambda m: m.push({}),
        "d": _Machine.dictionary,
        "s": _setitem,
        "u": lambda m: m.filled(m.marked()),
        "\x8f": lambda m: m.push([]),  # a set, kept as a list: its elements are never hashed
        "\x90": lambda m: m.extended(m.marked()),
        "\x91": lambda m: m.push(m.marked()),
        "c": _global,
        "\x93": _stack_global,
        "i": _inst,
        "o": _obj,
        "R": _reduce,
        "\x81": _reduce,  # NEWOBJ: what stands for a class makes its object
        "\x92": _newobj_ex,
        "b": _Machine.built,
        "p": lambda m: m.remember(int(m.line())),
        "q": lambda m: m.remember(m.byte()),
        "r": lambda m: m.remember(unpack("<I", m.take(4))[0]),
        "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.push(m.memo[int(m.line())]),
        "h": lambda m: m.push(m.memo[m.byte()]),
        "j": lambda m: m.push(m.memo[unpack("<I", m.take(4))[0]]),
        "P": lambda m: m.push(m.persistent(_text(m.line()))),
        "Q": lambda m: m.push(m.persistent(m.stack.pop())),
        "\x82": _extension,
        "\x83": _extension,
        "\x84": _extension,
    }.items()
}
