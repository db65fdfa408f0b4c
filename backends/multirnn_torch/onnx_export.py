"""`export_onnx`: a whole PyTorch model as an ONNX model with real recurrent operators, of any batch and length."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from multirnn import InvalidCall
from multirnn.atomic import replacing
from multirnn.errors import kind_of
from multirnn.formats.contents import needed
from multirnn_torch import replacement, traced
from multirnn_torch.fast import FastModule

__all__ = ["export_onnx"]

LARGEST = 2**31 - 2**20  # bytes of one ONNX file, less a little: Protocol Buffers count in 32 bits


def export_onnx(
    model: nn.Module | ExportedProgram,
    args: Any,
    path: str | PathLike[str],
    *,
    dynamic: bool | Sequence[Any] | Mapping[str, Any] = True,
    streaming: bool = False,
) -> None:
    """Write a model as ONNX; each layer of a recurrent stack is one operator RNN, LSTM or GRU.

    The layers may be PyTorch's own or fast ones. Weights are initialisers `PATH.layers.N.W`, `R` and `B`. A layer that the
    model calls with `lengths=` has them as `sequence_lens`; ONNX Runtime takes none that are 0. The model is exported as
    after `eval()`, and left as it was.

    Args:
        model: on the CPU. Or an `ExportedProgram`, whose dynamic axes are settled.
        args: the arguments of a call, a tuple or one tensor, of any sizes. Not used for an `ExportedProgram`.
        path: of the file, which appears whole or not at all.
        dynamic: True lets all sizes vary that the model does not fix. False fixes all. Or a structure as for the
            `dynamic_shapes` of `torch.export.export`.
        streaming: makes the state of every layer that the model gives none an input `PATH.h_0`, and `PATH.c_0` of an LSTM,
            and an output `PATH.h_n`, and `PATH.c_n`, each `(num_layers, batch, hidden_size)`.

    Raises:
        InvalidCall: a layer cannot be exported, or not with a dynamic batch and time, with its path and the reason; or the
            path cannot be written to.
        MissingFramework: onnxscript is not installed.
    """
    needed("onnxscript", "export_onnx", extra="export")
    from multirnn_torch import onnx_nodes  # imports onnxscript, which takes a second

    program = model if isinstance(model, ExportedProgram) else _traced(model, args, dynamic)
    if isinstance(model, ExportedProgram):
        _refuse_decomposed(program)
    # PyTorch keeps how it ran an operator before, and then exports the steps of a layer one by one.
    for operator in onnx_nodes.TRANSLATIONS:
        operator._dispatch_cache.clear()
    table = dict(onnx_nodes.TRANSLATIONS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)  # of PyTorch to itself
        made: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, optimize=False, custom_translation_table=table
        )
    onnx_model = onnx_nodes.finish(made, _names(program))
    if streaming:
        onnx_nodes.stream(onnx_model)
    held = [value.const_value for value in onnx_model.graph.initializers.values()]
    if (size := sum(tensor.nbytes for tensor in held if tensor is not None)) > LARGEST:
        raise InvalidCall(
            f"an ONNX model in one file holds at most 2 GB, and the weights of this one are {size / 1e9:.1f} GB"
        )
    whole = onnx_nodes.checked(onnx_model)
    with replacing(Path(path), InvalidCall) as file:
        file.write(whole)


# --- Tracing ---------------------------------------------------------------------------------------------------------


def _traced(model: Any, args: Any, dynamic: Any) -> ExportedProgram:
    if not isinstance(model, nn.Module):
        raise InvalidCall(f"a torch.nn.Module or an ExportedProgram is exported, not {kind_of(model)}")
    if traced.WITHOUT_KERNEL is not None:
        raise InvalidCall(f"export_onnx traces the compiled recurrence, and {traced.WITHOUT_KERNEL}")
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    shapes = dynamic
    if isinstance(dynamic, bool):
        axes = Dim.AUTO if dynamic else Dim.STATIC
        shapes = pytree.tree_map(
            lambda leaf: dict.fromkeys(range(leaf.dim()), axes) if isinstance(leaf, Tensor) else None, args
        )
    # Without the first, a batch or a time of 1 would be a constant.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True), _ready(model), _explained():  # type: ignore[attr-defined]
        program = torch.export.export(model, args, dynamic_shapes=shapes)
    if dynamic is True:
        _refuse_fixed(program)
    return program


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model is in `eval()`, and all its recurrent layers are fast ones, which are traced as one operator."""
    layers = list(replacement.recurrent(model))
    for path, layer in layers:
        if not isinstance(layer, nn.RNNCellBase) and (reason := replacement.refuses(layer)):
            raise InvalidCall(f"{_titled(path)} ({type(layer).__name__}) cannot be exported: {reason}")
    training = [(part, part.training) for part in model.modules()]
    stock = [layer for _, layer in layers if not isinstance(layer, FastModule | nn.RNNCellBase)]
    loops = [(layer, layer.loop) for _, layer in layers if isinstance(layer, FastModule)]
    try:
        for layer in stock:
            _turn(layer)
        for layer, _ in loops:
            layer.loop = None
        model.eval()
        yield
    finally:
        for layer in stock:
            if isinstance(layer, FastModule):
                _turn(layer)
        for layer, loop in loops:
            layer.loop = loop
        for part, before in training:
            part.training = before


def _turn(layer: nn.Module) -> None:
    """Make a layer fast, or PyTorch's own again."""
    kind: Any = replacement.counterpart(layer)
    replacement.change(layer, kind)


@contextmanager
def _explained() -> Iterator[None]:
    """Say it in a sentence where PyTorch cannot trace a packed sequence."""
    try:
        yield
    except InvalidCall:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        trace, names = error.__traceback__, set()
        while trace is not None:
            names.add(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        if names & {"pack_padded_sequence", "pack_sequence", "pad_packed_sequence"}:
            raise InvalidCall(
                "PyTorch cannot export packed sequences: give the lengths to the layer, layer(x, lengths=...), "
                "which a layer takes after multirnn.replace_layers"
            ) from error
        raise


def _refuse_fixed(program: ExportedProgram) -> None:
    """Raise where a recurrent layer is traced for one batch or one time alone; its single steps may be the model's own."""
    constants = _constants(program)
    for node in _calls(program):
        for name, size in _sizes(node).items():
            fixed = constants.get(str(size), size)
            if isinstance(fixed, int) and (fixed > 1 or name == "batch"):
                raise InvalidCall(
                    f"{_titled(_path(node))} has a {name} of {fixed} whatever the arguments are, in this model; if that is "
                    "meant, say which axes vary by dynamic={...}, as the dynamic_shapes of torch.export.export"
                )


def _refuse_decomposed(program: ExportedProgram) -> None:
    """Raise for a layer of PyTorch's own whose steps are traced one by one, or which is traced while it trains."""
    whole = {_path(node) for node in _calls(program)}
    own = {f"torch.nn.modules.rnn.{kind}" for kind in ("RNN", "LSTM", "GRU")}
    for node in _nodes(program):
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            if kind in own and path not in whole:
                raise InvalidCall(
                    f"{_titled(path)} ({kind.rpartition('.')[2]}) is no operator any more in this program: its steps were traced "
                    "one by one, as by run_decompositions. Export the model itself, or first call multirnn.replace_layers"
                )
    for node in _calls(program):
        if _ours(node):
            continue
        arguments: Any = node.args[2:8]
        weights, bias, layers, dropout, train, both = arguments
        if train and dropout and layers > 1:
            raise InvalidCall(
                f"{_titled(_path(node))} drops outputs between its layers in this program: trace it after eval()"
            )
        if len(weights) != layers * (1 + both) * (4 if bias else 2):
            raise InvalidCall(f"{_titled(_path(node))} projects its state (proj_size), which no operator of ONNX does")


def _names(program: ExportedProgram) -> dict[str, str]:
    """Names for PyTorch's symbols of the sizes of recurrent layers, batch, time, and time_2 for another time; or constants."""
    found = {symbol: str(size) for symbol, size in _constants(program).items()}
    for node in _calls(program):
        for name, size in _sizes(node).items():
            symbol = str(size)
            if symbol.isidentifier() and symbol not in found:
                number = sum(taken.partition("_")[0] == name for taken in found.values())
                found[symbol] = f"{name}_{number + 1}" if number else name
    return found


def _constants(program: ExportedProgram) -> dict[str, int]:
    """The symbols of sizes that were 1, and are no other: PyTorch bounds them, and keeps the symbol."""
    return {str(symbol): 1 for symbol, bounds in program.range_constraints.items() if bounds.upper <= 2}


def _sizes(node: torch.fx.Node) -> dict[str, Any]:
    """The batch and the time of a call."""
    x: Any = node.args[0]
    batch_first = node.args[3 + _states(node)] if _ours(node) else node.args[-1]
    first, second = x.meta["val"].shape[:2]
    return {"batch": first, "time": second} if batch_first else {"batch": second, "time": first}


def _calls(program: ExportedProgram) -> list[torch.fx.Node]:
    """The calls of recurrent layers."""
    from multirnn_torch.onnx_nodes import TRANSLATIONS

    return [node for node in _nodes(program) if node.target in TRANSLATIONS]


def _nodes(program: ExportedProgram) -> Iterator[torch.fx.Node]:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def _ours(node: torch.fx.Node) -> bool:
    return str(node.target).startswith("multirnn.")


def _states(node: torch.fx.Node) -> int:
    return 1 + str(node.target).startswith("multirnn.lstm")


def _path(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _titled(path: str) -> str:
    return f"layer {path!r}" if path else "the layer"
