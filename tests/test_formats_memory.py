"""Files are converted in little memory: what a process takes at most, held against the size of the file."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import multirnn as mr

CONVERT = """
import resource, sys
from pathlib import Path
import multirnn as mr
mr.convert(sys.argv[3], Path(sys.argv[3]).with_name("small" + Path(sys.argv[2]).suffix))  # loads all that is needed

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

Path("/proc/self/clear_refs").write_text("5")  # the highest memory is counted from here
before = memory("VmRSS")
mr.convert(sys.argv[1], sys.argv[2])
print(memory("VmHWM") - before)
"""
LIMIT, ROOM = 2.5, 4 << 20
"""Times the size of the file, and bytes for what does not grow with it."""
NEEDS = {".msgpack": "msgpack", ".keras": "h5py", ".onnx": "onnx"}
SPEC = mr.RecurrentSpec("lstm", 512, 512, num_layers=3, bias="double")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux says how much memory a process took at most")
    return tmp_path_factory.mktemp("large")


@pytest.mark.parametrize("source", [".pt", ".safetensors", ".npz", *NEEDS])
def test_a_file_is_converted_in_less_memory_than_two_and_a_half_of_it(folder: Path, source: str) -> None:
    if source in NEEDS:
        pytest.importorskip(NEEDS[source])
    mr.save(mr.initialise(SPEC, 1), folder / f"a{source}")
    mr.save(mr.initialise(mr.RecurrentSpec("lstm", 3, 2)), folder / f"little{source}")
    for target in (".safetensors", ".pt", ".npz", *(suffix for suffix in NEEDS if find_spec(NEEDS[suffix]))):
        words = [folder / f"a{source}", folder / f"b{target}", folder / f"little{source}"]
        done = subprocess.run([sys.executable, "-c", CONVERT, *words], capture_output=True, text=True, check=False)
        assert done.stdout.strip().isdigit(), done.stderr
        assert int(done.stdout) < LIMIT * words[0].stat().st_size + ROOM, target


def test_weights_that_are_taken_over_are_shared_and_read_only() -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 4), 1)
    split = mr.split_biases(weights)
    for name, array in split.arrays.items():
        assert not array.flags.writeable
        assert (array is weights.arrays.get(name)) == (name in weights.arrays)
    mutable = {name: array.copy() for name, array in weights.arrays.items()}
    own = mr.Weights(weights.spec, mutable)
    for array in mutable.values():
        array += 1
    assert own == weights
