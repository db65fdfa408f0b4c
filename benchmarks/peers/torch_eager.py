"""PyTorch's own layers, `torch.nn.RNN`, `LSTM` and `GRU`, in the layout that they have unless told otherwise, time first.

Batch first takes the same time: 1.001 of it in the geometric mean of 80 rows of the standard table.
"""

from collections.abc import Mapping
from typing import Any

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work

from ._torch import TorchPeer, forward, module, parts, refuses


class TorchEager(TorchPeer):
    """A module of `torch.nn` with its own autograd and optimiser."""

    name = "torch.nn"

    def refuses(self, work: Work) -> str | None:
        """What PyTorch has no layer for."""
        spec = work.weights.spec
        if reason := refuses(spec):
            return reason
        if spec.cell == "gru" and spec.bias == "single":
            return "torch.nn.GRU has all of its biases or none"
        if work.lengths is not None and not work.lengths.all():
            return "pack_padded_sequence takes no rows of length 0"
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        """The module, called, differentiated or trained."""
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        torch.set_num_threads(threads)
        spec, time = work.weights.spec, work.x.shape[1]
        layer = module(work, batch_first=False)

        def placed(array: Any) -> Any:
            return torch.tensor(array.swapaxes(0, 1).copy())

        def canonical(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
            return mr.from_arrays(arrays, convention="torch", cell=spec.cell, reset_after=True).arrays

        def output(found: Any) -> mr.Output:
            sequence, state = found
            states = mr.State(*(part.numpy() for part in parts(state)))
            return mr.Output(sequence.detach().numpy().swapaxes(0, 1), states)

        def run(x: Any, state: Any = None) -> Any:
            if work.lengths is None:
                return layer(x, state)
            packed = pack_padded_sequence(x, torch.tensor(work.lengths), enforce_sorted=False)
            sequence, state = layer(packed, state)
            return pad_packed_sequence(sequence, total_length=time)[0], state

        x = placed(work.x)
        trained = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}

        if work.mode in ("inference", "streaming"):
            return forward(work, lambda state: run(x, state), None, output)
        if work.mode == "gradients":
            assert work.cotangent is not None
            sequence, state = work.cotangent
            cotangents = [placed(sequence), *(torch.tensor(part) for part in state if part is not None)]
            x.requires_grad_()

            def differentiate() -> Any:
                y, end = run(x)
                return torch.autograd.grad([y, *parts(end)], [x, *trained.values()], cotangents)

            def gradients() -> mr.Gradients:
                dx, *rest = differentiate()
                named = canonical(dict(zip(trained, rest, strict=True)))
                return mr.Gradients(named, dx.numpy().swapaxes(0, 1), None)  # type: ignore[arg-type]

            return Prepared(differentiate, gradients)
        target = placed(work.target)
        optimiser = torch.optim.SGD(trained.values(), lr=SGD_RATE)

        def train() -> None:
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(run(x)[0], target).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        def trained_once() -> Mapping[str, Any]:
            train()
            return canonical(trained)

        return Prepared(train, trained_once)


CONTENDERS = (TorchEager(),)
