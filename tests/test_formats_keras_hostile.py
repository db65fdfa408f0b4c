"""Keras' files that are damaged or made to do harm: a sentence in a moment, in little memory, and nothing runs."""

import io
import json
import random
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import formats
from multirnn.errors import FormatError

h5py = pytest.importorskip("h5py")

SPEC = mr.RecurrentSpec("lstm", 3, 4)
KERNEL = {".weights.h5": "layers/lstm/cell/vars/0", ".h5": "model_weights/lstm/sequential/lstm/lstm_cell/kernel"}
SECONDS, BYTES = 2.0, 40 << 20


@contextmanager
def in_a_moment() -> Iterator[None]:
    """At most the promised time and memory, and no file beside."""
    tracemalloc.start()
    before = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - before < SECONDS
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


@pytest.fixture
def weights() -> mr.Weights:
    return mr.initialise(SPEC)


def changed(path: Path, change: Callable[[Any, str], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file, KERNEL["".join(path.suffixes)])


def anew(file: Any, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def external_link(file: Any, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("/etc/hostname", "/x")


def soft_link(file: Any, name: str) -> None:
    file["elsewhere"] = np.ones((3, 16), "f4")
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")


def external_dataset(file: Any, name: str) -> None:
    anew(file, name, shape=(3, 16), dtype="f4", external=[("/etc/passwd", 0, 192)])


def virtual_dataset(file: Any, name: str) -> None:
    del file[name]
    layout = h5py.VirtualLayout((3, 16), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (3, 16))
    file.create_virtual_dataset(name, layout)


def terabytes(file: Any, name: str) -> None:
    anew(file, name, shape=(1 << 30, 1 << 10), dtype="f4", chunks=(1 << 10, 1 << 10))


def terabytes_at_once(file: Any, name: str) -> None:
    anew(file, name, shape=(1 << 30, 1 << 10), dtype="f4")


def bomb(file: Any, name: str) -> None:
    anew(file, name, data=np.zeros((1 << 12, 1 << 13), "f4"), compression="gzip", chunks=(1 << 11, 1 << 13))


def other_filter(file: Any, name: str) -> None:
    anew(file, name, data=np.ones((3, 16), "f4"), compression="lzf")


def texts(file: Any, name: str) -> None:
    anew(file, name, data=np.full((3, 16), b"x"))


def group(file: Any, name: str) -> None:
    del file[name]
    file.create_group(name)


def objects(file: Any, name: str) -> None:
    anew(file, name, shape=(3, 16), dtype=h5py.ref_dtype)


HDF5: dict[str, tuple[Callable[[Any, str], None], str]] = {
    "external link": (external_link, "link to elsewhere"),
    "soft link": (soft_link, "link to elsewhere"),
    "external dataset": (external_dataset, "in another file"),
    "virtual dataset": (virtual_dataset, "in other arrays or files|not read here"),
    "terabytes in chunks": (terabytes, "more than 20 times its size"),
    "terabytes at once": (terabytes_at_once, "and has 0 bytes"),
    "a bomb": (bomb, "more than 20 times its size"),
    "another filter": (other_filter, "filter 32000"),
    "texts": (texts, "holds no numbers"),
    "references": (objects, "holds no numbers"),
}


@pytest.mark.parametrize("suffix", KERNEL)
@pytest.mark.parametrize("case", HDF5)
def test_numbers_that_are_not_plainly_in_the_file(case: str, suffix: str, weights: mr.Weights, tmp_path: Path) -> None:
    change, words = HDF5[case]
    path = tmp_path / f"a{suffix}"
    formats.save(weights, path)
    changed(path, change)
    for read in (formats.load, formats.inspect):
        with in_a_moment(), pytest.raises(FormatError, match=words) as error:
            read(path)
        assert str(path) in str(error.value)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", KERNEL)
def test_a_group_in_the_place_of_an_array(suffix: str, weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    formats.save(weights, path)
    changed(path, group)
    with in_a_moment(), pytest.raises(FormatError):
        formats.load(path)


def test_gzip_and_shuffle_are_read(weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    formats.save(weights, path)
    with h5py.File(path, "r+") as file:
        for place in range(2):
            name = f"layers/lstm/cell/vars/{place}"
            data = file[name][()]
            anew(file, name, data=data, chunks=(2, 5), compression="gzip", shuffle=True)
    assert formats.load(path) == weights


def test_a_group_that_holds_itself_is_met_once(weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    formats.save(weights, path)
    with h5py.File(path, "r+") as file:
        file["layers/lstm/up"] = file["layers"]
        file["layers/again"] = file["/"]
    with in_a_moment():
        assert formats.load(path) == weights


def test_heaps_of_links_are_refused_with_the_cure(weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(100):
            file.create_group(f"layers/lstm_{number}")
    with in_a_moment(), pytest.raises(FormatError, match="h5py's defaults"):
        formats.load(path)


def test_an_object_of_no_size_in_a_heap_ends(weights: mr.Weights, tmp_path: Path) -> None:
    """libhdf5 1.14.6 walks such a heap for ever."""
    path = tmp_path / "a.h5"
    formats.save(weights, path)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    size = int.from_bytes(data[heap + 8 : heap + 16], "little")
    data[heap + 16 : heap + size] = (b"\xff\xff" + bytes(14)) * ((size - 16) // 16)
    path.write_bytes(data)
    with in_a_moment(), pytest.raises(FormatError, match="no text"):
        formats.load(path)


def test_a_deep_tree_that_holds_itself_ends(weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    formats.save(weights, path)
    data = bytearray(path.read_bytes())
    place = data.index(b"TREE")
    data[place + 5] = 200
    data[place + 32 : place + 40] = place.to_bytes(8, "little")
    path.write_bytes(data)
    with in_a_moment(), pytest.raises(FormatError):
        formats.load(path)


def test_an_object_that_goes_on_in_itself_ends(tmp_path: Path) -> None:
    data = bytearray(136)
    data[:16] = b"\x89HDF\r\n\x1a\n" + bytes((0, 0, 0, 0, 0, 8, 8, 0))
    for place, value in ((40, 136), (64, 96), (120, 112), (128, 24)):  # end, root, and where its message goes on
        data[place : place + 8] = value.to_bytes(8, "little")
    data[96:112] = bytes((1, 0, 1, 0, 1, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0))
    data[112:120] = bytes((0x10, 0, 16, 0, 0, 0, 0, 0))
    path = tmp_path / "a.h5"
    path.write_bytes(data)
    with in_a_moment(), pytest.raises(FormatError, match="some are in each other"):
        formats.load(path)


# --- Nothing runs ----------------------------------------------------------------------------------------------------


def lambda_layer(folder: Path) -> dict[str, Any]:
    code = f"open({str(folder / 'ran')!r}, 'w')"
    value = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    return {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "lambda", "function": value}}


def imported_layer(folder: Path) -> dict[str, Any]:
    (folder / "planted.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return {
        "module": "planted",
        "class_name": "Planted",
        "config": {"name": "planted"},
        "registered_name": "planted>Planted",
        "build_config": {"input_shape": [None, 3]},
    }


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("make", [lambda_layer, imported_layer])
def test_code_in_a_configuration_is_data(
    make: Callable[[Path], dict[str, Any]],
    suffix: str,
    weights: mr.Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"a{suffix}"
    formats.save(weights, path)

    def with_code(config: dict[str, Any], *, as_activation: bool) -> dict[str, Any]:
        layers = config["config"]["layers"]
        if as_activation:
            layers[-1]["config"]["activation"] = make(tmp_path)
        else:
            layers.insert(1, make(tmp_path))
        return config

    for as_activation in (False, True):
        rewritten(path, lambda config, how=as_activation: with_code(config, as_activation=how))
        (found,) = formats.inspect(path)
        if as_activation:
            assert "is in no spec" in found.refused
            with pytest.raises(FormatError, match="is in no spec"):
                formats.load(path)
        else:
            assert formats.load(path) == weights
    assert "planted" not in sys.modules
    assert not (tmp_path / "ran").exists()


def rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the configuration of a file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(change(json.loads(file.attrs["model_config"])))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = json.dumps(change(json.loads(entries["config.json"]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "config", [b"[" * 100_000, b"{", b"3", b"\xff\xfe", b'{"config": ' * 50_000, b'{"a": 1e999, "config": NaN}']
)
def test_a_configuration_that_is_no_object(config: bytes, weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    formats.save(weights, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", b'{"keras_version": "3.0.0"}')
        archive.writestr("model.weights.h5", data)
    with in_a_moment():
        if config.endswith(b"NaN}"):
            assert formats.load(path).spec == SPEC
        else:
            with pytest.raises(FormatError, match="configuration"):
                formats.load(path)


@pytest.mark.parametrize("missing", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_missing_entry_is_named(missing: str, weights: mr.Weights, tmp_path: Path) -> None:
    formats.save(weights, tmp_path / "a.keras")
    made = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.keras") as archive, zipfile.ZipFile(made, "w") as other:
        for name in archive.namelist():
            if name != missing:
                other.writestr(name, archive.read(name))
    (tmp_path / "a.keras").write_bytes(made.getvalue())
    with pytest.raises(FormatError, match=f"no entry '{missing}'"):
        formats.load(tmp_path / "a.keras")


# --- Damage ----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with some of them changed, repeated elsewhere or cut off."""
    rng, made = random.Random(seed), bytearray(data)
    if not seed % 10:
        return data[: rng.randrange(len(data))]
    for _ in range(rng.choice([1, 1, 2, 8])):
        place, width = rng.randrange(len(made) - 8), rng.choice([1, 2, 4, 8])
        if rng.random() < 0.5:
            made[place] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.6:
            value = rng.choice(
                [0, (1 << 8 * width) - 1, 1 << (8 * width - 1), rng.randrange(len(made)) % (1 << 8 * width)]
            )
            made[place : place + width] = value.to_bytes(width, "little")
        else:
            source = rng.randrange(len(made) - 8)
            made[place : place + width] = made[source : source + width]
    return bytes(made)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_damage_anywhere_gives_weights_or_a_sentence(suffix: str, weights: mr.Weights, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    formats.save(weights, path)
    data = path.read_bytes()
    refused = 0
    for seed in range(250):
        path.write_bytes(damaged(data, seed))
        with in_a_moment():
            try:
                formats.inspect(path)
            except FormatError as error:
                refused += str(path) in str(error)
    assert refused > 60
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", bytes(4096), b"\x89HDF\r\n\x1a\n" + b"\xff" * 4096]
)
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_files_of_something_else(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with in_a_moment(), pytest.raises(FormatError):
        formats.load(path)


ODD = (
    None,
    0,
    1.5,
    "",
    True,
    [],
    {},
    ["lstm", 0, 0],
    {"config": 3},
    {"config": {}},
    "GRU",
    "RNN",
    10**400,
    "hard_sigmoid",
)
PLACES = ("backward_layer", "merge_mode", "dtype", "cell", "layer", "name", "activation", "inbound_nodes", "config")


def misshapen(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The configuration with another value, of any kind, in some places."""
    rng, nodes = random.Random(seed), []
    queue: list[Any] = [config]
    while queue:
        one = queue.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        nodes += [(one, key) for key in keys]
        queue += [one[key] for key in keys]
    for holder, key in rng.sample(nodes, 2):
        if isinstance(holder, dict) and rng.random() < 0.3:
            holder[rng.choice(PLACES)] = rng.choice(ODD)
        else:
            holder[key] = rng.choice(ODD)
    return config


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_any_value_anywhere_in_a_configuration_is_data(bidirectional: bool, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    weights = mr.initialise(mr.RecurrentSpec("lstm", 3, 4, num_layers=2, bidirectional=bidirectional))
    told = 0
    for seed in range(150):
        formats.save(weights, path)
        rewritten(path, lambda config, seed=seed: misshapen(config, seed))
        for found in formats.inspect(path):
            told += bool(found.refused)
    assert told > 5
