"""safetensors, the home format: canonical names, and the spec as JSON in the metadata.

A file is the length of its header in 8 bytes, the header in JSON, and the numbers. Format: the README of
huggingface/safetensors, which this follows in all that it requires of a file.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Contents, Tensor, Unread, array_of
from multirnn.formats.fitting import entries
from multirnn.formats.npz import SPEC
from multirnn.weights import Weights

__all__ = ["read", "write"]

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BFLOAT16,
    "C64": "<c8",
    "BOOL": "|b1",
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}
METADATA = "__metadata__"
LONGEST = 1 << 24
"""Bytes of a header: a hundred thousand tensors."""


def read(path: Path) -> Contents:
    """The tensors by name. Facts: `spec`, the text of the spec in a file of ours.

    Raises:
        FormatError: it is damaged.
    """
    with path.open("rb") as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise FormatError(f"{path} is empty") from error
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > min(LONGEST, len(data) - 8):
        raise FormatError(f"{path} is no safetensors file, or damaged: its header would have {length} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no safetensors file, or its header is damaged: {error}") from error
    if not isinstance(header, dict) or not isinstance(metadata := header.pop(METADATA, {}), dict):
        raise FormatError(f"{path} is no safetensors file: its header is no JSON object")
    arrays, spec = _tensors(path, header, data[8 + length :]), metadata.get(SPEC)
    return Contents("safetensors", arrays, {} if spec is None else {"spec": spec})


def _tensors(path: Path, header: Mapping[str, Any], data: memoryview) -> dict[str, Tensor]:
    places = []
    for name, entry in header.items():
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
        if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
            raise FormatError(f"{path}: the tensor {name[:80]!r} lacks its dtype, shape or data_offsets")
        if not all(type(offset) is int and 0 <= offset <= len(data) for offset in offsets):
            raise FormatError(f"{path}: the tensor {name[:80]!r} lies outside of the file")
        places.append((*offsets, name, dtype, shape))
    arrays: dict[str, Tensor] = {}
    end = 0
    for start, stop, name, dtype, shape in sorted(places, key=lambda place: place[:2]):
        if start != end or stop < start:
            raise FormatError(f"{path}: the tensor {name[:80]!r} does not begin where the one before it ends")
        end = stop
        if dtype in DTYPES:
            arrays[name] = array_of(data[start:stop], DTYPES[dtype], shape, f"{path}: the tensor {name[:80]!r}")
        else:
            arrays[name] = Unread(dtype.lower()[:40], ())
    if end != len(data):
        raise FormatError(f"{path} is damaged: its tensors have {end} bytes, and the file has {len(data)}")
    return {name: arrays[name] for name in header}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; canonical ones with the spec in the metadata."""
    arrays = entries(weights, convention)
    header: dict[str, Any] = {}
    if convention == "canonical":
        header[METADATA] = {SPEC: json.dumps(weights.spec.to_dict())}
    end = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": {8: "F64", 4: "F32"}[array.itemsize],
            "shape": array.shape,
            "data_offsets": [end, end := end + array.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
