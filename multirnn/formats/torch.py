"""PyTorch's files, read and written without PyTorch: `.pt` and `.pth`, zipped or not, and TorchScript archives.

A checkpoint is a pickle, and a pickle is a program. `pickles` reads it as data, with the names in the table here and no
other; none is ever imported. Format: `torch/serialization.py`, `torch/_utils.py`.
"""

import mmap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import BFLOAT16, MOST_AXES, Bfloat16, Contents, Tensor, Unread, array_of
from multirnn.formats.fitting import entries
from multirnn.formats.pickles import Function, Inert, Module, unpickled
from multirnn.weights import Weights

__all__ = ["read", "write"]

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
    "UntypedStorage": "<u1",
}
DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": BFLOAT16}
UNREAD = {"uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1}
MAGIC = 0x1950A86A20F9469CFC6C
SHARED = 8
"""How many times as many numbers as the file has its tensors may refer to; tied weights refer to some twice."""
MOST_OBJECTS, MOST_GROUPS, DEEPEST, LONGEST_NAME = 1_000_000, 100_000, 100, 1000
"""Of what a checkpoint holds; a model of 10,000 tensors and the state of its optimiser are 50,000 objects in 10,000 groups."""
CURE = "save the weights alone: torch.save(model.state_dict(), path)"


@dataclass(eq=False)
class _Storage:
    """The memory of tensors; its bytes may come after the pickle that refers to it."""

    dtype: str
    count: int
    data: memoryview | None = None
    big_endian: bool = False


class _View(NamedTuple):
    """A tensor: a strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def _itemsize(dtype: str) -> int:
    return 2 if dtype == BFLOAT16 else UNREAD[dtype] if dtype in UNREAD else np.dtype(dtype).itemsize


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise FormatError("a tensor of it has an impossible size, stride or offset")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MOST_AXES:
        raise FormatError("a tensor of it has an impossible shape")
    return tuple(map(_whole, value))


def _tensor(arguments: Sequence[Any], dtype: str = "") -> _View:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise FormatError(f"a tensor lies in {type(storage).__name__}, not in a storage")
    return _View(storage, _whole(offset), _sizes(shape), _sizes(strides), dtype or storage.dtype)


def _tensor_of_dtype(arguments: Sequence[Any]) -> _View:
    dtype = arguments[6]
    return _tensor(arguments, dtype if dtype in [*STORAGES.values(), *UNREAD] else "")


class _Pairs(NamedTuple):
    """The items of a dictionary, as Python 2 wrote them; not copied, for a pickle may refer to them again and again."""

    items: list[Any]


def _dictionary(arguments: Sequence[Any]) -> dict[Any, Any] | _Pairs:
    """An OrderedDict: empty, for its items are set afterwards; Python 2 gave them as an argument."""
    return _Pairs(arguments[0]) if arguments and isinstance(arguments[0], list) else {}


def _typed(arguments: Sequence[Any]) -> Any:
    function, _, inner = arguments[:3]
    if function not in (TENSOR, TENSOR_OF_DTYPE, PARAMETER) or not isinstance(inner, tuple):
        raise FormatError("a tensor of it is rebuilt in an unknown way")
    return function.run(inner)


TENSOR, TENSOR_OF_DTYPE, PARAMETER = (
    Function(_tensor),
    Function(_tensor_of_dtype),
    Function(lambda arguments: arguments[0]),
)
DICTIONARY, INERT = Function(_dictionary), Function(lambda arguments: Inert())
KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): DICTIONARY,
    ("collections", "defaultdict"): DICTIONARY,
    **{
        (module, "AttributeDict"): DICTIONARY  # Lightning's hyperparameters
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    },
    ("torch._utils", "_rebuild_tensor"): TENSOR,
    ("torch._utils", "_rebuild_tensor_v2"): TENSOR,
    ("torch._utils", "_rebuild_tensor_v3"): TENSOR_OF_DTYPE,
    ("torch._utils", "_rebuild_parameter"): PARAMETER,
    ("torch._utils", "_rebuild_parameter_with_state"): PARAMETER,
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_typed),
    ("torch", "Size"): PARAMETER,
    **{("torch.jit._pickle", f"build_{kind}list"): PARAMETER for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): PARAMETER,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): STORAGES["UntypedStorage"],
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{("torch", name): name for name in UNREAD},
    **dict.fromkeys(
        [
            *(("torch", name) for name in ("device", "Tensor", "int64", "int32", "int16", "int8", "uint8", "bool")),
            *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "slice")),
            *((module, name) for module in ("builtins", "__builtin__") for name in ("list", "dict", "int", "float")),
            *(("pathlib", f"{kind}Path") for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("torch.nn.parameter", "Parameter"),
            ("argparse", "Namespace"),
            ("collections", "Counter"),
            ("_codecs", "encode"),
        ],
        INERT,
    ),
}
"""The names that a pickle may use, and what stands for each."""


def read(path: Path) -> Contents:
    """The tensors of a checkpoint, by dotted name.

    Raises:
        FormatError: it holds more than tensors and containers, or is damaged.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        root = _read_zip(path) if zipped else _read_plain(path)
        return Contents("torch", _named(root, path.stat().st_size))
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _storage_asked_for(pid: Any) -> tuple[str, _Storage]:
    """The key and the storage that a persistent id `("storage", type, key, location, count, …)` names."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and pid[1] in STORAGES.values()):
        raise FormatError("its pickle refers to something that is no storage")
    if not isinstance(pid[2], str | int) or (len(pid) > 5 and pid[5] is not None):
        raise FormatError("its pickle refers to a part of a storage, which PyTorch before 0.4 did; save it again")
    return str(pid[2]), _Storage(pid[1], _whole(pid[4]))


def _read_zip(path: Path) -> Any:
    with archive.opened(path) as entries:
        roots = [name.removesuffix("data.pkl") for name in entries.names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise FormatError("it has no data.pkl, which torch.save and torch.jit.save write")
        root = roots[0]
        order = bytes(entries.read(f"{root}byteorder")) if f"{root}byteorder" in entries.names else b"little"
        if order not in (b"little", b"big"):
            raise FormatError("it does not say whether its numbers are little-endian or big-endian")
        found: dict[str, memoryview] = {}

        def storage(pid: Any) -> _Storage:
            key, asked = _storage_asked_for(pid)
            if key not in found:
                found[key] = entries.read(f"{root}data/{key}")
            asked.data, asked.big_endian = found[key], order == b"big"
            return asked

        program = entries.read(f"{root}data.pkl")
        if len(program) > max(1 << 20, path.stat().st_size):
            raise FormatError("its pickle is packed, and larger than the file")
        return unpickled(program, 0, KNOWN, storage)[0]


def _read_plain(path: Path) -> Any:
    """The format before PyTorch 1.6: pickles one after another, then the storages."""
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        key, asked = _storage_asked_for(pid)
        return storages.setdefault(key, asked)

    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise FormatError("it is neither a zip archive nor a pickle of torch.save")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    magic, at = unpickled(data, 0, KNOWN, storage)
    if type(magic) is not int or magic != MAGIC:
        raise FormatError("it is a pickle that torch.save did not write")
    version, at = unpickled(data, at, KNOWN, storage)
    system, at = unpickled(data, at, KNOWN, storage)
    if (
        type(version) is not int
        or version != 1001
        or not isinstance(system, dict)
        or not system.get("little_endian", True)
    ):
        raise FormatError("it is a version of torch.save's format that is not known here")
    found, at = unpickled(data, at, KNOWN, storage)
    keys, at = unpickled(data, at, KNOWN, storage)
    for key in keys if isinstance(keys, list) else ():
        one = storages.get(key) if isinstance(key, str) else None
        if one is None or int.from_bytes(data[at : at + 8], "little") != one.count:
            raise FormatError("a storage of it does not have the size that its tensors give")
        size = one.count * _itemsize(one.dtype)
        if len(data) - at - 8 < size:
            raise FormatError("it ends in the middle of a storage")
        one.data = data[at + 8 : at + 8 + size]
        at += 8 + size
    return found


def _named(root: Any, size: int) -> dict[str, Tensor]:
    """All tensors below an object in a file of this size, by dotted path."""
    if isinstance(root, _View):
        root = {"": root}
    found: dict[str, Tensor] = {}
    around, seen, groups, room = [("", _inside(root))], 0, 0, SHARED * size
    while around:
        start, inside = around[-1]
        for key, value in inside:
            if (seen := seen + 1) > MOST_OBJECTS:
                raise FormatError(f"it holds more than {MOST_OBJECTS} objects; {CURE}")
            if not isinstance(value, _View | Module | dict | list | tuple):
                continue
            name = f"{start}{key if isinstance(key, str) else str(key)[:40]}"
            if len(around) > DEEPEST or len(name) > LONGEST_NAME:
                raise FormatError(f"it holds more than {DEEPEST} levels, or {LONGEST_NAME} letters in a name; {CURE}")
            if isinstance(value, _View):
                if name in found:
                    raise FormatError(f"it has two tensors that are named {name[:80]!r}")
                found[name] = array = _resolved(name, value)
                room -= 0 if isinstance(array, Unread) else prod(value.shape) * _itemsize(value.dtype)
                if room < 0:
                    raise FormatError(f"its tensors refer to the same numbers more than {SHARED} times over")
            elif (groups := groups + 1) > MOST_GROUPS:
                raise FormatError(f"it holds more than {MOST_GROUPS} dictionaries and lists; {CURE}")
            else:
                around.append((f"{name}.", _inside(value)))
                break
        else:
            around.pop()
    return found


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Module):
        yield from value.attributes.items()
    elif isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, _Pairs):
        yield from ((pair[0], pair[1]) for pair in value.items if isinstance(pair, list | tuple) and len(pair) == 2)
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _resolved(name: str, view: _View) -> Tensor:
    """The array of a tensor: a read-only view of the storage's bytes."""
    data, itemsize = view.storage.data, _itemsize(view.dtype)
    if len(view.shape) != len(view.strides):
        raise FormatError(f"the tensor {name[:80]!r} has the shape {view.shape} and the strides {view.strides}")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if data is None or (0 not in view.shape and (last + 1) * itemsize > len(data)):
        raise FormatError(f"the tensor {name[:80]!r} is larger than its storage")
    if prod(view.shape) * itemsize > len(data):
        return Unread("a tensor that repeats the numbers of its storage", view.shape)
    if view.dtype in UNREAD:
        return Unread(view.dtype, view.shape)
    dtype = np.dtype("<u2" if view.dtype == BFLOAT16 else view.dtype)
    if view.storage.big_endian:
        dtype = dtype.newbyteorder(">")
    if 0 in view.shape:
        return array_of(b"", dtype.str, view.shape, f"the tensor {name[:80]!r}")
    flat: NDArray[Any] = np.frombuffer(data, dtype, len(data) // itemsize)
    strides = [stride * itemsize for stride in view.strides]
    array = np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides, writeable=False)
    return Bfloat16(array) if view.dtype == BFLOAT16 else array


# --- Writing ---------------------------------------------------------------------------------------------------------


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write a state_dict that `torch.load(path, weights_only=True)` reads."""
    arrays = entries(weights, convention)
    names = {np.dtype(dtype): name for name, dtype in STORAGES.items() if dtype != BFLOAT16}
    program = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
        program += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            b"ctorch\n" + names[array.dtype].encode() + b"\n",
            _text(str(number)),
            _text("cpu"),
            _int(array.size),
            b"tQ" + _int(0),
            b"(" + b"".join(map(_int, array.shape)) + b"t",
            b"(" + b"".join(map(_int, strides)) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    program.append(b"u.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as made:
        made.writestr(zipfile.ZipInfo("archive/data.pkl"), b"".join(program))
        made.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for number, array in enumerate(arrays.values()):
            large = array.nbytes >= 1 << 31
            with made.open(_aligned(f"archive/data/{number}", file.tell(), large), "w", force_zip64=large) as entry:
                entry.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B"))
        made.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _aligned(name: str, at: int, large: bool) -> zipfile.ZipInfo:
    """An entry at a byte of the file whose numbers lie at a multiple of 64, as PyTorch maps them into memory."""
    entry = zipfile.ZipInfo(name)
    head = 30 + len(name) + (20 if large else 0) + 4
    room = -(at + head) % 64
    entry.extra = b"FB" + room.to_bytes(2, "little") + bytes(room)
    return entry


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _int(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
