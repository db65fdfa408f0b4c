"""Lesson 6. Training parity: one weather forecaster, trained by each framework's own optimiser, gives one loss curve.

6과. 학습의 일치: 같은 날씨 예보 모형을 프레임워크마다 고유한 최적화기로 학습시켜도 손실 곡선은 하나다.

A simple RNN reads 14 days of weather in Seattle; a linear read-out of its last state is the highest temperature of the
next day. 100 steps of plain SGD on all windows at once.
단순 순환층이 시애틀의 14일 날씨를 읽고, 마지막 은닉 상태에 선형 출력층을 얹어 다음 날의 최고 기온을 예측한다.
전체 데이터를 배치 하나로 하여 단순한 SGD로 100번 갱신한다.

    python examples/06_training_parity.py [picture.png]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import multirnn as mr
from multirnn.samples import seattle_weather

names = []
for name in mr.backends():
    try:
        if mr.backend(name).differentiable:
            names.append(name)
        else:
            print(f"left out / 제외: {name} cannot be trained; it has no gradients / 기울기가 없어 학습할 수 없다")
    except mr.MissingFramework as error:
        print(f"left out / 제외: {error}")

DAYS, UNITS, STEPS = 14, 16, 100
RATE = 1 / 8  # a power of two, so the same number in float32 and float64. 2의 거듭제곱이라 어느 정밀도에서나 같은 수다.


def train_numpy(layer, V, c, x, y):
    """Gradients from layer.vjp, and in-place steps. layer.vjp로 기울기를 구하고 제자리에서 갱신한다."""
    losses = []
    for _ in range(STEPS):
        output = layer(x)
        h = output.state.h[-1]
        error = h @ V + c - y
        losses.append(np.mean(error**2))
        d_error = 2 * error / error.size
        cotangent = mr.Output(np.zeros_like(output.sequence), mr.State((d_error @ V.T)[None]))
        gradients = layer.vjp(x, cotangent=cotangent).weights
        for name, parameter in layer.native.parameters.items():
            parameter -= RATE * gradients[name]
        V = V - RATE * h.T @ d_error
        c = c - RATE * d_error.sum(axis=0)
    return losses


def train_torch(layer, V, c, x, y):
    """torch.optim.SGD over the parameters of both parts. 두 부분의 매개변수를 모두 맡긴다."""
    import torch

    readout = torch.nn.Linear(UNITS, 1)
    readout.weight, readout.bias = (torch.nn.Parameter(torch.tensor(array)) for array in (V.T, c))
    optimiser = torch.optim.SGD([*layer.native.parameters(), *readout.parameters()], lr=RATE)
    x, y, losses = torch.tensor(x), torch.tensor(y), []
    for _ in range(STEPS):
        _, h = layer.native(x)
        loss = torch.nn.functional.mse_loss(readout(h[-1]), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def train_keras(layer, V, c, x, y):
    """model.fit with keras.optimizers.SGD; an epoch is one batch, one step. 한 에포크가 한 배치, 곧 갱신 한 번이다."""
    import keras

    keras.config.set_floatx(layer.spec.dtype)  # fit casts data and averages losses in it. fit이 쓰는 정밀도
    inputs = keras.Input(x.shape[1:], dtype=layer.spec.dtype)
    readout = keras.layers.Dense(1, dtype=layer.spec.dtype)
    model = keras.Model(inputs, readout(layer.native(inputs)[:, -1]))
    readout.set_weights([V, c])
    model.compile(keras.optimizers.SGD(RATE), loss="mse")
    return model.fit(x, y, batch_size=len(x), epochs=STEPS, shuffle=False, verbose=0).history["loss"]


def train_jax(layer, V, c, x, y):
    """In JAX a step of SGD is one jax.tree.map over the parameters. JAX에서는 tree.map 한 번이 곧 SGD다."""
    import jax

    def mean_squared_error(params):
        h = layer.native.apply(params["layer"], x).state.h[-1]
        return ((h @ params["V"] + params["c"] - y) ** 2).mean()

    with jax.enable_x64(layer.spec.dtype == "float64"):
        gradient = jax.jit(jax.value_and_grad(mean_squared_error))
        params, losses = {"layer": layer.native.params, "V": V, "c": c}, []
        for _ in range(STEPS):
            loss, gradients = gradient(params)
            params = jax.tree.map(lambda p, g: p - RATE * g, params, gradients)
            losses.append(loss.item())
    return losses


weather = seattle_weather()
days = weather.standardised().values
temp_max = weather.names.index("temp_max")
starts = range(0, len(days) - DAYS, 4)
x = np.stack([days[start : start + DAYS] for start in starts])
y = np.stack([days[start + DAYS, [temp_max]] for start in starts])
print(f"{len(x)} windows of {DAYS} days x {x.shape[2]} features / {DAYS}일, 특성 {x.shape[2]}개의 구간 {len(x)}개")

weights = mr.initialise(mr.RecurrentSpec("simple_rnn", x.shape[2], UNITS, dtype="float64"), seed=0)
V, c = np.random.default_rng(1).uniform(-1 / 4, 1 / 4, (UNITS, 1)), np.zeros(1)
expected = np.array(train_numpy(mr.build(weights, "numpy"), V, c, x, y))

# The bound, at every step, is the one of a single call: 256 eps in float64, 64 eps in float32. Measured over five starts:
# at most 2.2 eps and 1.9 eps, on a CPU with AVX-512. SGD contracts towards a minimum, so rounding does not pile up.
# 갱신마다 지켜야 할 한계는 호출 한 번의 한계와 같다. 시작점을 바꿔 가며 다섯 번 잰 최댓값은 2.2 eps와 1.9 eps였다.
TRAIN = {"jax": train_jax, "keras": train_keras, "numpy": train_numpy, "torch": train_torch}
curves, gaps = {}, {}
for dtype in ("float64", "float32"):
    start = weights.astype(dtype)
    for name in names:
        if reason := mr.backend(name).refuses(start.spec):
            print(f"   left out / 제외: {reason}")
            continue
        losses = TRAIN[name](mr.build(start, name), *(array.astype(dtype) for array in (V, c, x, y)))
        curves[name], gaps[dtype, name] = losses, np.abs(losses - expected) / expected
        worst = gaps[dtype, name].max()
        found = f"{losses[0]:.7f} -> {losses[-1]:.7f}, off by / 차이 {worst:.0e}"
        print(f"   {name:6} {dtype}  {found}, at most / 한계 {mr.tolerance(dtype):.0e}")
        assert worst <= mr.tolerance(dtype)

degrees = weather.values[:, temp_max].std()
trained, naive = (degrees * np.sqrt(loss) for loss in (expected[-1], np.mean((x[:, -1, [temp_max]] - y) ** 2)))
print(f"{trained:.2f} °C off on these days, {naive:.2f} °C by saying tomorrow as today", end=" / ")
print(f"이 데이터에서 오차 {trained:.2f} °C, 내일도 오늘과 같다고 하면 {naive:.2f} °C")
assert trained < naive

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    print('no picture: pip install "multirnn[plot]" / 그림을 그리려면 matplotlib이 필요하다')
else:
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for k, (name, losses) in enumerate(curves.items()):
        # Dashes in turn: lines that cover each other all show. 번갈아 나오는 점선이라 겹친 선도 모두 보인다.
        turn = (2 * k, (2, 2 * len(curves) - 2))
        above.plot(losses, color=f"C{k}", lw=4, linestyle=turn, dash_capstyle="butt", label=name)
        for dtype, marker in (("float32", "."), ("float64", "x")):
            if (dtype, name) in gaps:
                below.plot(gaps[dtype, name], marker, color=f"C{k}", ms=4)
    for dtype in ("float32", "float64"):
        below.axhline(mr.tolerance(dtype), color="black", lw=1)
        below.annotate(f"bound in {dtype}", (0, mr.tolerance(dtype)), (0, 3), textcoords="offset points")
    above.set(title="Each framework's own SGD in float32: one loss curve", ylabel="loss", yscale="log")
    above.set_yticks((0.2, 0.5, 1), labels=("0.2", "0.5", "1"))
    above.tick_params(which="minor", labelleft=False)
    for line in above.legend().get_lines():
        line.set_linestyle("-")
    below.set(title="Difference from NumPy in float64: dots float32, crosses float64", ylabel="relative difference")
    below.set(yscale="log", ylim=(1e-17, 1e-4), xlabel="step of SGD")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "training_parity.png")
    figure.savefig(path, dpi=150)
    print(f"picture / 그림: {path}")
