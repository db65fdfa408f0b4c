"""PyTorch's own layers, `torch.nn.RNN`, `LSTM` and `GRU`, run as they are: batch first as users have them, and time first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import multirnn as mr
from multirnn.bench.work import SGD_RATE, Prepared, Work

LAYERS = {"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


@dataclass(frozen=True)
class TorchEager:
    """A module of `torch.nn` with its own autograd and optimiser.

    Args:
        name: of the contender.
        batch_first: as the layout of the module's input and output.
    """

    name: str
    batch_first: bool
    kind: str = "peer"

    def versions(self) -> Mapping[str, str]:
        """The version of PyTorch."""
        return {"torch": version("torch")}

    def refuses(self, work: Work) -> str | None:
        """What PyTorch has no layer for."""
        spec = work.weights.spec
        relu = spec.cell == "simple_rnn" and spec.activation == "relu"
        if not (spec.activation == "tanh" or relu) or spec.recurrent_activation != "sigmoid" or not spec.reset_after:
            return f"torch.nn.{LAYERS[spec.cell]} has other activations, or another reset gate"
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
        module = self._module(work)

        def placed(array: Any) -> Any:
            return torch.tensor(array if self.batch_first else array.swapaxes(0, 1).copy())

        def canonical(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
            return mr.from_arrays(arrays, convention="torch", cell=spec.cell, reset_after=True).arrays

        def output(found: Any) -> mr.Output:
            sequence, state = found
            parts = state if isinstance(state, tuple) else (state,)
            array = sequence.detach().numpy()
            return mr.Output(array if self.batch_first else array.swapaxes(0, 1), mr.State(*(p.numpy() for p in parts)))

        def run(x: Any, state: Any = None) -> Any:
            if work.lengths is None:
                return module(x, state)
            packed = pack_padded_sequence(x, torch.tensor(work.lengths), self.batch_first, enforce_sorted=False)
            sequence, state = module(packed, state)
            return pad_packed_sequence(sequence, self.batch_first, total_length=time)[0], state

        x = placed(work.x)
        # A single bias is one of PyTorch's two, the other is a zero that nobody trains.
        trained = {k: p for k, p in module.named_parameters() if spec.bias == "double" or not k.startswith("bias_hh")}

        if work.mode == "inference":
            return _forward(torch, lambda: run(x), output)
        if work.mode == "streaming":
            carried: list[Any] = [None]

            def step() -> Any:
                found = run(x, carried[0])
                carried[0] = found[1]
                return found

            return _forward(torch, step, output)
        if work.mode == "gradients":
            assert work.cotangent is not None
            sequence, state = work.cotangent
            cotangents = [placed(sequence), *(torch.tensor(part) for part in state if part is not None)]
            x.requires_grad_()

            def differentiate() -> Any:
                y, end = run(x)
                outputs = [y, *(end if isinstance(end, tuple) else (end,))]
                return torch.autograd.grad(outputs, [x, *trained.values()], cotangents)

            def gradients() -> mr.Gradients:
                dx, *rest = differentiate()
                array = dx.numpy() if self.batch_first else dx.numpy().swapaxes(0, 1)
                return mr.Gradients(canonical(dict(zip(trained, rest, strict=True))), array, None)  # type: ignore[arg-type]

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

    def _module(self, work: Work) -> Any:
        import torch

        spec = work.weights.spec
        module = getattr(torch.nn, LAYERS[spec.cell])(
            spec.input_size,
            spec.hidden_size,
            spec.num_layers,
            bias=spec.bias != "none",
            batch_first=self.batch_first,
            bidirectional=spec.bidirectional,
            dtype=getattr(torch, spec.dtype),
            **({"nonlinearity": spec.activation} if spec.cell == "simple_rnn" else {}),
        )
        weights = mr.split_biases(work.weights) if spec.bias == "single" else work.weights
        arrays = mr.to_arrays(weights, convention="torch")
        module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(spec.bias == "double" or not name.startswith("bias_hh"))
        return module


def _forward(torch: Any, run: Callable[[], Any], output: Callable[[Any], mr.Output]) -> Prepared:
    def call() -> Any:
        with torch.inference_mode():
            return run()

    return Prepared(call, lambda: output(call()))


CONTENDERS = (TorchEager("torch.nn", batch_first=True), TorchEager("torch.nn, time first", batch_first=False))
