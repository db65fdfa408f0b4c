"""The PyTorch backend: `torch.nn.RNN`, `LSTM` and `GRU` themselves, or made fast."""

from collections.abc import Mapping

import torch

from multirnn import Weights
from multirnn.layer import Implementation
from multirnn.protocol import Abilities, Prepared, Work, accept
from multirnn_torch import adoption, fast, layer, reading, replacement, training
from multirnn_torch.layer import TorchLayer
from multirnn_torch.single_bias import CandidateBiasGRU

__all__ = ["BACKEND", "CandidateBiasGRU", "TorchLayer", "build"]


class TorchBackend(Abilities):
    """Refuses the GRU that resets before the recurrent product, and activations that PyTorch's layers lack."""

    name = "torch"
    differentiable = True
    implementations = ("native", "fast", "frozen")
    refuses = staticmethod(layer.refuses)
    read = staticmethod(reading.read)
    adopt = staticmethod(adoption.adopt)
    replace_layers = staticmethod(replacement.replace_layers)
    train = staticmethod(training.train)
    default_epsilon = staticmethod(training.default_epsilon)

    def build(
        self, weights: Weights, *, device: str | None = None, implementation: Implementation = "native"
    ) -> TorchLayer:
        """A layer of `weights.spec` in PyTorch.

        Args:
            weights: copied into the module's parameters.
            device: as `torch.device` names it ("cpu", "cuda", "cuda:1", "mps"); defaults to PyTorch's, or "cpu" where that
                is "meta".
            implementation: "native", PyTorch's own layer; "fast", a subclass of it that is made fast on the CPU; or "frozen",
                which is fast with its `freeze()` called.

        Raises:
            Unsupported: PyTorch has no layer for the spec; the sentence has the reason.
            InvalidCall: PyTorch has no such device here, or not for the spec's dtype; or there is no such implementation.
        """
        accept(self, weights.spec, implementation)
        if implementation == "native":
            return layer.build(weights, device)
        return fast.build(weights, device, frozen=implementation == "frozen")

    def prepare(self, layer: TorchLayer, work: Work, threads: int) -> Prepared:
        """See `multirnn.protocol.Timed`."""
        from multirnn_torch.bench import prepare  # only benchmarks need it

        return prepare(layer, work, threads)

    def versions(self) -> Mapping[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}

    def devices(self) -> tuple[str, ...]:
        """The CPU, and every GPU of CUDA."""
        return ("cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count())))


BACKEND = TorchBackend()
build = BACKEND.build
