"""PyTorch's layers without their redundant bias.

PyTorch adds two biases in every gate, `bias_ih` and `bias_hh`, as cuDNN does. Training both is training another model:
each gets the whole gradient, so that a step of SGD moves their sum twice as far.

In a simple RNN and an LSTM all of `bias_hh` is redundant. It becomes a constant zero, a buffer that is not saved, in
the parameter's place, and the module stays the `torch.nn.RNN` or `LSTM` that it is.

In a GRU the candidate's part of `bias_hh` is not redundant: the reset gate multiplies it. `CandidateBiasGRU` has that
part for a parameter.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from multirnn_torch.conversions import KeptWhole

__all__ = ["CandidateBiasGRU", "drop_recurrent_bias"]


def drop_recurrent_bias(native: nn.RNNBase) -> None:
    """Put a constant zero in the place of every `bias_hh` of an `nn.RNN` or `nn.LSTM`."""
    for name in _recurrent_biases(native):
        zero = torch.zeros_like(getattr(native, name))
        delattr(native, name)
        native.register_buffer(name, zero, persistent=False)
    native._init_flat_weights()  # the list of weights that PyTorch hands to its kernels still had the parameters


class CandidateBiasGRU(KeptWhole, nn.GRU):
    """A `torch.nn.GRU` whose recurrent bias is the candidate's alone, `bias_hn_l{k}`, in place of `bias_hh_l{k}`.

    The parameter has the shape `(hidden_size,)`. PyTorch's own kernel is given zeros for the reset and update gate and
    then this parameter, so the gradient flows into it.

    On CUDA the assembled bias lies outside of the one block of memory in which cuDNN wants all weights, so PyTorch
    copies them into one at every call, and says so in a warning. `torch.nn.GRU` has no such copy.

    Args:
        args, kwargs: as of `torch.nn.GRU`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _recurrent_biases(self):
            candidate = getattr(self, name).detach()[-self.hidden_size :].clone()
            delattr(self, name)
            self.register_parameter(_candidate(name), nn.Parameter(candidate))
        self._all_weights = [[_candidate(name) for name in names] for names in self._all_weights]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As of `torch.nn.GRU`.

        Raises:
            InvalidCall: `torch.fx` traces it.
        """
        self._refuse_proxy(input)
        self._update_flat_weights()
        # As a torch.nn.GRU of the same attributes, and with the whole of its biases in the list that it computes with.
        # That list is not self._flat_weights, which whatever replaces a weight writes to.
        whole: Any = nn.GRU.__new__(nn.GRU)
        weights = zip(self._flat_weights_names, self._flat_weights, strict=True)
        padded = [self._whole(weight) if name.startswith("bias_hn") else weight for name, weight in weights]
        vars(whole).update(vars(self), _flat_weights=padded, _flat_weights_names=[], _flat_weight_refs=[])
        return nn.GRU.forward(whole, input, hx)

    def flatten_parameters(self) -> None:
        """Nothing: cuDNN's block of memory has the place of a whole bias, which is not there before a call."""

    def _whole(self, candidate: Any) -> Any:
        return functional.pad(candidate, (2 * self.hidden_size, 0))


def _recurrent_biases(native: nn.RNNBase) -> list[str]:
    return [name for name, _ in native.named_parameters(recurse=False) if name.startswith("bias_hh")]


def _candidate(name: str) -> str:
    return name.replace("bias_hh", "bias_hn")
