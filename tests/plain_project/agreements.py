"""The tests of a project with layers of its own; test_plain_project.py runs them where multirnn is installed."""

import sys

import pytest
from own_layers import OwnGRU, OwnLSTM, SwappedGRU

import multirnn as mr
from multirnn.testing import assert_layers_agree


def gru_weights(layer) -> mr.Weights:
    arrays = {f"{name}_l0": parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    return mr.from_arrays(arrays, convention="torch")


@pytest.fixture
def lstm() -> OwnLSTM:
    layer = OwnLSTM(4)
    layer.build((None, None, 5))
    return layer


def test_multirnn_is_the_installed_one() -> None:
    assert mr.__file__.startswith(sys.prefix)


def test_own_gru(rnn_backend) -> None:
    own = OwnGRU(5, 4)
    assert_layers_agree(mr.build(gru_weights(own), rnn_backend), own)


def test_own_lstm(rnn_backend, lstm) -> None:
    arrays = {f"lstm/lstm_cell/{variable.name}": variable.numpy() for variable in lstm.weights}
    weights = mr.from_arrays(arrays, convention="keras")
    assert_layers_agree(mr.build(weights, rnn_backend), lstm)


def test_swapped_gru(rnn_backend) -> None:
    own = SwappedGRU(5, 4)
    assert_layers_agree(mr.build(gru_weights(own), rnn_backend), own)


@pytest.mark.rnn_backends(refusal="skip")
def test_a_form_that_not_every_backend_has(rnn_backend) -> None:
    spec = mr.RecurrentSpec("gru", 5, 4, reset_after=False)
    assert mr.build(spec, rnn_backend).parameter_count == spec.parameter_count
