"""Timing of PyTorch layers, native and fast: the module on tensors, in inference mode where it applies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from multirnn import Gradients, Output, State
from multirnn.protocol import SGD_RATE, Prepared, Work
from multirnn.weights import Array
from multirnn_torch.calls import arrays, tensors
from multirnn_torch.layer import TorchLayer
from multirnn_torch.weights import canonical, named_weights

__all__ = ["prepare"]

CPU = torch.device("cpu")


def prepare(layer: TorchLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`.

    Ragged rows are packed before the clock starts, as PyTorch's own layers take them, and results stay packed.
    """
    torch.set_num_threads(threads)
    prepared = PREPARERS[work.mode](layer, work)
    prepared.plan = f"torch.nn.{type(layer.native).__name__}"
    return prepared


def _inference(layer: TorchLayer, work: Work) -> Prepared:
    native, x = layer.native, _sequence(work.x, work)

    def call() -> Any:
        with torch.inference_mode():
            return native(x)

    return Prepared(call, lambda: _output(call(), work), lambda: layer(work.x, lengths=work.lengths))


def _gradients(layer: TorchLayer, work: Work) -> Prepared:
    native, cotangent = layer.native, work.cotangent
    assert cotangent is not None
    weights = list(named_weights(native).values())
    x = _sequence(work.x, work)
    data = _data(x).requires_grad_()
    dy = _data(_sequence(cotangent.sequence, work))
    dfinal = tensors(cotangent.state.parts, CPU)

    def call() -> tuple[Tensor, ...]:
        y, final = native(x)
        outputs = _data(y), *(final if isinstance(final, tuple) else (final,))
        return torch.autograd.grad(outputs, [*weights, data], [dy, *dfinal])

    def result() -> Gradients:
        *dweights, ddata = call()
        dx = ddata if not isinstance(x, PackedSequence) else _padded(x._replace(data=ddata), work)
        # The initial state is a constant.
        return Gradients(canonical(dweights, layer.spec), dx.numpy(), None)  # type: ignore[arg-type]

    return Prepared(call, result, lambda: layer.vjp(work.x, lengths=work.lengths, cotangent=cotangent))


def _training(layer: TorchLayer, work: Work) -> Prepared:
    native, x = layer.native.train(), _sequence(work.x, work)
    assert work.target is not None
    target, elements = _data(_sequence(work.target, work)), work.target.size
    optimiser = torch.optim.SGD(native.parameters(), lr=SGD_RATE)

    def call() -> None:
        optimiser.zero_grad()
        y, _ = native(x)
        # Padding, which is constant, counts among the elements and has no gradient.
        loss = nn.functional.mse_loss(_data(y), target, reduction="sum") / elements
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def result() -> Any:
        call()
        return layer.weights().arrays

    return Prepared(call, result)


def _streaming(layer: TorchLayer, work: Work) -> Prepared:
    native, x, stream = layer.native, _sequence(work.x, work), layer.stream()
    state: Any = None

    def call() -> Any:
        nonlocal state
        with torch.inference_mode():
            y, state = native(x, state)
        return y, state

    return Prepared(call, lambda: _output(call(), work), lambda: stream(work.x))


PREPARERS: dict[str, Callable[[TorchLayer, Work], Prepared]] = {
    "inference": _inference,
    "gradients": _gradients,
    "training": _training,
    "streaming": _streaming,
}


def _sequence(array: Array, work: Work) -> Any:
    """A tensor, or a PackedSequence."""
    (tensor,) = tensors([array], CPU)
    if work.lengths is None:
        return tensor
    return pack_padded_sequence(tensor, torch.from_numpy(work.lengths), batch_first=True, enforce_sorted=False)


def _data(sequence: Any) -> Tensor:
    tensor: Tensor = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return tensor


def _padded(sequence: Any, work: Work) -> Tensor:
    if isinstance(sequence, PackedSequence):
        return pad_packed_sequence(sequence, batch_first=True, total_length=work.x.shape[1])[0]
    tensor: Tensor = sequence
    return tensor


def _output(result: Any, work: Work) -> Output:
    y, final = result
    array, *parts = arrays([_padded(y, work), *(final if isinstance(final, tuple) else (final,))])
    return Output(array, State(*parts))
