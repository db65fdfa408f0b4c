"""The PyTorch backend: `torch.nn.RNN`, `LSTM` and `GRU` themselves, or made fast."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from multirnn import RecurrentSpec, Weights, accept
from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_torch import adoption, fast, layer, reading, training
from multirnn_torch.adoption import AdoptedModule
from multirnn_torch.layer import TorchLayer
from multirnn_torch.single_bias import CandidateBiasGRU

if TYPE_CHECKING:
    from multirnn.protocol import Prepared, Work

__all__ = ["BACKEND", "CandidateBiasGRU", "TorchLayer", "build"]


class TorchBackend:
    """Realises what PyTorch has layers for: see `refuses`."""

    name = "torch"
    differentiable = True
    implementations = ("native", "fast", "frozen")

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """Refuses the GRU that resets before the recurrent product, and activations that PyTorch's layers have not."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None, implementation: str = "native") -> TorchLayer:
        """Realise `weights.spec` with these weights, on a device as `torch.device` names it; see `build`."""
        accept(self, weights.spec)
        if implementation == "native":
            return layer.build(weights, device)
        return fast.build(weights, device, frozen=implementation == "frozen")

    def read(self, native: Any) -> Weights:
        """The spec and the weights of an `nn.RNN`, `LSTM`, `GRU`, or of the cell of one; see `reading.read`."""
        return reading.read(native)

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool = False) -> AdoptedModule:
        """Run a module of the user's own as it is; see `adoption.adopt`."""
        return adoption.adopt(native, spec, compiled=compiled)

    def train(self, layer: TorchLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
        """Train a layer in place, by `torch.optim`; see `training.train`."""
        return training.train(layer, batch, optimiser, steps)

    def prepare(self, layer: TorchLayer, work: "Work", threads: int) -> "Prepared":
        """See `multirnn.protocol.Timed`."""
        from multirnn_torch import bench  # here, since only benchmarks need it

        return bench.prepare(layer, work, threads)

    def default_epsilon(self) -> float:
        """Of `torch.optim.Adam`."""
        return training.default_epsilon()

    def versions(self) -> Mapping[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return ("cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count())))


BACKEND = TorchBackend()


def build(weights: Weights, *, device: str | None = None, implementation: str = "native") -> TorchLayer:
    """Realise `weights.spec` in PyTorch.

    Args:
        weights: copied into the module's parameters.
        device: as `torch.device` names it ("cpu", "cuda", "cuda:1", "mps"); PyTorch's default unless given, or "cpu" where
            that is "meta".
        implementation: "native", PyTorch's own layer; or "fast", a subclass of it that is made fast on the CPU;
            or "frozen", which is fast with its `freeze()` called.

    Raises:
        Unsupported: PyTorch has no layer for the spec; the sentence has the reason.
        InvalidCall: PyTorch has no such device here, or not for the spec's dtype.
    """
    return BACKEND.build(weights, device=device, implementation=implementation)
