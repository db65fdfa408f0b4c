"""Who imports whom: read from the source, and seen in interpreters of their own, where nothing else is loaded yet."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Container, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import multirnn as mr

ROOT = Path(mr.__file__).parent.parent

# --- In the source -----------------------------------------------------------------------------------------------------------

FILES = {"safetensors", "h5py", "msgpack", "onnx", "google"}  # in multirnn/formats alone; google.protobuf is onnx's

ALLOWED = {  # beside the standard library and itself
    "multirnn": {"numpy", "rich", "click", "matplotlib", "hypothesis", "pytest", *FILES},
    "multirnn_numpy": {"numpy", "multirnn"},
    "multirnn_torch": {"numpy", "multirnn", "torch"},
    "multirnn_keras": {"numpy", "multirnn", "keras", "tensorflow", "jax", "torch"},
    "multirnn_jax": {"numpy", "multirnn", "jax"},
    "multirnn_onnxruntime": {"numpy", "multirnn", "onnx", "onnxruntime"},
    "multirnn_bench": {"numpy", "multirnn", "rich", "click", "threadpoolctl", "jinja2"},
}
FOLDERS = {package: "backends" if "_" in package else "" for package in ALLOWED} | {"multirnn_bench": "benchmarks"}
SOURCES = [
    (package, path) for package, folder in FOLDERS.items() for path in sorted((ROOT / folder / package).rglob("*.py"))
]


def loading(path: Path) -> Iterator[ast.AST]:
    """The nodes of a file but for its imports for type checkers, which load nothing."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        yield node
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)


def imports(path: Path, *, loaded: bool = False) -> Iterator[str]:
    """The modules that a file names in its imports, wherever in it."""
    for node in loading(path) if loaded else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "peers", f"{path} imports relatively"
            yield str(node.module)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_names_no_framework_but_its_own(package: str) -> None:
    files = [path for one, path in SOURCES if one == package]
    assert files
    for path in files:
        foreign = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {package}
        assert foreign <= ALLOWED[package], path
        assert not foreign & FILES or path.parent.name in ("formats", "multirnn_onnxruntime"), path


KNOWN = {  # backends → multirnn ← benchmarks, peers and scripts included
    "multirnn": {"multirnn"},
    **{f"backends/{name}": {"multirnn", name} for name, folder in FOLDERS.items() if folder == "backends"},
    "benchmarks": {"multirnn", "multirnn_bench"},
}


@pytest.mark.parametrize("room", KNOWN)
def test_backends_and_benchmarks_know_multirnn_and_nothing_knows_them(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.partition(".")[0] for name in imports(path)} & set(FOLDERS)
        assert ours <= KNOWN[room], path


def test_only_the_command_line_names_the_benchmark() -> None:
    """It finds the two commands by the name of their package."""
    named = [path for path in (ROOT / "multirnn").rglob("*.py") if "multirnn_bench" in path.read_text()]
    assert named == [ROOT / "multirnn" / "cli" / "__init__.py"]


@pytest.mark.parametrize("package", FOLDERS)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    """Not even inside a function."""
    folder = ROOT / FOLDERS[package]
    files = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for one, path in SOURCES
        if one == package
    }
    left = {name: set(needed(path, files)) - {name} for name, path in files.items()}
    while done := [name for name, needs in left.items() if not needs & set(left)]:
        for name in done:
            del left[name]
    assert not left, f"in a cycle, or above one: {left}"


def needed(path: Path, modules: Container[str]) -> Iterator[str]:
    """Those of some modules that a file imports, by their own names where it takes them out of a package."""
    for node in loading(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else str(node.module) for name in names)


def test_modules_and_packages_are_built_on_few_levels() -> None:
    """The longest chain of imports between the files and folders of `multirnn`, those inside functions included."""
    sources = {
        path: path.relative_to(ROOT / "multirnn").parts[0].removesuffix(".py") for _, path in SOURCES if _ == "multirnn"
    }
    needs: dict[str, set[str]] = {own: set() for own in sources.values() if not own.startswith("__")}
    for path, own in sources.items():
        if own in needs:
            found = {name.split(".")[1] for name in imports(path, loaded=True) if name.startswith("multirnn.")}
            assert own not in found or (ROOT / "multirnn" / own).is_dir(), f"{path} imports itself"
            needs[own] |= found - {own}
    levels: list[list[str]] = []
    while done := [own for own in needs if needs[own] <= {name for level in levels for name in level}]:
        levels.append(done)
        for own in done:
            del needs[own]
    assert not needs, f"in a cycle, or above one: {needs}"
    assert len(levels) <= 11, levels


def test_a_file_is_one_idea() -> None:
    """So no file of Python is long."""
    folders = [ROOT / name for name in ("multirnn", "backends", "benchmarks", "docs", "examples", "tests")]
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in folders
        for path in folder.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) >= 450
    }
    assert not long


SAME_IN_TWO_FRAMEWORKS = {"FastGRU", "FastLSTM", "FastRNN"}  # fast forms of classes that PyTorch and Keras name alike


def test_no_two_public_classes_share_a_name() -> None:
    found: dict[str, list[Path]] = {}
    for _, path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SAME_IN_TWO_FRAMEWORKS} == {}


# --- In the interpreter --------------------------------------------------------------------------------------------------------

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "flax", "onnx", "matplotlib", "pandas", "scipy")
REPORT = f"""
import json, sys
loaded = sorted(set(sys.modules) & {{*{FRAMEWORKS!r}, "rich", "click"}})
backends = sorted(name for name in sys.modules if name.startswith("multirnn_") and "." not in name)
print("\\n" + json.dumps([loaded, backends]))
"""


def after(code: str) -> tuple[list[str], list[str], str]:
    """The frameworks and the backends that are loaded after a program has run, and all that it said."""
    # Where there is a GPU, or a framework that misses one, frameworks say so: not ours to test.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    said, _, report = done.stdout.removesuffix("\n").rpartition("\n")
    loaded, backends = json.loads(report)
    return loaded, backends, said.strip("\n") + done.stderr


DESCRIPTION = """
import multirnn as mr
mr.backends()
spec = mr.RecurrentSpec.from_json(mr.RecurrentSpec("gru", 5, 4).to_json())
weights = mr.fold_biases(mr.initialise(spec))
mr.from_arrays(mr.to_arrays(mr.split_biases(weights), convention="keras"), convention="keras")
"""


def test_the_description_loads_no_framework_and_says_nothing() -> None:
    assert after(DESCRIPTION) == ([], [], "")


@pytest.mark.parametrize("first", ["", "import multirnn.registry", "import multirnn.comparison", "mr.RecurrentSpec"])
def test_names_and_files_are_found_in_any_order(first: str) -> None:
    program = f"""
import sys
import multirnn as mr
assert "numpy" not in sys.modules
{first}
from multirnn import *
from multirnn import registry
import multirnn.comparison as c
assert mr.backend is backend is registry.backend and mr.compare is compare is c.compare
assert c.TOLERANCE
assert set(mr.__all__) <= set(dir(mr))
"""
    assert after(program) == ([], [], "")


def test_no_public_name_is_that_of_a_file() -> None:
    """Or importing the file would hide it."""
    files = {path.relative_to(ROOT / "multirnn").parts[0].removesuffix(".py") for _, path in SOURCES if _ == "multirnn"}
    assert not files & set(mr.__all__)


def test_type_checkers_read_the_names_that_there_are() -> None:
    tree = ast.parse(Path(mr.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        f"{node.module}.{alias.name}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert read == {f"{module}.{name}" for name, module in vars(mr)["_HOME"].items()}
    assert len(mr.__all__) <= 40


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'multirnn' has no attribute 'bild'"):
        mr.bild  # type: ignore[attr-defined]  # noqa: B018


USE = """
import numpy as np
import multirnn as mr
layer = mr.build(mr.RecurrentSpec("lstm", 5, 4), {0!r})
layer(np.ones((2, 3, 5), "float32"))
layer.weights()
"""


@pytest.mark.parametrize(
    ("backend", "needed", "loaded_by_them"),
    [
        ("numpy", set(), set()),
        ("torch", {"torch"}, set()),
        ("jax", {"jax"}, set()),
        # `import tensorflow` and `import keras` load these themselves, where they are installed.
        ("keras", {"tensorflow", "keras"}, {"jax", "scipy", "matplotlib", "rich"}),
    ],
)
def test_a_backend_loads_no_other_framework_and_is_quiet(
    backend: str, needed: set[str], loaded_by_them: set[str]
) -> None:
    if not all(map(find_spec, needed)):
        pytest.skip(f"{' or '.join(sorted(needed))} is not installed")
    loaded, backends, said = after(USE.format(backend))
    assert needed <= set(loaded) <= needed | loaded_by_them
    assert backends == [f"multirnn_{backend}"]
    assert not re.search(r"^(I|W)\d{4} |^WARNING|Warning:", said, re.MULTILINE), said  # errors are let through
    if backend != "keras":
        assert said == ""
