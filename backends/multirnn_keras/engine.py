"""The engine that Keras runs on: which one it is, loading it, and its devices.

Keras chooses its engine when it is imported and keeps it. `ENGINE` is that choice. Its package is imported here, before
Keras, so that an engine that is not installed is named as what is missing.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from multirnn import InvalidCall

__all__ = ["ENGINE", "ENGINES", "chosen", "device_named", "devices", "float64_refused", "on_device", "versions"]

ENGINES = ("tensorflow", "jax", "torch")


def chosen() -> str:
    """The engine that Keras has chosen, or will choose: the order of `keras/src/backend/config.py`."""
    if loaded := sys.modules.get("keras"):
        return str(loaded.config.backend())
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        return str(json.loads((folder / "keras.json").read_text()).get("backend", "tensorflow"))
    except (OSError, ValueError):
        return "tensorflow"


_CHATTER = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog).*\n", re.MULTILINE)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Load TensorFlow without what it tells about itself; its warnings and errors are passed on once it is loaded.

    TensorFlow 2.21 writes to file descriptor 2 before it reads TF_CPP_MIN_LOG_LEVEL, so that the level alone does not
    help. Who has set that variable to 0 asks for the messages, and gets them. (JAX sets it to 1, "no information".)
    """
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    if "tensorflow" in sys.modules or level == "0":
        yield
        return
    try:
        stderr = os.dup(2)
    except OSError:  # closed, as in a daemon: nothing to keep clean
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            yield
        finally:
            if level is None:
                del os.environ["TF_CPP_MIN_LOG_LEVEL"]
            else:
                os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
            os.dup2(stderr, 2)
            os.close(stderr)
            messages.seek(0)
            os.write(2, _CHATTER.sub(b"", messages.read()))


def _load(engine: str) -> Any:
    if engine == "tensorflow":
        with _without_chatter():
            import tensorflow as tf
        return tf
    if engine == "jax":
        import jax

        return jax
    if engine == "torch":
        import torch

        return torch
    return None


ENGINE = chosen()
_LOADED = _load(ENGINE)
import keras  # noqa: E402


def versions() -> dict[str, str]:
    """The versions of Keras and of its engine."""
    engine = {ENGINE: str(_LOADED.__version__)} if _LOADED else {}
    return {"keras": str(keras.__version__), **engine}


def float64_refused() -> str | None:
    """None where Keras computes in float64 on its engine, else why not."""
    if ENGINE == "tensorflow":
        return None
    # keras/src/backend/common/dtypes.py: there the common dtype of float64 and float64 is float32.
    return (
        f"on its {ENGINE} engine Keras computes in float32, also in layers of float64; "
        f"use the backend {ENGINE!r} itself, or Keras with KERAS_BACKEND=tensorflow"
    )


def devices() -> tuple[str, ...]:
    """The engine's devices, as `keras.device` names them."""
    return tuple(f"{kind}:{number}" for kind in ("cpu", "gpu", "tpu") for number in range(_count(kind)))


def device_named(name: str | None) -> str | None:
    """The device of this name, with its number; None, for the engine's default, where there is no name.

    Args:
        name: as `keras.device` takes it, "cpu", "gpu" or "gpu:1"; "cuda" means "gpu".

    Raises:
        InvalidCall: the engine has no such device here.
    """
    if name is None:
        return None
    kind, _, number = name.lower().replace("cuda", "gpu").partition(":")
    device = f"{kind}:{number or 0}"
    if device not in devices():
        raise InvalidCall(f"Keras ({ENGINE}) has no device {name!r} here; it has {', '.join(devices())}")
    return "cpu" if device == "cpu:0" else device  # PyTorch takes cpu:0 for another device than the cpu of its tensors


@contextmanager
def on_device(device: str | None) -> Iterator[None]:
    """Where variables are made and functions run; not in the precision of a user's layer whose call may be around."""
    from keras.src.backend import AutocastScope  # there is no public name for it

    with AutocastScope(None), nullcontext() if device is None else keras.device(device):
        yield


def _count(kind: str) -> int:
    """How many devices of a kind the engine has."""
    if ENGINE == "tensorflow":
        return len(_LOADED.config.list_physical_devices(kind.upper()))
    if ENGINE == "jax":
        return len(_LOADED.devices("cpu")) if kind == "cpu" else sum(d.platform == kind for d in _LOADED.devices())
    return {"cpu": 1, "gpu": int(_LOADED.cuda.device_count())}.get(kind, 0)
