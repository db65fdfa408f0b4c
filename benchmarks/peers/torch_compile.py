"""PyTorch's layers under `torch.compile`, which takes all but an LSTM apart step by step once it may (`allow_rnn`)."""

from typing import Any

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._torch import TorchPeer, forward, module, parts, refuses

LONGEST = 25  # steps of an unrolled loop: 10 of a simple RNN take Inductor and the C++ compiler 20 s, 30 take 45


class TorchCompile(TorchPeer):
    """A module of `torch.nn`, batch first, compiled by Inductor."""

    name = "torch.compile"

    def refuses(self, work: Work) -> str | None:
        """What PyTorch has no layer for, and what would be compiled for minutes."""
        spec = work.weights.spec
        if reason := refuses(spec):
            return reason
        if work.mode not in ("inference", "streaming"):
            return "this contender is for inference: what is compiled of a backward pass through so many steps takes minutes"
        if work.lengths is not None:
            return "torch.compile does not take packed sequences apart"
        unrolled = (spec.cell, spec.dtype) != ("lstm", "float32")  # which Inductor leaves to oneDNN in one call
        if unrolled and work.x.shape[1] * spec.num_layers * len(spec.directions) > LONGEST:
            return f"torch.compile unrolls the loop, and more than {LONGEST} steps are compiled for minutes"
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        """The module, compiled; a compiler for C++ has to be there."""
        import torch

        torch.set_num_threads(threads)
        torch._dynamo.config.allow_rnn = True
        spec = work.weights.spec
        compiled = torch.compile(module(work, batch_first=True))
        x = torch.tensor(work.x)
        zero = torch.zeros(spec.num_layers * len(spec.directions), len(x), spec.hidden_size, dtype=x.dtype)
        state = (zero, zero) if spec.cell == "lstm" else zero

        def output(found: Any) -> mr.Output:
            sequence, end = found
            return mr.Output(sequence.numpy(), mr.State(*(part.numpy() for part in parts(end))))

        return forward(work, lambda state: compiled(x, state), state, output)


CONTENDERS = (TorchCompile(),)
