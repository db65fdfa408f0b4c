"""Lesson 1. The plain loop: a recurrent layer is a `for` loop that carries a state from step to step.

1과. 단순한 반복문: 순환층은 상태를 다음 시점으로 넘겨 주는 `for` 문이다.

    h[t] = tanh(W x[t] + U h[t-1] + b)
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


def loop(x, W, U, b):
    """The hidden states (time, units) of the inputs x (time, features). 모든 시점의 은닉 상태를 돌려준다."""
    h = np.zeros(len(b))
    states = []
    for x_t in x:
        h = np.tanh(W @ x_t + U @ h + b)
        states.append(h)
    return np.stack(states)


print("1. 100 steps, 32 features, 64 units / 시점 100개, 특성 32개, 유닛 64개")

rng = np.random.default_rng(0)
time, features, units = 100, 32, 64
x = rng.standard_normal((time, features))
# 1 / sqrt(units): with much larger weights tanh saturates. 가중치가 훨씬 크면 tanh가 포화된다.
bound = 1 / np.sqrt(units)
W, U, b = (rng.uniform(-bound, bound, shape) for shape in ((units, features), (units, units), units))

states = loop(x, W, U, b)
assert states.shape == (100, 64)
print(f"   input {x.shape} -> output {states.shape} / 입력 {x.shape} -> 출력 {states.shape}")

print("\n2. What the state remembers: x[50] is changed / 상태의 기억: x[50]을 바꾸면")

changed_x = x.copy()
changed_x[50] += 1
change = np.abs(loop(changed_x, W, U, b) - states).max(axis=1)
for t in (49, 50, 55, 60):
    print(f"   h[{t}] changes by {change[t]:.0e} / h[{t}]의 변화량")
assert not change[:50].any()  # The past does not know the future. 과거는 미래를 모른다.
assert change[50] > change[55] > change[60] > 0  # The memory fades. 기억은 점점 옅어진다.

print("\n3. 10 steps, 4 features, 8 units, on every backend / 시점 10개, 특성 4개, 유닛 8개를 모든 백엔드에서")

weights = mr.initialise(mr.RecurrentSpec("simple_rnn", input_size=4, hidden_size=8), seed=0)
x = rng.standard_normal((10, 4)).astype("float32")

# Every array has the gates as its first axis; a simple RNN has one. 첫 축은 게이트이며, 단순 RNN에는 하나뿐이다.
W, U, b = (array[0].astype("float64") for array in weights.at(0, "forward").values())
expected = loop(x, W, U, b)

layers = {name: mr.build(weights, name) for name in names}

# One step a call; the stream carries the state between the calls. 한 번에 한 시점씩, 상태는 stream이 이어 준다.
outputs = {}
for name, layer in layers.items():
    stream = layer.stream()
    outputs[name] = np.concatenate([stream(x_t[None]).sequence for x_t in x])

print("   The first unit of h / h의 첫째 유닛")
columns = {"loop": expected, **outputs}
widths = {name: max(8, len(name)) for name in columns}
print("   step  " + "  ".join(f"{name:>{widths[name]}}" for name in columns))
for t in range(10):
    print(f"   {t:4}  " + "  ".join(f"{output[t, 0]:{widths[name]}.5f}" for name, output in columns.items()))

for name, output in outputs.items():
    assert output.shape == (10, 8)
    assert mr.difference(output, expected).normwise <= mr.tolerance("float32")
    assert mr.difference(layers[name](x).sequence, expected).normwise <= mr.tolerance("float32")
print(f"   Step by step or all at once, the same / 한 시점씩이든 한꺼번에든 같은 값: {', '.join(outputs)}")
