"""Lesson 3. Forward and backward by hand: an RNN cell, the layer over time, and the mistakes that everybody makes.

3과. 순전파와 역전파를 직접 구현하기: RNN 셀, 시간 방향으로 펼친 층, 그리고 누구나 한 번은 하는 실수들.

Rows times matrices: x (batch, features), h (batch, units), W (features, units), U (units, units).
"""

import numpy as np

import multirnn as mr


class RNN:
    """One step, h' = tanh(x W + h U + b), and its gradients. 한 시점의 순전파와 역전파."""

    def __init__(self, W, U, b):
        self.W, self.U, self.b = W, U, b

    def forward(self, x, h):
        h_next = np.tanh(x @ self.W + h @ self.U + self.b)
        self.cache = x, h, h_next
        return h_next

    def backward(self, dh_next):
        x, h, h_next = self.cache
        dz = dh_next * (1 - h_next**2)  # tanh' = 1 - tanh²
        self.grads = x.T @ dz, h.T @ dz, dz.sum(axis=0)
        return dz @ self.W.T, dz @ self.U.T  # x came through W, h through U. x는 W를, h는 U를 거쳐 왔다.


class TimeRNN:
    """The cell at every step; if stateful, a call goes on from the state in which the last one ended.

    모든 시점에 셀을 적용하는 층. stateful이면 이전 호출의 마지막 은닉 상태에서 이어서 계산한다.
    """

    cell = RNN

    def __init__(self, W, U, b, stateful=False):
        self.params, self.stateful, self.h = (W, U, b), stateful, None

    def set_state(self, h):
        self.h = h

    def reset_state(self):
        self.h = None

    def forward(self, xs):
        batch, time, _ = xs.shape
        if self.h is None or not self.stateful:
            self.h = np.zeros((batch, len(self.params[1])))
        self.cells = [self.cell(*self.params) for _ in range(time)]
        hs = []
        for t, cell in enumerate(self.cells):
            self.h = cell.forward(xs[:, t], self.h)
            hs.append(self.h)
        return np.stack(hs, axis=1)

    def backward(self, dhs):
        """Back through time: dh is what the later steps say about h. 시간 역전파: dh는 뒤 시점에서 흘러온 기울기."""
        self.grads = [np.zeros_like(param) for param in self.params]
        dxs, dh = [], 0
        for t in reversed(range(len(self.cells))):
            dx, dh = self.cells[t].backward(dhs[:, t] + dh)
            dxs.insert(0, dx)
            self.collect(self.cells[t].grads)
        self.dh = dh
        return np.stack(dxs, axis=1)

    def collect(self, grads):
        """All steps share their parameters, so gradients add up. 모든 시점이 매개변수를 공유하므로 기울기를 더한다."""
        self.grads = [total + grad for total, grad in zip(self.grads, grads, strict=True)]


class WrongMatrixCell(RNN):
    def backward(self, dh_next):
        dx, _ = super().backward(dh_next)
        return dx, dx  # dz Wᵀ for h, too. h에도 U가 아닌 W를 썼다.


class WrongMatrix(TimeRNN):
    cell = WrongMatrixCell


class Overwritten(TimeRNN):
    def collect(self, grads):
        self.grads = grads  # = where += belongs. +=가 아니라 =를 썼다.


# As many features as units: no shape gives the wrong matrix away. 특성 수와 유닛 수가 같으면 형상 오류로 드러나지 않는다.
spec = mr.RecurrentSpec("simple_rnn", input_size=5, hidden_size=5, dtype="float64")
weights = mr.initialise(spec, seed=0)
W, U, b = (array[0].T for array in weights.at(0, "forward").values())
rng = np.random.default_rng(1)
xs, dhs = rng.standard_normal((2, 3, 7, 5))  # inputs, and gradients of the outputs. 입력, 그리고 출력의 기울기
h0 = rng.uniform(-1, 1, (3, 5))

judges = {}
for name in mr.backends():
    try:
        judges[name] = mr.build(weights, name)
    except (mr.MissingFramework, mr.Unsupported) as error:
        print(f"left out / 제외: {error}")


def started(kind):
    layer = kind(W, U, b, stateful=True)
    layer.set_state(h0)
    return layer


def show(title, layer, wrong="", h0=h0, time=7, judge=judges["numpy"]):
    """Print how far outputs and gradients are from the judge's. 출력과 기울기가 기준과 얼마나 다른지 출력한다."""
    x, dh, state = xs[:, :time], dhs[:, :time], mr.State(h0[None])
    hs, dxs = layer.forward(x), layer.backward(dh)
    right = judge.vjp(x, state, cotangent=mr.Output(dh, mr.State(np.zeros_like(state.h))))
    pairs = {"h": (hs, judge(x, state).sequence), "dx": (dxs, right.x), "dh0": (layer.dh, right.state.h[0])}
    for name, grad, parameter in zip(("dW", "dU", "db"), layer.grads, spec.shapes, strict=True):
        pairs[name] = grad, right.weights[parameter][0].T
    errors = {name: mr.difference(*pair).normwise for name, pair in pairs.items()}
    print("  " + "".join(f"{error:8.0e}" for error in errors.values()) + f"   {title}")
    assert {name for name, error in errors.items() if error > mr.tolerance("float64")} == set(wrong.split())


print("1. The difference from the backend's gradients / 백엔드가 구한 기울기와의 차이")
print("  " + "".join(f"{name:>8}" for name in ("h", "dx", "dh0", "dW", "dU", "db")))
for name, judge in judges.items():
    show(f"right, against {name} / 올바른 구현, 기준은 {name}", started(TimeRNN), judge=judge)
show("W for U / U 대신 W", started(WrongMatrix), wrong="dx dh0 dW dU db")
show("= for += / += 대신 =", started(Overwritten), wrong="dW dU db")

layer = started(TimeRNN)
layer.forward(xs[::-1])  # other sequences, then no reset_state(). 다른 시퀀스를 처리한 뒤 초기화를 잊었다.
show("state not reset / 초기화 누락", layer, wrong="h dx dh0 dW dU db", h0=np.zeros_like(h0))
layer.reset_state()
show("state reset / 상태 초기화", layer, h0=np.zeros_like(h0))

print("\n2. One step hides them: test with many / 시점이 하나면 실수가 숨는다: 여러 시점으로 시험하라")
show("W for U / U 대신 W", started(WrongMatrix), wrong="dh0", time=1)
show("= for += / += 대신 =", started(Overwritten), time=1)

print("\n3. Truncated: the state crosses a cut, the gradient does not / 절단된 시간 역전파: 은닉 상태만 경계를 넘는다")
xs = rng.standard_normal((3, 60, 5))
dhs = np.ones_like(xs)  # The loss is the sum of all outputs. 손실은 모든 출력의 합이다.


def truncated(chunk):
    """All outputs and the gradient of U, chunk by chunk. 구간별로 계산한 출력 전체와 U의 기울기."""
    layer = TimeRNN(W, U, b, stateful=True)
    hs, dU = [], 0
    for start in range(0, 60, chunk):
        hs.append(layer.forward(xs[:, start : start + chunk]))
        layer.backward(dhs[:, start : start + chunk])
        dU += layer.grads[1]
    return np.concatenate(hs, axis=1), dU


all_outputs, full_gradient = truncated(60)
gaps = []
for chunk in (1, 2, 5, 10, 30):
    outputs, gradient = truncated(chunk)
    assert mr.difference(outputs, all_outputs).normwise <= mr.tolerance("float64")
    gaps.append(mr.difference(gradient, full_gradient).normwise)
    print(f"   chunks of {chunk:2}: dU is off by {gaps[-1]:.0e} / 구간 길이가 {chunk}이면 dU의 오차는 {gaps[-1]:.0e}")
assert gaps == sorted(gaps, reverse=True)
assert gaps[-1] > mr.tolerance("float64")
