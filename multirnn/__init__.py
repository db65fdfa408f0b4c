"""One description of a recurrent layer stack, realised by NumPy, PyTorch, Keras, JAX and ONNX Runtime, proven the same function.

>>> import multirnn as mr
>>> spec = mr.RecurrentSpec("simple_rnn", input_size=10, hidden_size=3)
>>> spec.parameter_count
42
>>> layer = mr.build(spec, backend="numpy", seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multirnn.public import *  # noqa: F403
    from multirnn.public import __all__ as __all__

__version__ = "0.1.0"


if not TYPE_CHECKING:  # or type checkers take any name for one of them

    def __getattr__(name: str) -> Any:
        """The public name. NumPy is loaded by the first of them, not by `multirnn --help`."""
        if name == "__all__" or not name.startswith("__"):
            public = import_module("multirnn.public")  # `from multirnn import public` asks this function first
            if name in (*public.__all__, "__all__"):
                return getattr(public, name)
        raise AttributeError(f"module 'multirnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for Tab; no submodules and no imports."""
    return sorted(("__doc__", "__version__", *import_module("multirnn.public").__all__))
