"""Damage to files: a few of their bytes changed, or a few of their parts.

Parts are the entries of a zip, the operations of a pickle, the values of a JSON or msgpack tree, the fields of an ONNX model,
and the attributes, arrays and links of HDF5.
"""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from formats_seeds import Seed

Random = random.Random

# --- Bytes -----------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    b"",
    b"\0",
    b"../../x",
    b"/etc/passwd",
    b"\xff\xfe",
    b"a" * 300,
    b"PK\x03\x04",
    b"__metadata__",
    b"<f4",
    b"|O",
    b"|V0",
)


def flipped(data: bytes, draw: Random) -> bytes:
    """One bit, byte, number or stretch of the bytes changed."""
    if not data:
        return bytes([draw.randrange(256)])
    made, at = bytearray(data), draw.randrange(len(data))
    kind = draw.randrange(9)
    if kind == 0:
        made[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        made[at] = draw.choice((0, 1, 10, 46, 127, 128, 255, draw.randrange(256)))
    elif kind == 2:
        del made[at:]
    elif kind == 3:
        del made[at : at + draw.randrange(1, 32)]
    elif kind == 4:
        made[at:at] = made[draw.randrange(len(made)) :][: draw.randrange(1, 64)]
    elif kind == 5:
        number = draw.choice(NUMBERS)
        form = draw.choice((">Q", "<Q", "<I", "<H"))
        size = struct.calcsize(form)
        made[at : at + size] = struct.pack(form, number % (1 << 8 * size))
    elif kind == 6:
        made[at:at] = draw.choice(WORDS)
    elif kind == 7:
        made += made[at:]
    else:
        other = draw.randrange(len(data))
        made[at : at + 8] = data[other : other + 8]
    return bytes(made)


# --- Trees -----------------------------------------------------------------------------------------------------------


def value(draw: Random) -> Any:
    """A value that a reader may not expect."""
    plain = (
        None,
        True,
        -1,
        0,
        0.5,
        1e308,
        float("nan"),
        "",
        "../x",
        "lstm",
        "a" * 300,
        [],
        {},
        [[]],
        [1, "a"],
        {"": 1},
    )
    deep: Any = []
    for _ in range(draw.choice((3, 200, 2000))):
        deep = [deep]
    return draw.choice((*plain, *NUMBERS[-8:], deep))


def pruned(tree: Any, draw: Random) -> Any:
    """The tree with one of its values, or its names, changed."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        name = draw.choice(list(tree))
        made, kind = dict(tree), draw.randrange(8)
        if kind == 0:
            del made[name]
        elif kind == 1:
            made[value(draw) if draw.random() < 0.1 else f"{name}x"] = made.pop(name)
        elif kind == 2:
            made[name] = tree[draw.choice(list(tree))]
        else:
            made[name] = pruned(tree[name], draw)
        return {key: inner for key, inner in made.items() if isinstance(key, str | int)}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        at, kind = draw.randrange(len(tree)), draw.randrange(6)
        if kind == 0:
            return tree[:at] + tree[at + 1 :]
        if kind == 1:
            return tree[: at + 1] + tree[at:]
        return [*tree[:at], pruned(tree[at], draw), *tree[at + 1 :]]
    if isinstance(tree, bytes) and draw.random() < 0.8:
        return flipped(tree, draw)
    return value(draw)


def json_of(data: bytes, draw: Random) -> bytes:
    return json.dumps(pruned(json.loads(data), draw)).encode()


def safetensors_of(data: bytes, draw: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json_of(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def msgpack_of(data: bytes, draw: Random) -> bytes:
    msgpack = __import__("msgpack")
    tree = msgpack.unpackb(data, ext_hook=lambda code, body: {"ext": code, "body": msgpack.unpackb(body, raw=True)})
    changed = pruned(tree, draw)

    def packed(node: Any) -> Any:
        if isinstance(node, dict) and set(node) == {"ext", "body"}:
            code = node["ext"] if isinstance(node["ext"], int) and 0 <= node["ext"] < 128 else 1
            return msgpack.ExtType(code, msgpack.packb(packed(node["body"])))
        if isinstance(node, dict):
            return {key: packed(inner) for key, inner in node.items()}
        return [packed(inner) for inner in node] if isinstance(node, list | tuple) else node

    return bytes(msgpack.packb(packed(changed)))


# --- Zips and pickles ------------------------------------------------------------------------------------------------

HOSTILE = (
    b"cos\nsystem\nX\x04\0\0\0true\x85R",
    b"cposix\nsystem\n",
    b"c__builtin__\neval\nX\x01\0\0\x001\x85R",
    b"\x8c\x02os\x8c\x06system\x93",
    b"(S'true'\nios\nsystem\n",
    b"(cos\nsystem\nX\x04\0\0\0trueo",
    b"\x81",
    b"}\x92",
    b"b",
    b"\x82\x01",
    b"2",
    b"\x86",
    b"R",
    b"Q",
    b"0",
    b"(" * 50,
    b"\x86\x86",
    b"q\x00h\x00h\x00\x86q\x00" * 40,
    b"]q\x01h\x01a",
    b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n",
    b"c__torch__\nX\n)\x81",
    b"ctorch\nBFloat16Storage\n",
    b"N}s",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 8,
    b"\x96" + b"\xff" * 7 + b"\x7f",
    b"X\xff\xff\xff\xff",
)


def pickle_of(data: bytes, draw: Random) -> bytes:
    """A pickle with operations put in, taken out, or exchanged."""
    at = draw.randrange(2, max(3, len(data)))
    kind = draw.randrange(4)
    if kind == 0:
        return data[:at] + draw.choice(HOSTILE) + data[at:]
    if kind == 1:
        return data[:at] + draw.choice(HOSTILE) + b"."
    if kind == 2:
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return flipped(data, draw)


def zip_of(data: bytes, draw: Random) -> bytes:
    """A zip with one of its entries changed, and its checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = draw.randrange(len(entries))
    name, body = entries[at]
    kind = draw.randrange(10)
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries.append((name, flipped(body, draw)))
    elif kind == 2:
        entries[at] = (draw.choice(("../x", "/x", "", name + ".npy", "archive/data/../0", "a" * 300)), body)
    elif name.endswith(".pkl"):
        entries[at] = (name, pickle_of(body, draw))
    elif name.endswith(".json"):
        entries[at] = (name, json_of(body, draw))
    elif name.endswith(".npy") and kind < 7:
        entries[at] = (name, npy_of(body, draw))
    elif name.endswith(".h5") and kind < 7:
        entries[at] = (name, hdf5_of(body, draw))
    else:
        entries[at] = (name, flipped(body, draw))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", draw.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, body in entries:
            archive.writestr(zipfile.ZipInfo(name), body)
    return made.getvalue()


DESCRIPTIONS = (
    "'<f4'",
    "'|O'",
    "'<f2'",
    "'|V4'",
    "'<U0'",
    "'<f16'",
    "[('a', '<f4')]",
    "'>f4'",
    "None",
    "'<M8[s]'",
    "(" * 300 + ")" * 300,
)
SHAPES = (
    "()",
    "(0,)",
    "(1 << 40, 4)",
    f"({2**62}, {2**62})",
    "(-1,)",
    "(2.5,)",
    "(0, 1000000000000)",
    "(1,)" + "*100",
    "'a'",
)


def npy_of(data: bytes, draw: Random) -> bytes:
    """An array of NumPy with another header."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin1")
    start, _, rest = header.partition("'shape': ")
    if draw.random() < 0.5 and rest:
        header = f"{start}'shape': {draw.choice(SHAPES)}, }}\n"
    elif draw.random() < 0.5:
        header = header.replace("'<f4'", draw.choice(DESCRIPTIONS)).replace(
            "False", draw.choice(("True", "False", "2"))
        )
    else:
        header = flipped(header.encode("latin1"), draw).decode("latin1")
    raw = header.encode("latin1")
    return data[:8] + len(raw).to_bytes(2, "little") + raw + data[10 + length :]


# --- HDF5 and ONNX ---------------------------------------------------------------------------------------------------


def hdf5_of(data: bytes, draw: Random) -> bytes:
    """An HDF5 file with one of its attributes, arrays or links changed."""
    h5py, numpy = __import__("h5py"), __import__("numpy")
    made = io.BytesIO(data)
    with h5py.File(made, "r+") as file:
        paths: list[str] = []
        file.visit(paths.append)
        path = draw.choice(paths)
        node, kind = file[path], draw.randrange(7)
        attributes = [(one, name) for one in (file, *(file[p] for p in paths)) for name in one.attrs]
        if kind < 3 and attributes:
            one, name = draw.choice(attributes)
            old = one.attrs[name]
            odd = (b"x", "..", 7, numpy.zeros(3), [b"a", b"b"], h5py.Empty("f"), numpy.zeros((0,)))
            text = isinstance(old, str) and old.startswith("{")
            one.attrs[name] = json_of(old.encode(), draw).decode() if text else draw.choice(odd)
        elif kind == 3:
            del file[path]
        elif kind == 4:
            parent = node.parent
            del file[path]
            parent[path.rpartition("/")[2]] = draw.choice(
                (h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"), file)
            )
        elif isinstance(node, h5py.Dataset):
            parent, own = node.parent, path.rpartition("/")[2]
            del file[path]
            shape = draw.choice(((), (0,), (3, 8), (2, 8), (8,), (1 << 40, 1 << 20), (2,) * 9))
            dtype = draw.choice(("f2", "f4", "f8", "i8", "S3", "c8", h5py.string_dtype()))
            large = len(shape) == 2 and shape[0] > 99
            parent.create_dataset(own, shape, dtype, chunks=(1 << 10, 1 << 10) if large else None)
        else:
            file[path].attrs["name"] = draw.choice(("lstm", "x", 3))
    return made.getvalue()


def onnx_of(data: bytes, draw: Random) -> bytes:
    """A model with one field of one of its messages changed."""
    onnx = __import__("onnx")
    model = onnx.ModelProto.FromString(data)
    messages: list[Any] = [model]
    for message in messages:
        for field, inner in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                messages += list(inner) if field.is_repeated else [inner]
    message = draw.choice(messages)
    field = draw.choice(message.DESCRIPTOR.fields)
    number = draw.choice((-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**62))
    made: Any = {
        field.TYPE_STRING: draw.choice(("", "X", "W", "LSTM", "Loop", "If", "Y", "../x", "ai.onnx", "h" * 300)),
        field.TYPE_BYTES: flipped(b"Tanh", draw),
        field.TYPE_FLOAT: draw.choice((0.0, -1.0, float("nan"), 1e30)),
        field.TYPE_DOUBLE: draw.choice((0.0, float("inf"))),
        field.TYPE_INT64: number,
        field.TYPE_UINT64: abs(number),
        field.TYPE_INT32: min(number, 2**31 - 1),
        field.TYPE_ENUM: draw.choice((0, 1, 2, 3, 10, 16)),
    }.get(field.type)
    if field.type == field.TYPE_MESSAGE:
        alike = [one for one in messages if one.DESCRIPTOR is field.message_type]
        if draw.random() < 0.5 or not alike:
            message.ClearField(field.name)
        else:
            other = draw.choice(alike).SerializeToString()  # a message may hold the one that is put into it
            own = getattr(message, field.name)
            (own.add() if field.is_repeated else own).ParseFromString(other)
    elif field.is_repeated:
        values = getattr(message, field.name)
        if len(values) and draw.random() < 0.5:
            values[draw.randrange(len(values))] = made
        else:
            values.append(made)
    else:
        setattr(message, field.name, made)
    return bytes(model.SerializeToString())


SHAPED: dict[str, Callable[[bytes, Random], bytes]] = {
    ".safetensors": safetensors_of,
    ".npz": zip_of,
    ".pt": zip_of,
    ".jit": zip_of,
    ".pth": pickle_of,
    ".keras": zip_of,
    ".weights.h5": hdf5_of,
    ".h5": hdf5_of,
    ".json": json_of,
    ".nam": json_of,
    ".msgpack": msgpack_of,
    ".onnx": onnx_of,
}


def damaged(seeds: Sequence[Seed], seed: int) -> tuple[str, bytes]:
    """The suffix and the bytes of an input."""
    draw = Random(seed)
    suffix, data = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        change = flipped if draw.random() < 0.4 else SHAPED[suffix]
        try:
            data = change(data, draw)
        except (Exception, RecursionError):  # noqa: BLE001  # damaged already: its parts are no longer found
            data = flipped(data, draw)
    return suffix, data
