"""PyTorch's layers under `torch.compile`, which may unroll all but an LSTM step by step (`allow_rnn`)."""

from multirnn.protocol import Prepared, Work

from ._peer import Peer, modes
from ._torch import module, output, refuses

LONGEST = 25  # steps of an unrolled loop: 10 of a simple RNN take Inductor and the C++ compiler 20 s, 30 take 45


def _refuses(work: Work) -> str | None:
    spec = work.weights.spec
    unrolled = (spec.cell, spec.dtype) != ("lstm", "float32")  # which Inductor leaves to oneDNN in one call
    if unrolled and work.x.shape[1] * spec.num_layers * len(spec.directions) > LONGEST:
        return f"torch.compile unrolls the loop, and more than {LONGEST} steps are compiled for minutes"
    return refuses(work)


def prepare(work: Work, threads: int) -> Prepared:
    """The module, compiled; needs a C++ compiler."""
    import torch

    torch.set_num_threads(threads)
    torch._dynamo.config.allow_rnn = True
    spec = work.weights.spec
    compiled = torch.compile(module(work, batch_first=True))
    x = torch.tensor(work.x)
    zero = torch.zeros(spec.num_layers * len(spec.directions), len(x), spec.hidden_size, dtype=x.dtype)
    run = torch.inference_mode()(lambda state: compiled(x, state))
    return modes(work, run, (zero, zero) if spec.cell == "lstm" else zero, lambda found: output(*found))


CONTENDERS = (
    Peer(
        "torch.compile",
        prepare,
        ("torch",),
        lacks={
            "gradients": "this contender is for inference: a compiled backward pass through so many steps takes minutes",
            "lengths": "torch.compile does not take packed sequences apart",
        },
        also_refuses=_refuses,
    ),
)
