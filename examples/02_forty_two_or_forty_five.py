"""Lesson 2. 42 or 45: a simple RNN of 3 units on 10 features has 42 parameters in Keras and 45 in PyTorch.

2과. 42 또는 45: 특성 10개를 받는 유닛 3개의 단순 순환층은 매개변수가 케라스에서 42개, 파이토치에서 45개다.
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
if "keras" in names:
    import keras
if "torch" in names:
    import torch

print("1. What the layer needs / 이 층에 필요한 매개변수")

spec = mr.RecurrentSpec("simple_rnn", input_size=10, hidden_size=3)
for name, shape in spec.shapes.items():
    print(f"   {np.prod(shape):3}  {name} {shape}")
print(f"   {spec.parameter_count:3}  in all / 합계")
assert spec.parameter_count == 3 * 10 + 3 * 3 + 3 == 42

print("\n2. Keras: SimpleRNN(3) on (2, 10) / 케라스: (2, 10) 입력을 받는 SimpleRNN(3)")

if "keras" in names:
    model = keras.Sequential([keras.Input((2, 10)), keras.layers.SimpleRNN(3)])
    model.summary(line_length=72)
    assert model.output_shape == (None, 3)  # None stands for any batch. None은 정해지지 않은 배치 크기다.
    assert model.count_params() == mr.read(model.layers[0]).spec.parameter_count == 42

print("\n3. PyTorch: two biases, as cuDNN has them / 파이토치: cuDNN을 따라 편향이 두 개")

if "torch" in names:
    rnn = torch.nn.RNN(10, 3)
    for name, parameter in rnn.named_parameters():
        print(f"   {parameter.numel():3}  {name} {tuple(parameter.shape)}")
    count = sum(parameter.numel() for parameter in rnn.parameters())
    print(f"   {count:3}  in all / 합계")
    assert count == mr.read(rnn).spec.parameter_count == 45

print("\n4. The same function, but not the same training / 함수는 같아도 학습은 같지 않다")

# Only the sum of the two biases counts, and each of them gets the whole gradient: a step of SGD moves the sum twice as
# far. 출력에는 두 편향의 합만 쓰이지만 둘 다 기울기를 온전히 받으므로, SGD 갱신 한 번에 합은 두 배로 움직인다.
single = mr.initialise(spec, seed=0).astype("float64")
double = mr.split_biases(single)  # a second bias of zero: the same function. 값이 0인 둘째 편향을 더해도 같은 함수다.
x = np.random.default_rng(1).standard_normal((5, 2, 10))


def numpy_step(weights):
    """The weights after a step of SGD; the loss is the sum of the outputs. 출력의 합을 손실로 하는 SGD 갱신 한 번."""
    layer = mr.build(weights, "numpy")
    output = layer(x)
    cotangent = mr.Output(np.ones_like(output.sequence), mr.State(np.zeros_like(output.state.h)))
    gradients = layer.vjp(x, cotangent=cotangent).weights
    return mr.Weights(weights.spec, {name: array - 0.1 * gradients[name] for name, array in weights.arrays.items()})


def torch_step(weights):
    """The same, by PyTorch. 같은 갱신을 파이토치로."""
    layer = mr.build(weights, "torch")
    optimiser = torch.optim.SGD(layer.native.parameters(), lr=0.1)
    outputs, _ = layer.native(torch.tensor(x))
    outputs.sum().backward()
    optimiser.step()
    return layer.weights()


def bias(weights):
    """The bias that counts: the sum of all that there are. 실제로 쓰이는 편향, 곧 모든 편향의 합."""
    return sum(array for name, array in weights.arrays.items() if "bias" in name)[0]


for name, step in {"numpy": numpy_step, "torch": torch_step}.items():
    if name in names:
        one, two = (bias(step(weights)) - bias(weights) for weights in (single, double))
        print(f"   {one.round(4)}  {name}, one bias moved / 편향이 하나일 때의 변화량")
        print(f"   {two.round(4)}  {name}, two biases moved / 편향이 둘일 때 그 합의 변화량")
        assert mr.difference(two, 2 * one).normwise <= mr.tolerance("float64")

print("\n5. 42 in PyTorch: a constant zero takes the place of bias_hh / 파이토치에서도 42: bias_hh 자리에 상수 0")

if "torch" in names:
    native = mr.build(spec, "torch").native
    print(f"   parameters / 매개변수: {', '.join(name for name, _ in native.named_parameters())}")
    print(f"   buffers / 버퍼: {', '.join(name for name, _ in native.named_buffers())}")
    assert isinstance(native, torch.nn.RNN)
    assert sum(parameter.numel() for parameter in native.parameters()) == 42
    assert not native.bias_hh_l0.any()
    assert "bias_hh_l0" not in native.state_dict()
for name in names:
    layer = mr.build(spec, name)
    print(f"   {layer.parameter_count:3}  {name}, counted by its own means / 그 프레임워크의 방식으로 센 수")
    assert layer.parameter_count == 42
