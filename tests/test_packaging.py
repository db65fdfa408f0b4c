"""What is shipped: the wheel, which is built from the sdist, and what is in both."""

import re
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

import multirnn as mr

ROOT = Path(mr.__file__).parent.parent
BACKENDS = ("multirnn_jax", "multirnn_keras", "multirnn_numpy", "multirnn_onnxruntime", "multirnn_torch")
PACKAGES = {  # where the source of what the wheel has is, by its place in the wheel
    "multirnn": "multirnn",
    **{name: f"backends/{name}" for name in BACKENDS},
    "multirnn_bench": "benchmarks/multirnn_bench",
    "multirnn_bench/peers": "benchmarks/peers",
}


class Built(NamedTuple):
    wheel: set[str]
    sdist: set[str]
    metadata: Message
    entry_points: ConfigParser


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not (find_spec("build") and find_spec("hatchling")):
        pytest.skip("build or hatchling is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with ZipFile(wheel) as archive:
        about = f"multirnn-{mr.__version__}.dist-info"
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{about}/entry_points.txt").decode())
        metadata = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
        in_wheel = {name for name in archive.namelist() if not name.startswith(about)}
    return Built(in_wheel, in_sdist, metadata, entry_points)


def sources(place: str) -> set[str]:
    """What has to be shipped at a place in the wheel."""
    folder = ROOT / PACKAGES[place]
    return {
        f"{place}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_has_the_seven_packages_and_the_peers_and_nothing_else(built: Built) -> None:
    assert built.wheel == set().union(*map(sources, PACKAGES))


def test_each_package_is_typed_and_the_sample_is_there(built: Built) -> None:
    assert {f"{package}/py.typed" for package in ("multirnn", *BACKENDS, "multirnn_bench")} <= built.wheel
    assert "multirnn/samples/seattle-weather.csv" in built.wheel
    page = (f"templates/page.{kind}" for kind in ("html", "css", "js"))
    assert {f"multirnn_bench/{name}" for name in ("tables/deepbench.csv", *page)} <= built.wheel
    assert "multirnn/kernel/source/recurrence.c" in built.wheel


def test_the_sdist_has_what_builds_and_tests_it(built: Built) -> None:
    assert {"pyproject.toml", "README.md", "LICENSE", "backends/README.md", "tests/test_packaging.py"} <= built.sdist
    assert {"hatch_build.py", "benchmarks/peers/torch_eager.py"} <= built.sdist
    assert {"tests/third_party/pyproject.toml", "backends/multirnn_numpy/__init__.py"} <= built.sdist
    assert {"CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "docs/conventions.md", "docs/errors.png"} <= built.sdist
    rooms = {"multirnn", "backends", "tests", "benchmarks", "docs"}
    assert {name.partition("/")[0] for name in built.sdist if "/" in name} <= rooms
    assert not [name for name in built.sdist if "__pycache__" in name or name.endswith(".pyc")]


def test_the_entry_points(built: Built) -> None:
    ours = {name.removeprefix("multirnn_"): f"{name}:BACKEND" for name in BACKENDS}
    assert {group: dict(built.entry_points[group]) for group in built.entry_points.sections()} == {
        "console_scripts": {"multirnn": "multirnn.cli:main"},
        "pytest11": {"multirnn": "multirnn.pytest_plugin"},
        "multirnn.backends": ours,
        "multirnn.natives": {
            "flax": ours["jax"],
            "jaxlib": ours["jax"],
            "keras": ours["keras"],
            "multirnn_jax": ours["jax"],
            "multirnn_numpy": ours["numpy"],
            "multirnn_onnxruntime": ours["onnxruntime"],
            "onnx": ours["onnxruntime"],
            "onnxruntime": ours["onnxruntime"],
            "torch": ours["torch"],
        },
    }


def test_the_metadata(built: Built) -> None:
    assert (built.metadata["Name"], built.metadata["Version"]) == ("multirnn", mr.__version__)
    assert built.metadata["License-Expression"] == "MIT"
    assert built.metadata["Description-Content-Type"] == "text/markdown"
    required = built.metadata.get_all("Requires-Dist") or []
    names = {line.split(">")[0] for line in required if "extra ==" not in line}
    assert names == {"numpy", "click", "rich"}
    extras = {
        extra: {line.split(">")[0].split(";")[0] for line in required if line.endswith(f"extra == '{extra}'")}
        for extra in built.metadata.get_all("Provides-Extra") or []
    }
    assert extras == {
        "torch": {"torch"},
        "keras": {"keras", "tensorflow"},
        "jax": {"jax"},
        "onnxruntime": {"onnxruntime", "onnx"},
        "export": {"onnxscript"},
        "files": {"h5py", "msgpack", "onnx"},
        "bench": {"threadpoolctl", "jinja2"},
        "plot": {"matplotlib"},
        "testing": {"pytest", "hypothesis"},
        "all": {
            "torch",
            "keras",
            "tensorflow",
            "jax",
            "onnxruntime",
            "onnx",
            "onnxscript",
            "h5py",
            "msgpack",
            "threadpoolctl",
            "jinja2",
        }
        | {"matplotlib"},
    }


def test_the_declared_pythons_are_the_tested_ones(built: Built) -> None:
    prefix = "Programming Language :: Python :: 3."
    classifiers = built.metadata.get_all("Classifier") or []
    declared = {int(name.removeprefix(prefix)) for name in classifiers if re.fullmatch(rf"{prefix}\d+", name)}
    on_others = re.search(r"^for version in (.+); do$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert on_others is not None
    assert declared == {11, *(int(version.removeprefix("3.")) for version in on_others[1].split())}
    assert built.metadata["Requires-Python"] == f">=3.{min(declared)}"


def test_the_version_is_said_once_and_again() -> None:
    from importlib.metadata import version

    assert version("multirnn") == mr.__version__
    assert f"\nversion: {mr.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_citation_has_what_its_format_requires() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "MIT"
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text()
