"""Small valid files of every format, made without the frameworks that they belong to: what fuzzing and damage start from."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import multirnn as mr

Seed = tuple[str, bytes]  # the suffix and the bytes
LSTM = mr.RecurrentSpec("lstm", 3, 2, bias="double")
STACK = mr.RecurrentSpec("gru", 3, 2, num_layers=2, bidirectional=True)
RNN = mr.RecurrentSpec("simple_rnn", 3, 2, bias="single")


def saved(folder: Path, spec: mr.RecurrentSpec, suffix: str, **how: Any) -> Seed:
    path = folder / f"seed{suffix}"
    mr.save(mr.initialise(spec, 1), path, **how)
    return suffix, path.read_bytes()


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def text(word: str) -> bytes:
    """A pickle's operation that pushes a text."""
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def tensor(key: int, array: np.ndarray) -> bytes:
    """A pickle's operations that push a tensor of float32."""
    strides = [stride // 4 for stride in array.strides]
    tuples = [b"(" + b"".join(b"K" + bytes([size]) for size in sizes) + b"t" for sizes in (array.shape, strides)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + b"K"
    start = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + bytes([array.size]) + b"tQK\x00"
    return start + b"".join(tuples) + b"\x89}tR"


def old(program: bytes) -> bytes:
    """The pickle as it was before 1.6: a storage also says of which it is a part, None."""
    return program.replace(b"tQK", b"NtQK")


def pickled(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle of a state_dict below "model", beside a number and the name of an optimiser's device."""
    items = b"".join(text(name) + tensor(key, array) for key, (name, array) in enumerate(arrays.items()))
    beside = text("epoch") + b"K\x07" + text("device") + b"ctorch\ndevice\n" + text("cuda") + b"\x85R"
    return b"\x80\x02}(" + text("model") + b"ccollections\nOrderedDict\n)R(" + items + b"u" + beside + b"u."


def zipped(entries: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return made.getvalue()


def checkpoint(program: bytes, arrays: dict[str, np.ndarray], order: str = "little") -> bytes:
    """A zip as torch.save writes it."""
    data = {f"m/data/{key}": array.tobytes() for key, array in enumerate(arrays.values())}
    return zipped({"m/data.pkl": program, "m/byteorder": order.encode(), **data, "m/version": b"3\n"})


def plain(arrays: dict[str, np.ndarray], program: bytes | None = None) -> bytes:
    """The same as torch.save(_use_new_zipfile_serialization=False) writes it."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    heads = [pickle.dumps(thing, 2) for thing in (0x1950A86A20F9469CFC6C, 1001, system)]
    keys = pickle.dumps([str(key) for key in range(len(arrays))], 2)
    data = [array.size.to_bytes(8, "little") + array.tobytes() for array in arrays.values()]
    return b"".join([*heads, program or old(pickled(arrays)), keys, *data])


def script(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle of a module in a TorchScript archive."""
    items = b"".join(text(name) + tensor(key, array) for key, (name, array) in enumerate(arrays.items()))
    inner = b"c__torch__.torch.nn\nLSTM\n)\x81}(" + text("training") + b"\x89" + items + b"ub"
    return b"\x80\x02c__torch__\nNet\n)\x81}(" + text("rnn") + inner + b"ub."


def torch_files() -> Iterator[Seed]:
    arrays = mr.to_arrays(mr.initialise(LSTM, 1), convention="torch")
    yield ".pt", checkpoint(pickled(arrays), arrays)
    yield ".pth", plain(arrays)
    yield ".jit", checkpoint(script(arrays), arrays)
    program = b"\x80\x04\x95" + (99).to_bytes(8, "little") + pickled(arrays)[2:]
    yield ".pt", checkpoint(program, arrays)


# --- Keras, ONNX, JSON -----------------------------------------------------------------------------------------------


def keras_files() -> Iterator[Seed]:
    h5py = __import__("h5py")
    kernels = [np.full(shape, 0.5, "float32") for shape in ((3, 8), (2, 8), (8,))]
    config = {
        "class_name": "Sequential",
        "config": {
            "layers": [
                {
                    "class_name": "LSTM",
                    "config": {"name": "lstm", "units": 2, "activation": "tanh", "recurrent_activation": "sigmoid"},
                }
            ]
        },
    }

    def made(fill: Callable[[Any], None]) -> bytes:
        file = io.BytesIO()
        with h5py.File(file, "w") as opened:
            fill(opened)
        return file.getvalue()

    def third(file: Any) -> None:
        group = file.create_group("layers/lstm/cell/vars")
        for place, array in enumerate(kernels):
            group.create_dataset(str(place), data=array)

    def second(file: Any) -> None:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"], group.attrs["keras_version"] = [b"lstm"], "2.2.4"
        names = [f"lstm/{name}:0" for name in ("kernel", "recurrent_kernel", "bias")]
        layer = group.create_group("lstm")
        layer.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, kernels, strict=True):
            layer.create_dataset(name, data=array)

    weights, metadata = made(third), json.dumps({"keras_version": "3.0.0"}).encode()
    entries = {"metadata.json": metadata, "config.json": json.dumps(config).encode(), "model.weights.h5": weights}
    yield ".weights.h5", weights
    yield ".h5", made(second)
    yield ".keras", zipped(entries)


def onnx_files() -> Iterator[Seed]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    arrays = mr.to_arrays(mr.initialise(mr.RecurrentSpec("gru", 3, 2), 1), convention="onnx")
    weights = [numpy_helper.from_array(array, name[-1]) for name, array in arrays.items()]
    node = helper.make_node(
        "GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=2, linear_before_reset=1, activations=["Sigmoid", "Tanh"]
    )
    move = helper.make_node("Identity", ["V"], ["W"])
    weights[0].name = "V"
    graph = helper.make_graph(
        [move, node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["t", "b", 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["t", 1, "b", 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    yield ".onnx", model.SerializeToString()


def json_files() -> Iterator[Seed]:
    kernels = [[[0.5] * 8] * 3, [[0.25] * 8] * 2, [0.125] * 8]
    layers = [
        {"type": "lstm", "activation": "", "shape": [None, None, 2], "weights": kernels},
        {"type": "dense", "activation": "", "shape": [None, None, 1], "weights": [[[1.0], [2.0]], [0.5]]},
    ]
    yield ".json", json.dumps({"in_shape": [None, None, 3], "layers": layers}).encode()
    config = {"num_layers": 1, "input_size": 1, "hidden_size": 2}
    weights = [0.5] * (4 * 2 * 3 + 8 + 4 + 2 + 1)
    yield ".nam", json.dumps({"architecture": "LSTM", "config": config, "weights": weights}).encode()


def seeds(folder: Path) -> list[Seed]:
    """Valid files of all formats whose packages are installed; at least one for each suffix family."""
    found = [
        saved(folder, LSTM, ".safetensors"),
        saved(folder, STACK, ".safetensors", convention="torch"),
        saved(folder, STACK, ".npz"),
        saved(folder, LSTM, ".npz", convention="torch"),
        saved(folder, RNN, ".npz", convention="textbook"),
        saved(folder, STACK, ".pt"),
        *torch_files(),
        *json_files(),
    ]
    if find_spec("msgpack"):
        found.append(saved(folder, LSTM, ".msgpack"))
        found.append(saved(folder, mr.RecurrentSpec("lstm", 3, 2, 2, bidirectional=True), ".msgpack"))
    if find_spec("h5py"):
        found += keras_files()
    if find_spec("onnx"):
        found += onnx_files()
    return found
