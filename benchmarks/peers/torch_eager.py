"""PyTorch's own layers, `torch.nn.RNN`, `LSTM` and `GRU`, in their default layout, time first.

Batch first takes the same time: 1.001 of it in the geometric mean of 80 rows of the standard table.
"""

from collections.abc import Callable, Mapping
from typing import Any

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work

from ._peer import Peer, modes
from ._torch import module, output, parts, refuses


def _refuses(work: Work) -> str | None:
    if (work.weights.spec.cell, work.weights.spec.bias) == ("gru", "single"):
        return "torch.nn.GRU has all of its biases or none"
    return refuses(work)


def prepare(work: Work, threads: int) -> Prepared:
    """The module, called, differentiated or trained."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(threads)
    spec, time = work.weights.spec, work.x.shape[1]
    layer = module(work, batch_first=False)
    trained = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}

    def placed(array: Any) -> Any:
        return torch.tensor(array.swapaxes(0, 1).copy())

    x = placed(work.x)

    def run(state: Any = None) -> Any:
        if work.lengths is None:
            return layer(x, state)
        packed = pack_padded_sequence(x, torch.tensor(work.lengths), enforce_sorted=False)
        sequence, state = layer(packed, state)
        return pad_packed_sequence(sequence, total_length=time)[0], state

    def canonical(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        return mr.from_arrays(arrays, convention="torch", cell=spec.cell, reset_after=True).arrays

    def gradients(cotangent: mr.Output) -> Callable[[], Any]:
        sequence, state = cotangent
        cotangents = [placed(sequence), *(torch.tensor(part) for part in state if part is not None)]
        x.requires_grad_()

        def differentiate() -> Any:
            y, end = run()
            dx, *rest = torch.autograd.grad([y, *parts(end)], [x, *trained.values()], cotangents)
            return dict(zip(trained, rest, strict=True)), dx.swapaxes(0, 1)

        return differentiate

    def training(array: Any) -> Callable[[], Any]:
        target, optimiser = placed(array), torch.optim.SGD(trained.values(), lr=SGD_RATE)

        def train() -> Any:
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(run()[0], target).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return trained

        return train

    def result(found: Any) -> mr.Output:
        return output(found[0].swapaxes(0, 1), found[1])

    return modes(work, torch.inference_mode()(run), None, result, canonical, gradients, training)


CONTENDERS = (
    Peer(
        "torch.nn",
        prepare,
        ("torch",),
        lacks={"empty rows": "pack_padded_sequence takes no rows of length 0"},
        also_refuses=_refuses,
    ),
)
