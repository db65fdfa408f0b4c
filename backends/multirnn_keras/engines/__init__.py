"""The engine that Keras runs on: `ENGINE`, its name, and `engine`, its implementation of `interface.Engine`.

Keras chooses its engine when it is imported and keeps it. The engine's package is imported here, before Keras, so that the
error for an engine that is not installed names it. The other engines are not loaded.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from multirnn import InvalidCall

__all__ = ["ENGINE", "ENGINES", "chosen", "device_named", "devices", "dtype_refuses", "engine", "on_device", "refuses"]

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
    """Drops information that TensorFlow logs while it is loaded; its warnings and errors are passed on afterwards.

    TensorFlow 2.21 writes to file descriptor 2 before it reads TF_CPP_MIN_LOG_LEVEL, so that the level alone does not
    help. A user who has set that variable to 0 wants the messages, and gets them. (JAX sets it to 1, "no information".)
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


ENGINE = chosen()
if ENGINE in ENGINES:
    with _without_chatter() if ENGINE == "tensorflow" else nullcontext():
        __import__(ENGINE)  # not by importlib, which would stand in the traceback as the importer of what is missing
import keras  # noqa: E402

from multirnn_keras.engines.interface import Engine  # noqa: E402

# On other engines Keras alone is loaded, and `refuses` refuses every spec.
engine: Engine = import_module(f"{__name__}.{ENGINE}").engine if ENGINE in ENGINES else Engine()


def versions() -> dict[str, str]:
    """The versions of Keras and of its engine."""
    return {"keras": str(keras.__version__)} | ({ENGINE: sys.modules[ENGINE].__version__} if ENGINE in ENGINES else {})


def refuses(dtype: str) -> str | None:
    """None where the engine differentiates and computes in this dtype, else the reason why not."""
    if ENGINE not in ENGINES:
        return (
            f"Keras runs on {ENGINE!r} here, which has no gradients; "
            f"set KERAS_BACKEND to one of {', '.join(ENGINES)} before it is imported"
        )
    return dtype_refuses(dtype)


def dtype_refuses(dtype: str) -> str | None:
    """None where Keras computes in this dtype on its engine, else the reason why not."""
    if dtype != "float64" or ENGINE == "tensorflow":
        return None
    # keras/src/backend/common/dtypes.py: there the common dtype of float64 and float64 is float32.
    return (
        f"on its {ENGINE} engine Keras computes in float32, also in layers of float64; "
        f"use the backend {ENGINE!r} itself, or Keras with KERAS_BACKEND=tensorflow"
    )


def devices() -> tuple[str, ...]:
    """The engine's devices, as `keras.device` names them."""
    return tuple(f"{kind}:{number}" for kind in ("cpu", "gpu", "tpu") for number in range(engine.device_count(kind)))


def device_named(name: str | None) -> str | None:
    """The name of a device with its number, from "cpu", "gpu", "gpu:1" or "cuda"; None is the engine's default.

    `InvalidCall` if the engine has no such device here.
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
    """Creates variables and runs functions on a device, outside the autocast of any user's layer whose call is around."""
    from keras.src.backend import AutocastScope  # it has no public name

    scope: Any = nullcontext() if device is None else keras.device(device)
    with AutocastScope(None), scope:
        yield
