"""A project outside the checkout that installs the wheel: the plugin, its fixture and `assert_layers_agree` are there."""

import os
import re
import site
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import multirnn as mr

ROOT = Path(mr.__file__).parent.parent


def done(*command: str | Path, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program says that has to succeed."""
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has multirnn from its wheel, and all else from here. The checkout is not on its path.

    The folder of packages is added by a .pth file: those that lie in it, as that of the editable install, are not read.
    """
    # Not by `find_spec`: to look for pip makes setuptools leave distutils alone, which torch.compile then cannot import.
    installed = {distribution.name for distribution in distributions()}
    missing = [name for name in ("build", "hatchling", "pip", "torch", "keras", "tensorflow") if name not in installed]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    folder = tmp_path_factory.mktemp("installed")
    done(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (wheel,) = folder.glob("*.whl")
    done(sys.executable, "-m", "venv", "--without-pip", "venv", folder=folder)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    done(*pip, "--no-index", "--no-deps", wheel, folder=folder)
    packages = done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    (Path(packages) / "here.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


@pytest.fixture(scope="module")
def output(python: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says in the project."""
    project = tmp_path_factory.mktemp("project") / "own"
    copytree(ROOT / "tests" / "plain_project", project, ignore=ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}
    command = [python, "-m", "pytest", "-v", "-ra", "--strict-markers", "--rnn-backends=numpy,torch", "agreements.py"]
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout + ran.stderr
    return ran.stdout


def test_the_plugin_comes_with_the_wheel(output: str) -> None:
    assert re.search(rf"^plugins: .*multirnn-{re.escape(mr.__version__)}", output, re.MULTILINE)
    assert "test_multirnn_is_the_installed_one PASSED" in output
    assert str(ROOT) not in output


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_layers_written_by_hand_agree(output: str, backend: str) -> None:
    assert f"test_own_gru[{backend}] PASSED" in output
    assert f"test_own_lstm[{backend}] PASSED" in output


def test_a_wrong_order_of_gates_fails_and_is_told(output: str) -> None:
    for backend in ("numpy", "torch"):
        assert f"test_swapped_gru[{backend}] FAILED" in output
        assert re.search(rf"^ *\S+ eps  agreements.py::test_swapped_gru\[{backend}\]: ", output, re.MULTILINE)
    failure = output[output.index("= FAILURES =") : output.index("= smallest tolerance that would pass =")]
    assert "site-packages" not in failure, "our own frames are shown"
    for word in ("layer 0", "forward", "step 0", "smallest tolerance that would pass is"):
        assert word in failure


def test_what_a_backend_refuses_is_skipped_with_its_reason(output: str) -> None:
    assert "test_a_form_that_not_every_backend_has[numpy] PASSED" in output
    assert "test_a_form_that_not_every_backend_has[torch] SKIPPED" in output
    assert re.search(r"^SKIPPED \[1\] agreements.py:\d+: backend 'torch' refuses .*reset gate", output, re.MULTILINE)
    assert re.search(r"^=+ 2 failed, 6 passed, 1 skipped", output, re.MULTILINE)
