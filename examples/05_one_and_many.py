"""Lesson 5. One and many: one layer reads a sequence into one answer, makes a sequence out of one input, or does both.

5과. 하나와 여럿: 같은 층으로 시퀀스를 답 하나로 요약하고, 입력 하나에서 시퀀스를 만들고, 시퀀스를 시퀀스로 바꾼다.
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

lengths = [6, 4]


def many_to_one(layer, x, V):
    """The state at each row's end; outputs[:, -1] would be padding in row 1. 각 행의 끝에서의 은닉 상태."""
    return layer(x, lengths=lengths).state.h[-1] @ V


def one_to_many_zeros(layer, x, V):
    """One input, then zeros: only the state goes on. 입력은 한 번뿐이고, 그다음부터는 은닉 상태만 이어진다."""
    stream = layer.stream()
    inputs = [x[:, :1], *[np.zeros_like(x[:, :1])] * 5]
    return np.concatenate([stream(step).sequence @ V for step in inputs], axis=1)


def one_to_many_feedback(layer, x, V):
    """One input, then each answer is the next input. 입력은 한 번뿐이고, 그다음부터는 직전의 답이 입력이 된다."""
    stream = layer.stream()
    answers = [stream(x[:, :1]).sequence @ V]
    for _ in range(5):
        answers.append(stream(answers[-1]).sequence @ V)
    return np.concatenate(answers, axis=1)


def many_to_many(layer, x, V):
    """An answer at every step; zero at padding. 시점마다 답이 하나씩 나오고, 패딩에서는 0이다."""
    return layer(x, lengths=lengths).sequence @ V


def many_to_many_delayed(layer, x, V):
    """Read all, then answer, from the state in which the reading ended. 다 읽은 뒤, 그때의 은닉 상태에서 시작해 답한다."""
    stream = layer.stream()
    stream.reset(layer(x, lengths=lengths).state)
    return stream(np.zeros_like(x[:, :3])).sequence @ V


PATTERNS = (
    (many_to_one, "many to one / 다대일", (2, 3)),
    (one_to_many_zeros, "one to many, then zeros / 일대다, 이후 입력은 0", (2, 6, 3)),
    (one_to_many_feedback, "one to many, fed back / 일대다, 출력을 되먹임", (2, 6, 3)),
    (many_to_many, "many to many, step by step / 다대다, 시점마다", (2, 6, 3)),
    (many_to_many_delayed, "many to many, read then answer / 다대다, 다 읽고 나서", (2, 3, 3)),
)

rng = np.random.default_rng(0)
x = rng.standard_normal((2, 6, 3)).astype("float32")
V = rng.uniform(-1, 1, (7, 3)).astype("float32")  # the read-out, from a state to an answer. 은닉 상태에서 답으로
weights = mr.initialise(mr.RecurrentSpec("gru", input_size=3, hidden_size=7), seed=0)
layers = {name: mr.build(weights, name) for name in names}
reference = mr.build(weights.astype("float64"), "numpy")

for pattern, title, shape in PATTERNS:
    print(f"{title}: {shape}")
    expected = pattern(reference, x.astype("float64"), V.astype("float64"))
    assert expected.shape == shape
    for name, layer in layers.items():
        answer = pattern(layer, x, V)
        values = np.atleast_1d(answer[1, ..., 0]).round(4)  # the shorter row, its first feature. 짧은 행의 첫째 특성
        print(f"   {values}  {name}")
        assert mr.difference(answer, expected).normwise <= mr.tolerance("float32")
