"""Keras' `SimpleRNN`, `LSTM` and `GRU` on TensorFlow under `tf.function`, without XLA and with it."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work

from ._peer import Peer, flat, gathered, modes


def _refuses(work: Work) -> str | None:
    spec = work.weights.spec
    two = spec.cell == "gru" and spec.reset_after
    if work.mode in ("gradients", "training") and spec.bias == ("single" if two else "double"):
        return f"Keras' {spec.cell} has {'two biases' if two else 'one bias'}, and other gradients are asked for"
    return None


def prepare(work: Work, threads: int, *, jit_compile: bool) -> Prepared:
    """One function of each mode; TensorFlow takes its number of threads from the environment of the process."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    spec = work.weights.spec
    layers, held = _layers(work.weights)
    variables = [variable.value for layer in layers for variable in layer.trainable_variables]
    x = tf.constant(work.x)
    batch, time, _ = work.x.shape
    mask = None if work.lengths is None else tf.sequence_mask(work.lengths, time)
    zero = tf.zeros((batch, spec.hidden_size), spec.dtype)
    start = [[zero] * len(spec.directions) * len(spec.form.states)] * spec.num_layers

    def forward(x: Any, states: Any) -> Any:
        ends = []
        for layer, state in zip(layers, states, strict=True):
            x, *end = layer(x, initial_state=state, mask=mask)
            ends.append(end)
        return x, ends

    def compiled(function: Any) -> Any:
        return tf.function(function, jit_compile=jit_compile)

    def output(found: Any) -> mr.Output:
        return gathered(spec, found[0], tf.nest.flatten(found[1]))

    def canonical(arrays: Any) -> Mapping[str, Any]:
        named = dict(zip(held, map(np.asarray, arrays), strict=True))
        return mr.from_arrays(named, convention="keras", cell=spec.cell, reset_after=spec.reset_after).arrays

    def gradients(cotangent: mr.Output) -> Callable[[], Any]:
        given = [tf.constant(array) for array in (cotangent.sequence, *flat(cotangent.state))]

        @compiled
        def pulled(x: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = forward(x, start)
            dx, *rest = tape.gradient(tf.nest.flatten(y), [x, *variables], given)
            return rest, dx

        return lambda: pulled(x)

    def training(array: Any) -> Callable[[], Any]:
        target = tf.constant(array)

        @compiled
        def train(x: Any, target: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((forward(x, start)[0] - target) ** 2)
            for variable, slope in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(SGD_RATE * slope)

        def trained() -> Any:
            train(x, target)
            return variables

        return trained

    step = compiled(forward)
    return modes(work, lambda states: step(x, states), start, output, canonical, gradients, training)


def _layers(weights: mr.Weights) -> tuple[list[Any], list[str]]:
    """Keras' layers with these weights, and the names of their arrays in the order of `trainable_variables`."""
    import keras

    spec = weights.spec
    two = spec.cell == "gru" and spec.reset_after
    if spec.bias != "none":
        weights = mr.split_biases(weights) if two else mr.fold_biases(weights)
    arrays = mr.to_arrays(weights, convention="keras")
    gated = {"recurrent_activation": spec.recurrent_activation} if spec.cell != "simple_rnn" else {}
    gated |= {"reset_after": spec.reset_after} if spec.cell == "gru" else {}
    kinds = {"simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    layers, waiting = [], list(arrays.values())
    for k in range(spec.num_layers):
        layer = kinds[spec.cell](
            spec.hidden_size,
            activation=spec.activation,
            use_bias=spec.bias != "none",
            return_sequences=True,
            return_state=True,
            zero_output_for_mask=True,
            kernel_initializer="zeros",  # an orthogonal matrix takes seconds to draw, and is overwritten
            recurrent_initializer="zeros",
            dtype=spec.dtype,
            **gated,
        )
        if spec.bidirectional:
            layer = keras.layers.Bidirectional(layer)
        layer.build((None, None, spec.output_size if k else spec.input_size))
        layer.set_weights([waiting.pop(0) for _ in layer.weights])
        layers.append(layer)
    return layers, list(arrays)


PACKAGES = ("keras", "tensorflow")
ACTIVATIONS = ("tanh", "relu", "sigmoid", "linear", "softsign", "elu")
CONTENDERS = tuple(
    Peer(name, partial(prepare, jit_compile=compiled), PACKAGES, activations=ACTIVATIONS, also_refuses=_refuses)
    for name, compiled in {"keras, tf.function": False, "keras, tf.function, XLA": True}.items()
)
