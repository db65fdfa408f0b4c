"""Files made to harm: each is refused in a sentence, soon, in little memory, and nothing is run, followed or written."""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import formats_seeds
import numpy as np
import pytest
from formats_seeds import checkpoint, old, pickled, plain, tensor, text, zipped

import multirnn as mr
from multirnn.formats.archive import SMALL

LONGEST, ROOM = 2.0, 4 * SMALL
ARRAYS = mr.to_arrays(mr.initialise(formats_seeds.LSTM, 1), convention="torch")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[formats_seeds.Seed]:
    return formats_seeds.seeds(tmp_path_factory.mktemp("seeds"))


def refused(path: Path, sentence: str = "") -> None:
    """The file is refused by an error that begins with its path; nothing else is in its folder then, or changed."""
    before = path.read_bytes()
    began = time.perf_counter()
    with pytest.raises(mr.FormatError, match=sentence) as error:
        mr.load(path)
    took = time.perf_counter() - began
    if took < LONGEST / 4:  # tracing is slow
        tracemalloc.start()
        with pytest.raises(mr.FormatError):
            mr.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < ROOM + 8 * len(before)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 1000
    assert took < LONGEST
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


# --- Pickles ---------------------------------------------------------------------------------------------------------

TOUCH = "touch harmed"


class Harm:
    """What a pickle of Python runs when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, (TOUCH,)


class Built:
    """An object that a pickle makes by a class, and gives a state."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return pickle.Unpickler, (io.BytesIO,), {"a": 1}


HARMFUL: dict[str, tuple[bytes, str]] = {
    "reduce, protocol 0": (pickle.dumps(Harm(), 0)[:-1], "asks for posix.system"),
    "reduce, protocol 2": (pickle.dumps(Harm(), 2)[2:-1], "asks for posix.system"),
    "reduce, protocol 4": (pickle.dumps(Harm(), 4)[11:-1], "asks for posix.system"),
    "global": (b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR", "asks for os.system"),
    "stack global": (b"\x8c\x02os\x8c\x06system\x93\x8c\x0c" + TOUCH.encode() + b"\x85R", "asks for os.system"),
    "instance": (b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n", "asks for os.system"),
    "object": (b"(cos\nsystem\nS'" + TOUCH.encode() + b"'\no", "asks for os.system"),
    "build": (pickle.dumps(Built(), 2)[2:-1], "asks for _?pickle"),
    "new object": (b"cbuiltins\ncompile\n)\x81", "asks for builtins.compile"),
    "new object with names": (b"cos\nsystem\n)}\x92", "asks for os.system"),
    "builtins of Python 2": (b"c__builtin__\neval\n(S'1'\ntR", "asks for __builtin__.eval"),
    "an attribute of a name that is known": (
        b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93",
        "asks for collections",
    ),
    "what is called is no function": (b"X\x01\0\0\0a)R", "it calls what is no function"),
    "a class that is a text": (b"X\x01\0\0\0a)\x81", "it calls what is no function"),
    "a dtype that is called": (b"ctorch\nFloatStorage\n)R", "it calls what is no function"),
    "the state of a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0aK\x01sbN",
        "is beside|no recurrent stack",
    ),
    "rebuilt by another function": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nN)NtR",
        "rebuilt in an unknown way",
    ),
    "rebuilt from no arguments": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nNX\x04\0\0\0abcdNtR",
        "rebuilt in an unknown way",
    ),
    "an extension": (b"\x82\x01", "asks for an extension of pickle"),
    "a function of ours": (b"cmultirnn.formats\nsave\n", "asks for multirnn.formats.save"),
    "a tensor in no storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89NtR", "a tensor lies in NoneType"),
    "a storage outside": (text("storage") + b"Q", "refers to something that is no storage"),
    "bytes of terabytes": (b"\x8e" + (1 << 42).to_bytes(8, "little"), "it ends in the middle of its pickle"),
    "an array of terabytes": (b"\x96" + (1 << 42).to_bytes(8, "little"), "is no operation that is read here"),
    "a text of gigabytes": (b"X\xff\xff\xff\xff", "it ends in the middle of its pickle"),
    "a number of gigabytes": (b"\x8b\xff\xff\xff\x7f", "it ends in the middle of its pickle"),
    "a long number": (b"\x8b\xe8\x03\0\0" + b"\xff" * 1000, "has a number of 1000 bytes"),
    "a number of many digits": (b"L" + b"9" * 5000 + b"L\n", "has a number of 500. digits"),
    "marks": (b"(" * 100_000 + b"t" * 100_001, "damaged at byte"),
    "items of a list": (b"](NNu", "it sets items in what is no dictionary"),
    "half an item": (b"}(Nu", "it sets items in what is no dictionary"),
    "an item of a dictionary": (b"}Na", "it appends to what is no list"),
    "a text without quotes": (b"Stouch\n", "a text is not quoted"),
    "a name that is no text": (b"NN\x93", "a name is no text"),
    "nothing to take": (b"0" * 9 + b"\x87", "damaged at byte"),
    # A tuple that holds the one before it twice: its hash, its text and its copy have 2⁴⁰ parts.
    "doubled and hashed": (b")q\0" + b"h\0h\0\x86q\0" * 40 + b"}h\0Ns", "no recurrent stack|more than"),
    "doubled and refered to": (b")q\0" + b"h\0h\0\x86q\0" * 40 + b"Q", "refers to something that is no storage"),
    "doubled and walked": (b"]q\0" + b"(h\0h\0lq\0" * 40, "more than 100000 dictionaries and lists"),
    "a list in itself": (b"]q\0h\0a", "levels"),
    "many of many": (b"(" + b"N" * 1100 + b"lq\0(" + b"h\0" * 1100 + b"l", "more than 1000000 objects"),
    "a shape of text": (
        tensor(0, next(iter(ARRAYS.values()))).replace(b"(K\x08K\x03t", text("83")),
        "has an impossible shape",
    ),
}


@pytest.mark.parametrize("kind", ["zip", "plain"])
@pytest.mark.parametrize("what", HARMFUL)
def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, kind: str) -> None:
    program, sentence = HARMFUL[what]
    program = b"\x80\x02" + program + b"."
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint(program, ARRAYS) if kind == "zip" else plain(ARRAYS, old(program)))
    refused(path, sentence if kind == "zip" else f"{sentence}|a storage of it does not have the size")


def test_the_harm_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harm()))
    assert (tmp_path / "harmed").exists()


SHAPES = {
    "terabytes": ((1 << 40, 4), (4, 1)),
    "repeated": ((1 << 20, 1 << 20), (0, 0)),
    "behind the end": ((8, 3), (4, 1)),
    "many axes": ((1,) * 65, (1,) * 65),
    "shape without strides": ((8, 3), (3,)),
    "negative": ((-8, 3), (3, 1)),
    "negative strides": ((8, 3), (-3, 1)),
    "beyond integers": ((1 << 70, 3), (3, 1)),
    "nothing, largely": ((0, 1 << 59, 1 << 59), (1, 1, 1)),
}


@pytest.mark.parametrize("what", SHAPES)
def test_a_tensor_that_claims_more_than_its_storage(tmp_path: Path, what: str) -> None:
    def tuples(sizes: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + size.to_bytes(9, "little", signed=True) for size in sizes) + b"t"

    right = b"(K\x08K\x03t(K\x03K\x01t"
    program = pickled(ARRAYS)
    assert right in program
    shape, strides = SHAPES[what]
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint(program.replace(right, tuples(shape) + tuples(strides)), ARRAYS))
    refused(path)


def test_the_same_numbers_under_many_names(tmp_path: Path) -> None:
    array = np.zeros((256, 64), "f")
    one = tensor(0, np.zeros((8, 3), "f")).replace(b"K\x18", struct.pack("<BI", ord("J"), array.size))
    one = one.replace(b"(K\x08K\x03t(K\x03K\x01t", b"(M\x00\x01K\x40t(K\x40K\x01t")
    items = b"".join(text(f"a{number}.weight_hh_l0") + one for number in range(1000))
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint(b"\x80\x02}(" + items + b"u.", {"a": array}))
    refused(path, "its tensors refer to the same numbers more than 8 times over")


# --- Zips ------------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


def with_size(data: bytes, size: int) -> bytes:
    """A zip whose one entry says to have another size."""
    made = bytearray(data)
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = made.index(mark) + at
        made[place : place + 4] = size.to_bytes(4, "little")
    return bytes(made)


def twice(name: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, data)
    return made.getvalue()


ZIPS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a bomb of NumPy": (".npz", lambda: zipped({"a.npy": bytes(SMALL + 1)}, 8), "would unpack to more than 20 times"),
    "a bomb of Keras": (".keras", lambda: zipped({"config.json": bytes(SMALL + 1)}, 8), "would unpack to more than"),
    "a bomb of torch": (".pt", lambda: zipped({"m/data.pkl": bytes(SMALL + 1)}, 8), "would unpack to more than"),
    "a packed program": (
        ".pt",
        lambda: zipped({"m/data.pkl": bytes(SMALL - 1)}, 8),
        "its pickle is packed, and larger",
    ),
    "a small entry that is large": (
        ".npz",
        lambda: with_size(zipped({"a.npy": bytes(SMALL)}, 8), 10),
        "cannot be read: (Bad CRC|File size)|is damaged",
    ),
    "a zip in a zip": (".npz", lambda: zipped({"a.npy": zipped({"a.npy": npy(np.zeros(3))})}), "has a damaged header"),
    "a name twice": (".npz", lambda: twice("a.npy", npy(np.zeros(3))), "has two entries named 'a.npy'"),
    "two of one name": (
        ".npz",
        lambda: zipped({"a.npy": npy(np.zeros(3)), "a": npy(np.zeros(3))}),
        "'a' is there twice",
    ),
    "names with separators": (
        ".npz",
        lambda: zipped({"../../harmed.npy": npy(np.zeros(3)), "/harmed.npy": npy(np.zeros(3)), "..": npy(np.zeros(1))}),
        "holds no recurrent stack",
    ),
    "another packing": (
        ".npz",
        lambda: zipped({"a.npy": npy(np.zeros(3))}, 14),
        "packed in a way that is not read here",
    ),
    "terabytes": (
        ".npz",
        lambda: zipped({"a.npy": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}")}),
        "claims the shape",
    ),
    "terabytes of nothing": (
        ".npz",
        lambda: zipped({"a.npy": header("{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627776,)}")}),
        "holds no recurrent stack",
    ),
    "a header that is a program": (
        ".npz",
        lambda: zipped({"a.npy": header("__import__('os').system('touch harmed')")}),
        "has a damaged header",
    ),
    "a deep header": (".npz", lambda: zipped({"a.npy": header("(" * 900)}), "has a damaged header"),
    "an open header": (".npz", lambda: zipped({"a.npy": header("{'descr': (")}), "has a damaged header"),
    "objects": (".npz", lambda: zipped({"a.npy": npy(np.array([{}], object))}), "holds Python objects"),
    "a storage with separators": (
        ".pt",
        lambda: checkpoint(pickled(ARRAYS).replace(text("0"), text("../0")), ARRAYS),
        r"has no entry 'm/data/../0'",
    ),
    "no program": (".pt", lambda: zipped({"m/version": b"3"}), "has no data.pkl"),
    "two programs": (".pt", lambda: zipped({"m/data.pkl": b"", "n/data.pkl": b""}), "has no data.pkl"),
    "another byte order": (".pt", lambda: checkpoint(pickled(ARRAYS), ARRAYS, "middle"), "does not say whether"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ZIPS)
def test_an_archive_unpacks_little_and_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    suffix, made, sentence = ZIPS[what]
    if suffix == ".keras":
        pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(made())
    refused(path, sentence)


def test_a_flipped_bit_in_stored_weights_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    mr.save(mr.initialise(formats_seeds.LSTM, 1), path)
    data = bytearray(path.read_bytes())
    at = data.index(np.float32(mr.load(path).arrays["layers.0.forward.bias_hh"][0, 0]).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    refused(path, "is damaged: its checksum does not match")


# --- Every format ----------------------------------------------------------------------------------------------------


def damaged(seeds: list[formats_seeds.Seed]) -> Iterator[tuple[str, bytes]]:
    for suffix, data in seeds:
        for end in (0, 1, 3, 9, len(data) // 3, len(data) // 2, len(data) - 1):
            yield suffix, data[:end]
        yield suffix, bytes(len(data))
        yield suffix, os.urandom(0) + zlib.compress(data)


def test_a_file_that_ends_early_or_is_another_is_refused(tmp_path: Path, seeds: list[formats_seeds.Seed]) -> None:
    for suffix, data in damaged(seeds):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        try:
            refused(path)
        except pytest.fail.Exception:
            assert suffix in (".h5", ".weights.h5"), f"{suffix}: {len(data)} bytes are read as if they were whole"
        path.unlink()


def test_every_format_under_every_other_suffix_is_refused(tmp_path: Path, seeds: list[formats_seeds.Seed]) -> None:
    alike = [{".pt", ".pth", ".jit"}, {".h5", ".weights.h5", ".keras"}]
    suffixes = {suffix for suffix, _ in seeds}
    for suffix, data in seeds:
        own = next((group for group in alike if suffix in group), {suffix})
        for other in suffixes - own:
            path = tmp_path / f"a{other}"
            path.write_bytes(data)
            refused(path)
            path.unlink()


def test_a_missing_file_a_folder_and_an_unknown_suffix(tmp_path: Path) -> None:
    needs = {".msgpack": "msgpack", ".onnx": "onnx"}
    for suffix in {suffix for one in mr.formats.FORMATS.values() for suffix in one.suffixes}:
        if suffix in needs and find_spec(needs[suffix]) is None:
            continue
        with pytest.raises(mr.FormatError, match="cannot be read: No such file"):
            mr.load(tmp_path / f"a{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(mr.FormatError, match="cannot be read: Is a directory"):
            mr.load(tmp_path / f"folder{suffix}")
    with pytest.raises(mr.FormatError, match=r"has none of the suffixes that tell the format: \.safetensors, "):
        mr.load(tmp_path / "a.txt")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".msgpack"])
def test_numbers_that_are_not_finite_are_read_as_they_are(tmp_path: Path, suffix: str, number: float) -> None:
    if suffix == ".msgpack":
        pytest.importorskip("msgpack")
    weights = mr.initialise(mr.RecurrentSpec("lstm", 3, 2), 1)
    arrays = {
        name: np.where(np.arange(array.size).reshape(array.shape) == 1, np.float32(number), array)
        for name, array in weights.arrays.items()
    }
    weights = mr.Weights(weights.spec, arrays)
    mr.save(weights, tmp_path / f"a{suffix}", convention={".pt": "torch", ".msgpack": "flax-linen"}.get(suffix))
    found = mr.load(tmp_path / f"a{suffix}")
    assert all(np.array_equal(array, arrays[name], equal_nan=True) for name, array in found.arrays.items())


def test_many_stacks_do_not_take_long(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {f"{'a/' * 20}{k}.{name}": array for k in range(520) for name, array in ARRAYS.items()}
    numpy.save_file(arrays, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "it holds more than 500 groups of arrays with names of recurrent layers")
    names = {f"{'a/' * 120}{k}/": np.zeros(1, "f") for k in range(1500)}
    numpy.save_file(names, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "holds no recurrent stack")
