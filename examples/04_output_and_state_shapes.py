"""Lesson 4. Outputs and states: their shapes, and where the last state of each direction stands in the outputs.

4과. 출력과 은닉 상태: 그 형상, 그리고 각 방향의 마지막 은닉 상태가 출력의 어디에 있는가.

    outputs  (batch, time, directions * units)    the top layer at every step / 맨 위 층의 모든 시점
    state    (layers * directions, batch, units)  every layer and direction at its end / 모든 층과 방향의 마지막 은닉 상태
"""

import numpy as np

import multirnn as mr

names = []
for name in mr.backends():
    try:
        mr.backend(name)
        names.append(name)
    except mr.MissingFramework as error:
        print(f"left out / 제외: {error}")
if "torch" in names:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.manual_seed(0)

STACKS = {
    "one layer / 1층": ({}, (1, 10, 8), (1, 1, 8)),
    "two layers / 2층": ({"num_layers": 2}, (1, 10, 8), (2, 1, 8)),
    "two layers, both ways / 2층, 양방향": ({"num_layers": 2, "bidirectional": True}, (1, 10, 16), (4, 1, 8)),
}
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 10, 5)).astype("float32")


def equal(actual, expected):
    return mr.difference(actual, expected).normwise <= mr.tolerance("float32")


print("1. nn.RNN(5, 8, batch_first=True): outputs, state / 출력, 은닉 상태")

# batch_first is about the outputs; the batch of a state stays second. 은닉 상태의 배치 축은 언제나 두 번째다.
stacks = {}
for title, (options, output_shape, state_shape) in STACKS.items():
    if "torch" in names:
        rnn = torch.nn.RNN(5, 8, batch_first=True, **options)
        outputs, h_n = rnn(torch.tensor(x))
        print(f"   {tuple(outputs.shape)!s:11} {tuple(h_n.shape)!s:9}  {title}")
        assert (outputs.shape, h_n.shape) == (output_shape, state_shape)
        # Both biases in one, which every backend holds. 두 편향을 하나로 합치면 모든 백엔드가 표현할 수 있다.
        stacks[title] = mr.fold_biases(mr.read(rnn))
    else:
        stacks[title] = mr.initialise(mr.RecurrentSpec("simple_rnn", 5, 8, **options))

print("\n2. The same stacks on every backend / 같은 층을 모든 백엔드에서")

for title, weights in stacks.items():
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"))
    for name in names:
        output = mr.build(weights, name)(x)
        print(f"   {output.sequence.shape!s:11} {output.state.h.shape!s:9}  {title}: {name}")
        assert (output.sequence.shape, output.state.h.shape) == STACKS[title][1:]
        assert equal(output.sequence, expected.sequence)
        assert equal(output.state.h, expected.state.h)
if "torch" in names:
    assert equal(outputs.detach().numpy(), expected.sequence)
    assert equal(h_n.detach().numpy(), expected.state.h)

print("\n3. Where the last states of the top layer stand / 맨 위 층의 마지막 은닉 상태가 출력에서 있는 자리")
print("   forward / 순방향:  outputs[row, length - 1, :8] == state[2, row]")
print("   backward / 역방향: outputs[row, 0, 8:]          == state[3, row], not / 아님: outputs[row, length - 1, 8:]")

ragged_x = rng.standard_normal((3, 10, 5)).astype("float32")
lengths = [10, 4, 7]  # right padding. 뒤쪽 패딩


def check(outputs, h):
    for row, length in enumerate(lengths):
        forward, backward = outputs[row, :, :8], outputs[row, :, 8:]
        assert equal(forward[length - 1], h[2, row])
        assert equal(backward[0], h[3, row])
        assert not equal(backward[length - 1], h[3, row])
        assert not outputs[row, length:].any()


for name in names:
    sequence, state = mr.build(weights, name)(ragged_x, lengths=lengths)
    check(sequence, state.h)
    print(f"   holds / 성립: {name}")

if "torch" in names:
    packed = pack_padded_sequence(torch.tensor(ragged_x), lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        packed_outputs, h_n = rnn(packed)
    outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True)
    check(outputs.numpy(), h_n.numpy())
    print("   holds / 성립: torch.nn.RNN")

print("\n   row  length  outputs[row, length - 1, 0]  state[2, row, 0]  outputs[row, 0, 8]  state[3, row, 0]")
for row, length in enumerate(lengths):
    values = sequence[row, length - 1, 0], state.h[2, row, 0], sequence[row, 0, 8], state.h[3, row, 0]
    print(f"   {row:3}  {length:6}  {values[0]:27.4f}  {values[1]:16.4f}  {values[2]:18.4f}  {values[3]:16.4f}")
