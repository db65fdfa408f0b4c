"""safetensors, the home format: canonical names, and the spec as JSON in the metadata. Needs the package of that name."""

import json
from pathlib import Path
from typing import BinaryIO

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Contents, Tensor, Unread, needed
from multirnn.formats.fitting import entries
from multirnn.formats.npz import SPEC
from multirnn.weights import Weights

__all__ = ["read", "write"]

READ = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def read(path: Path) -> Contents:
    """The tensors by name. Facts: `spec`, the text of the spec in a file of ours.

    Raises:
        FormatError: it is damaged.
        MissingFramework: the package safetensors is not installed.
    """
    safetensors = needed("safetensors", path)
    arrays: dict[str, Tensor] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                one = file.get_slice(name)
                dtype = one.get_dtype()
                if dtype in READ:
                    arrays[name] = file.get_tensor(name)
                else:
                    arrays[name] = Unread(BFLOAT16 if dtype == "BF16" else dtype.lower(), tuple(one.get_shape()))
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path} is no safetensors file, or damaged: {error}") from error
    return Contents("safetensors", arrays, {"spec": metadata[SPEC]} if SPEC in metadata else {})


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; canonical ones with the spec in the metadata."""
    needed("safetensors", file.name)
    from safetensors.numpy import save

    about = {SPEC: json.dumps(weights.spec.to_dict())} if convention == "canonical" else None
    file.write(save(entries(weights, convention), about))
