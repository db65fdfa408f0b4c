"""PyTorch's layers without their redundant bias.

PyTorch adds two biases in every gate, `bias_ih` and `bias_hh`, as cuDNN does. To train both is to train another model:
each gets the whole gradient, so a step of SGD moves their sum twice as far.

In a simple RNN and an LSTM all of `bias_hh` is redundant. A constant zero takes its place, a buffer that is not saved, and
the module stays a `torch.nn.RNN` or `LSTM`. In a GRU the candidate's part of `bias_hh` is not redundant, since the reset
gate multiplies it; `CandidateBiasGRU` has that part as a parameter.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from multirnn_torch.conversions import KeptWhole

__all__ = ["CandidateBias", "CandidateBiasGRU", "drop_recurrent_bias"]


def drop_recurrent_bias(native: nn.RNNBase) -> None:
    """Replace every `bias_hh` of an `nn.RNN` or `nn.LSTM` by a constant zero."""
    for name in _recurrent_biases(native):
        zero = torch.zeros_like(getattr(native, name))
        delattr(native, name)
        native.register_buffer(name, zero, persistent=False)
    native._init_flat_weights()  # the list of weights that PyTorch hands to its kernels still had the parameters


class CandidateBias(KeptWhole):
    """What makes of a GRU, whichever class it is of, one whose recurrent bias is the candidate's; see `CandidateBiasGRU`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _recurrent_biases(self):
            candidate = getattr(self, name).detach()[-self.hidden_size :].clone()
            delattr(self, name)
            self.register_parameter(name.replace("bias_hh", "bias_hn"), nn.Parameter(candidate))
        self._all_weights = [[name.replace("bias_hh", "bias_hn") for name in names] for names in self._all_weights]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As for `torch.nn.GRU`. Raises `InvalidCall`: `torch.fx` traces it."""
        self._refuse_proxy(input)
        self._update_flat_weights()
        # A torch.nn.GRU with the same attributes and a list of whole biases. The module's own list has to stay as it is:
        # code that replaces a weight writes into it.
        whole: Any = nn.GRU.__new__(nn.GRU)
        pad = 2 * self.hidden_size, 0
        weights: Any = zip(self._flat_weights_names, self._flat_weights, strict=True)
        padded = [functional.pad(weight, pad) if name.startswith("bias_hn") else weight for name, weight in weights]
        vars(whole).update(vars(self), _flat_weights=padded, _flat_weights_names=[], _flat_weight_refs=[])
        return nn.GRU.forward(whole, input, hx)

    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN's block of memory needs whole biases, which exist only during a call."""


class CandidateBiasGRU(CandidateBias, nn.GRU):
    """A `torch.nn.GRU` whose recurrent bias is the candidate's alone: `bias_hn_l{k}`, in place of `bias_hh_l{k}`.

    The parameter has the shape `(hidden_size,)`. PyTorch's kernel gets zeros for the reset and update gates and then this
    parameter, so the gradient flows into it.

    On CUDA the assembled bias lies outside the one block of memory that cuDNN wants for all weights, so PyTorch copies
    them in every call, with a warning. `torch.nn.GRU` needs no copy.

    Args:
        args, kwargs: as for `torch.nn.GRU`.
    """


def _recurrent_biases(native: nn.RNNBase) -> list[str]:
    return [name for name, _ in native.named_parameters(recurse=False) if name.startswith("bias_hh")]
