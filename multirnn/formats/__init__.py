"""Files of weights: `load`, `save`, `convert`, `inspect`. One file per format; needs no framework.

Nothing that is read is executed. What is written appears whole or not at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from multirnn.atomic import replacing
from multirnn.convention import UNTOLD
from multirnn.conventions import convention_named
from multirnn.errors import FormatError, InvalidWeights, Unrepresentable, kind_of, meant
from multirnn.formats.contents import Contents, numbers_of
from multirnn.formats.fitting import fitted
from multirnn.formats.found import FileStack, Found
from multirnn.formats.stacks import stacks
from multirnn.formats.verification import Verification, verified
from multirnn.recognition import from_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = [
    "FORMATS",
    "Format",
    "Found",
    "Verification",
    "Written",
    "convert",
    "inspect",
    "load",
    "read",
    "save",
    "verify",
    "writable",
]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: its name, and that of its file here.
        suffixes: of its files.
        convention: how `save` lays arrays in it unless told otherwise; empty if it is only read.
        fixed: whether it has no other convention.
        any_bias: whether it holds biases in every form, where its convention does not.
        several: whether its suffixes are layouts of their own, so that its writer takes the path too.
    """

    name: str
    suffixes: tuple[str, ...]
    convention: str
    fixed: bool = False
    any_bias: bool = False
    several: bool = False


FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        Format("safetensors", (".safetensors",), "canonical"),
        Format("npz", (".npz",), "canonical"),
        Format("torch", (".pt", ".pth", ".bin", ".jit", ".ckpt"), "torch"),
        Format("keras", (".keras", ".weights.h5", ".h5", ".hdf5"), "keras", fixed=True, several=True),
        Format("msgpack", (".msgpack",), "flax-linen"),
        Format("rtneural", (".json",), "keras", fixed=True),
        Format("nam", (".nam",), "", fixed=True),
        Format("onnx", (".onnx",), "onnx", fixed=True, any_bias=True),
    )
}


def _format(path: Path) -> Format:
    for one in FORMATS.values():
        if path.name.lower().endswith(one.suffixes):
            return one
    known = ", ".join(suffix for one in FORMATS.values() for suffix in one.suffixes)
    raise FormatError(f"{path} has none of the suffixes that tell the format: {known}")


def read(path: str | Path, *, inputs: Mapping[str, Any] | None = None) -> Contents:
    """The arrays of a file, and what it says of them.

    Args:
        path: the suffix tells the format.
        inputs: of an ONNX model, values of the graph's inputs that hold weights.

    Raises:
        FormatError: the format is not known, or the file is damaged or unsafe.
        MissingFramework: the package that reads the format is not installed.
    """
    path = Path(path)
    chosen = _format(path).name
    module = import_module(f"multirnn.formats.{chosen}")
    if inputs is not None and chosen != "onnx":
        raise FormatError(f"{path} takes no inputs=, which is for the inputs of an ONNX model that hold weights")
    try:
        contents: Contents = module.read(path) if inputs is None else module.read(path, inputs)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    return contents


def inspect(path: str | Path) -> tuple[Found, ...]:
    """Every recurrent stack in a file, also those that `load` refuses: their `refused` says why.

    Raises:
        FormatError, MissingFramework: as for `load`.
    """
    return tuple(stack.found for stack in _stacks(Path(path), {}))


def load(
    path: str | Path,
    name: str | None = None,
    *,
    names: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    **known: Any,
) -> Weights:
    """The weights of a recurrent stack in a file.

    Args:
        path: the suffix tells the format.
        name: of the stack, as `inspect` gives it; needed if the file holds several.
        names: a convention's name of each array of the file, such as `{"enc_w_ih": "weight_ih_l0"}`.
        inputs: of an ONNX model, values of the graph's inputs that hold weights, such as `{"W": array}`.
        known: what the file does not tell: `convention`, `cell`, `reset_after`, `activation`, `recurrent_activation`; see
            `from_arrays`.

    Raises:
        FormatError: it has no such stack, or several, or is damaged, or says otherwise than `known`.
        TypeError: `known` has another name.
        MissingFramework: the package that reads the format is not installed.
        Unrepresentable: there is no convention of this name.
    """
    path = Path(path)
    if unknown := [one for one in known if one not in UNTOLD]:
        raise TypeError(f"load takes no {unknown[0]}=; what a file does not tell are {', '.join(UNTOLD)}")
    if names is None:
        return _loaded(path, _one(path, name, known, inputs))
    arrays = read(path, inputs=inputs).arrays
    if missing := [own for own in names if own not in arrays]:
        raise FormatError(f"{path} has no array {missing[0]!r}; it has {', '.join(map(repr, list(arrays)[:20]))}")
    try:
        return from_arrays({own: numbers_of(own, arrays[own]) for own in names}, names=names, **known)
    except (Unrepresentable, InvalidWeights) as error:
        raise FormatError(f"{path}: {error}") from error


def _one(path: Path, name: str | None, known: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> FileStack:
    found = _stacks(path, known, inputs)
    chosen = [stack for stack in found if name in (None, stack.found.name)]
    names = [stack.found.name for stack in found]
    there = ", ".join(map(repr, names))
    if not found:
        raise FormatError(
            f"{path} holds no recurrent stack that is known here; if its arrays have names of your own, pass names="
        )
    if not chosen:
        raise FormatError(f"{path} has no stack {name!r}; it holds {there}{meant(name, names)}")
    if len(chosen) > 1:
        raise FormatError(f"{path} holds the stacks {there}; pass name= (on the command line, --name)")
    if (stack := chosen[0]).others:
        fitting = " and ".join(map(repr, (stack.found.convention, *stack.others)))
        raise FormatError(
            f"{path}: the arrays of {stack.found.name!r} fit {fitting}, with other weights; pass convention="
        )
    return stack


def _loaded(path: Path, stack: FileStack) -> Weights:
    try:
        return stack.loaded()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _stacks(path: Path, known: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> list[FileStack]:
    try:
        return list(stacks(read(path, inputs=inputs), **known))
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def writable(path: Path) -> Format:
    """The format of a file to be written.

    Raises:
        FormatError: the suffix tells no format, or one that is only read.
    """
    chosen = _format(path)
    if not chosen.convention:
        raise FormatError(f"{path} cannot be written: files of this format are only read")
    return chosen


@dataclass(frozen=True)
class Written:
    """What `save` and `convert` wrote.

    Attributes:
        path: of the file.
        format: a name out of `FORMATS`.
        convention: how the arrays lie: a name out of `CONVENTIONS`, or "canonical".
        spec: of the written stack.
        changes: what had to change for the convention to hold it, a sentence each; the function is the same.
    """

    path: Path
    format: str
    convention: str
    spec: RecurrentSpec
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": str(self.path),
            "format": self.format,
            "convention": self.convention,
            "spec": self.spec.to_dict(),
            "changes": list(self.changes),
        }


def save(weights: Weights, path: str | Path, *, convention: str | None = None) -> Written:
    """Write weights to a file, whole or not at all.

    Args:
        weights: canonical.
        path: the suffix tells the format.
        convention: how the arrays lie, "canonical" or a name out of `CONVENTIONS`; that of the format unless given.

    Raises:
        FormatError: the format is not written, has no such convention, or the file cannot be written.
        TypeError: these are no weights.
        Unrepresentable: the convention cannot hold these weights; the sentence says what helps.
        MissingFramework: the package that writes the format is not installed.
    """
    if not isinstance(weights, Weights):
        raise TypeError(f"save takes Weights, not {kind_of(weights)}")
    path = Path(path)
    chosen = writable(path)
    laid = convention or chosen.convention
    if chosen.fixed and laid != chosen.convention:
        raise FormatError(f"{path} cannot be in the convention {laid!r}: its format has {chosen.convention!r} alone")
    if laid == "canonical" != chosen.convention:
        raise FormatError(f"{path} cannot hold canonical arrays: its format has no place for the spec beside them")
    changes: tuple[str, ...] = ()
    if laid != "canonical" and not chosen.any_bias:
        weights, changes = fitted(weights, convention_named(laid))
    module = import_module(f"multirnn.formats.{chosen.name}")
    with replacing(path) as file:
        module.write(weights, file, laid, *([path] if chosen.several else []))
    return Written(path, chosen.name, laid, weights.spec, changes)


def convert(
    source: str | Path, target: str | Path, *, name: str | None = None, to: str | None = None, **known: Any
) -> Written:
    """Write a stack of one file to another; the suffixes tell the formats.

    Args:
        source, target: the files.
        name: of the stack in the source; needed if it holds several.
        to: how the arrays lie in the target; that of its format unless given.
        known: what the source does not tell, as for `load`.

    Raises:
        FormatError, Unrepresentable, MissingFramework: as for `load` and `save`.
    """
    return save(load(source, name, **known), target, convention=to)


def verify(
    a: str | Path,
    b: str | Path,
    *,
    name_a: str | None = None,
    name_b: str | None = None,
    known_a: Mapping[str, Any] = MappingProxyType({}),
    known_b: Mapping[str, Any] = MappingProxyType({}),
) -> Verification:
    """Whether two files hold the same function, and where they differ.

    Args:
        a, b: the files.
        name_a, name_b: of the stacks in them; needed if a file holds several.
        known_a, known_b: what the files do not tell, as for `load`, such as `{"activation": "relu"}`.

    Raises:
        FormatError, MissingFramework: as for `load`.
    """
    left, right = _one(Path(a), name_a, known_a), _one(Path(b), name_b, known_b)
    return verified(_loaded(Path(a), left), _loaded(Path(b), right), left.found, right.found)
