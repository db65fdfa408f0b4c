"""ONNX Runtime: a graph of its operators RNN, LSTM or GRU, one a layer, on arrays that are bound to the session once."""

from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._peer import Peer

OPERATORS = {"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "softsign": "Softsign"}


def prepare(work: Work, threads: int) -> Prepared:
    """Two bindings of one session: each starts from the state that the other leaves, as streaming needs it."""
    import onnxruntime

    spec = work.weights.spec
    batch, time, _ = work.x.shape
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_model(work), options, providers=["CPUExecutionProvider"])
    x = np.ascontiguousarray(work.x.swapaxes(0, 1))
    lengths = np.full(batch, time, np.int32) if work.lengths is None else work.lengths.astype(np.int32)
    shape = (len(spec.directions), batch, spec.hidden_size)
    passes = [f"{state}_{layer}" for layer in range(spec.num_layers) for state in spec.form.states]
    one, other = ({name: np.zeros(shape, np.float32) for name in passes} for _ in range(2))
    y = np.empty((time, batch, spec.output_size), np.float32)

    def bound(start: dict[str, Any], end: dict[str, Any]) -> Any:
        binding = session.io_binding()
        for name, array in {"x": x, "lengths": lengths, **start}.items():
            binding.bind_cpu_input(name, array)
        for name, array in {"y": y, **{f"{name}_n": array for name, array in end.items()}}.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding

    bindings = [bound(other, one), bound(one, other)]

    def call() -> None:
        if work.mode == "streaming":
            bindings.reverse()
        session.run_with_iobinding(bindings[1])

    def result() -> mr.Output:
        call()
        end = one if work.mode == "streaming" else other
        states = (np.concatenate([end[f"{s}_{k}"] for k in range(spec.num_layers)]) for s in spec.form.states)
        return mr.Output(y.swapaxes(0, 1).copy(), mr.State(*states))

    return Prepared(call, result)


def _model(work: Work) -> bytes:
    """The graph, serialised."""
    from onnx import TensorProto, helper, numpy_helper

    spec = work.weights.spec
    states = spec.form.states
    weights = work.weights if spec.bias == "none" else mr.split_biases(work.weights)
    arrays = mr.to_arrays(weights, convention="onnx")
    activations = [spec.activation] if spec.cell == "simple_rnn" else [spec.recurrent_activation, spec.activation]
    activations += [spec.activation] if spec.cell == "lstm" else []
    directions = len(spec.directions)
    nodes, x = [], "x"
    for k in range(spec.num_layers):
        bias = f"layers.{k}.B" if spec.bias != "none" else ""
        y = "y" if k == spec.num_layers - 1 else f"y_{k}"
        nodes.append(
            helper.make_node(
                OPERATORS[spec.cell],
                [x, f"layers.{k}.W", f"layers.{k}.R", bias, "lengths", *(f"{s}_{k}" for s in states)],
                [f"Y_{k}", *(f"{s}_{k}_n" for s in states)],
                hidden_size=spec.hidden_size,
                direction="bidirectional" if spec.bidirectional else "forward",
                activations=[ACTIVATIONS[str(one)] for one in activations] * directions,
                **({"linear_before_reset": int(spec.reset_after)} if spec.cell == "gru" else {}),
            )
        )
        # (time, directions, batch, hidden) to (time, batch, directions * hidden)
        nodes.append(helper.make_node("Transpose", [f"Y_{k}"], [f"Z_{k}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"Z_{k}", "shape"], [y]))
        x = y

    def floats(name: str, *sizes: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    passes = [f"{s}_{k}" for k in range(spec.num_layers) for s in states]
    start, end = ([floats(name + n, directions, "batch", spec.hidden_size) for name in passes] for n in ("", "_n"))
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ("batch",))
    graph = helper.make_graph(
        nodes,
        spec.cell,
        [floats("x", "time", "batch", spec.input_size), lengths, *start],
        [floats("y", "time", "batch", spec.output_size), *end],
        [
            *(numpy_helper.from_array(array, name) for name, array in arrays.items()),
            numpy_helper.from_array(np.array([0, 0, spec.output_size]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return bytes(model.SerializeToString())


CONTENDERS = (
    Peer(
        "ONNX Runtime",
        prepare,
        ("onnxruntime",),
        lacks={
            "gradients": "it is for inference only",
            "float64": "its operators compute in float32 alone",
            "empty rows": "its operators return another state than they are given for a row of length 0",
        },
        activations=ACTIVATIONS,
    ),
)
