"""PyTorch's files, read and written without PyTorch: `.pt` and `.pth`, zipped or not, and TorchScript archives.

A checkpoint is a pickle, and a pickle is a program. This one runs on an unpickler that knows tensors and containers and
nothing else: no name in the file is ever imported. Format: `torch/serialization.py`, `torch/_utils.py`.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import BFLOAT16, Contents, Tensor, Unread
from multirnn.formats.fitting import entries
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
    "BoolStorage": "?",
}
DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": BFLOAT16}
MAGIC = 0x1950A86A20F9469CFC6C
MOST_OBJECTS = 1_000_000


@dataclass
class _Storage:
    """The memory of tensors; its bytes may come after the pickle that refers to it."""

    dtype: str
    count: int
    data: memoryview | None = None

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize


class _View(NamedTuple):
    """A tensor: a strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass
class _Module:
    """An object of a TorchScript archive: its attributes, and none of its code."""

    attributes: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _Inert:
    """Stands for a value that holds no weights: a device, a dtype, a number of a metric."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *rest: Any, dtype: str = "") -> _View:
    if not isinstance(storage, _Storage):
        raise FormatError(f"a tensor lies in {type(storage).__name__}, not in a storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)), dtype or storage.dtype)


def _tensor_of_dtype(
    storage: Any, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: str, *rest: Any
) -> _View:
    return _tensor(storage, offset, shape, strides, dtype=dtype)


def _first(value: Any, *rest: Any) -> Any:
    return value


def _typed(function: Callable[..., Any], kind: Any, arguments: Any, state: Any) -> Any:
    return function(*arguments)


KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed,
    ("torch", "Size"): tuple,
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): "<u1",
    ("torch", "UntypedStorage"): "<u1",
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **dict.fromkeys(
        (
            ("torch", "device"),
            ("torch", "Tensor"),
            ("torch.nn.parameter", "Parameter"),
            ("argparse", "Namespace"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        ),
        _Inert,
    ),
}
"""The names that a pickle may use, and what stands for each. Nothing is imported."""


class _Unpickler(pickle._Unpickler):  # of Python: the one in C allocates memory as a file tells it to
    def __init__(self, file: BinaryIO, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        raise FormatError(
            f"it asks for {module}.{name}, and only tensors and containers are read, since a pickle can run any program; "
            "save the weights alone: torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storage(pid)

    def get_extension(self, code: int) -> None:
        raise FormatError(f"it asks for the extension {code} of pickle, and only tensors and containers are read")


def _unpickled(file: BinaryIO, storage: Callable[[Any], _Storage]) -> Any:
    try:
        return _Unpickler(file, storage).load()
    except FormatError:
        raise
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise FormatError(f"its pickle is damaged: {type(error).__name__}: {error}") from error


def read(path: Path) -> Contents:
    """The tensors of a checkpoint, by dotted name.

    Raises:
        FormatError: it holds more than tensors and containers, or is damaged.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return Contents("torch", _named(_read_zip(path) if zipped else _read_plain(path)))
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _storage_asked_for(pid: Any) -> tuple[str, _Storage]:
    """The key and the storage that a persistent id `("storage", type, key, location, count, …)` names."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], str)):
        raise FormatError(f"its pickle refers to {str(pid)[:60]!r}, which is no storage")
    return str(pid[2]), _Storage(pid[1], int(pid[4]))


def _read_zip(path: Path) -> Any:
    with archive.opened(path) as entries:
        roots = [name.removesuffix("data.pkl") for name in entries.names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise FormatError("it has no data.pkl, which torch.save and torch.jit.save write")
        root = roots[0]
        if f"{root}byteorder" in entries.names and bytes(entries.read(f"{root}byteorder")) != b"little":
            raise FormatError("its numbers are big-endian; save it again on a little-endian machine")
        storages: dict[str, _Storage] = {}

        def storage(pid: Any) -> _Storage:
            key, asked = _storage_asked_for(pid)
            if key not in storages:
                asked.data = entries.read(f"{root}data/{key}")
                storages[key] = asked
            return (
                storages[key]
                if storages[key].dtype == asked.dtype
                else _Storage(asked.dtype, asked.count, storages[key].data)
            )

        return _unpickled(io.BytesIO(entries.read(f"{root}data.pkl")), storage)


def _read_plain(path: Path) -> Any:
    """The format before PyTorch 1.6: pickles one after another, then the storages."""
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        key, asked = _storage_asked_for(pid)
        return storages.setdefault(key, asked)

    with path.open("rb") as file:
        if file.read(2) != b"\x80\x02":
            raise FormatError("it is neither a zip archive nor a pickle of torch.save")
        file.seek(0)
        if _unpickled(file, storage) != MAGIC:
            raise FormatError("it is a pickle that torch.save did not write")
        version, system = _unpickled(file, storage), _unpickled(file, storage)
        if version != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
            raise FormatError("it is a version of torch.save's format that is not known here")
        found = _unpickled(file, storage)
        keys = _unpickled(file, storage)
        for key in keys if isinstance(keys, list) else ():
            one = storages.get(str(key))
            if one is None or int.from_bytes(file.read(8), "little") != one.count:
                raise FormatError(f"the storage {str(key)[:40]!r} does not have the size that its tensors give")
            data = file.read(one.count * one.itemsize)
            if len(data) != one.count * one.itemsize:
                raise FormatError("it ends in the middle of a storage")
            one.data = memoryview(data)
    return found


def _named(root: Any) -> dict[str, Tensor]:
    """All tensors below an object, by dotted path."""
    found: dict[str, Tensor] = {}
    queue, seen = [("", root)], 0
    while queue:
        name, value = queue.pop()
        if (seen := seen + 1) > MOST_OBJECTS:
            raise FormatError(f"it holds more than {MOST_OBJECTS} objects, or one inside itself")
        if isinstance(value, _View):
            found[name] = _resolved(name, value)
        else:
            queue += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(list(_inside(value)))]
    return found


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, _Module):
        yield from value.attributes.items()
    elif isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _resolved(name: str, view: _View) -> Tensor:
    """The array of a tensor: a read-only view of the storage's bytes."""
    data, itemsize = view.storage.data, 2 if view.dtype == BFLOAT16 else np.dtype(view.dtype).itemsize
    if len(view.shape) != len(view.strides) or min((*view.shape, *view.strides, view.offset), default=0) < 0:
        raise FormatError(f"the tensor {name!r} has the shape {view.shape} and the strides {view.strides}")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if data is None or (0 not in view.shape and (last + 1) * itemsize > len(data)):
        raise FormatError(f"the tensor {name!r} is larger than its storage")
    if view.dtype == BFLOAT16:
        return Unread("bfloat16", view.shape)
    flat: NDArray[Any] = np.frombuffer(data, view.dtype, len(data) // itemsize)
    strides = [stride * itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides, writeable=False)


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
        made.writestr("archive/data.pkl", b"".join(program))
        made.writestr("archive/byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            with made.open(f"archive/data/{number}", "w", force_zip64=array.nbytes >= 1 << 31) as entry:
                entry.write(
                    np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B") if array.size else b""
                )
        made.writestr("archive/version", b"3\n")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _int(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
