"""Two recurrent layers written by hand, as a project has them that knows nothing of multirnn."""

import keras
import torch


class OwnGRU(torch.nn.Module):
    """A GRU: `module(x, h)` with x (batch, time, features) and h (1, batch, units) returns the outputs and the last h."""

    order = "rzn"  # how the blocks of gates are read

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        for name, shape in {
            "weight_ih": (3 * units, features),
            "weight_hh": (3 * units, units),
            "bias_ih": (3 * units,),
            "bias_hh": (3 * units,),
        }.items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape).uniform_(-0.5, 0.5)))

    def forward(self, x, h):
        h = h[0]
        outputs = []
        for step in x.unbind(1):
            inputs = dict(zip(self.order, (step @ self.weight_ih.T + self.bias_ih).chunk(3, 1), strict=True))
            before = dict(zip(self.order, (h @ self.weight_hh.T + self.bias_hh).chunk(3, 1), strict=True))
            r = torch.sigmoid(inputs["r"] + before["r"])
            z = torch.sigmoid(inputs["z"] + before["z"])
            h = (1 - z) * torch.tanh(inputs["n"] + r * before["n"]) + z * h
            outputs.append(h)
        return torch.stack(outputs, 1), h[None]


class SwappedGRU(OwnGRU):
    """The same with the mistake that is made most often."""

    order = "zrn"


class OwnLSTM(keras.layers.Layer):
    """An LSTM: `layer(x, initial_state=[h, c])` returns the outputs, h and c."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4 * self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, 4 * self.units), name="recurrent_kernel")
        self.bias = self.add_weight(shape=(4 * self.units,), initializer="random_normal", name="bias")

    def call(self, x, initial_state):
        h, c = initial_state
        outputs = []
        for step in range(x.shape[1]):
            gates = x[:, step] @ self.kernel + h @ self.recurrent_kernel + self.bias
            i, f, g, o = keras.ops.split(gates, 4, axis=1)
            c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
            h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
            outputs.append(h)
        return keras.ops.stack(outputs, axis=1), h, c
