"""A call's result depends on its arguments alone: every backend gives the same bits under every global setting.

A new setting is a row of SURROUNDINGS: a context manager that makes it and takes it back. What it imports is skipped
where it is missing.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call
from multirnn.protocol import Backend, abilities, with_implementation

SPECS = {
    "simple_rnn": mr.RecurrentSpec("simple_rnn", 5, 11),
    "lstm": mr.RecurrentSpec("lstm", 5, 11, num_layers=2, bidirectional=True),
    "gru": mr.RecurrentSpec("gru", 5, 11),
}


def torch_module() -> ModuleType:
    return pytest.importorskip("torch")


@contextmanager
def numpy_raises() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def torch_default(name: str, get: str, value: Any) -> Iterator[None]:
    """A global of PyTorch that has a getter and a setter."""
    torch = torch_module()
    before = getattr(torch, get)()
    getattr(torch, name)(getattr(torch, value) if value in ("float64", "bfloat16") else value)
    try:
        yield
    finally:
        getattr(torch, name)(before)


@contextmanager
def torch_default_device_meta() -> Iterator[None]:
    torch = torch_module()
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def torch_gradients_off() -> Iterator[None]:
    """Gradients are switched off by a call, not by a context."""
    torch = torch_module()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


@contextmanager
def torch_rounds_layers() -> Iterator[None]:
    """Recurrent layers alone may round the factors of their products."""
    rnn = torch_module().backends.mkldnn.rnn
    if not hasattr(rnn, "fp32_precision"):
        pytest.skip("this PyTorch has one precision for all operations")
    before, rnn.fp32_precision = rnn.fp32_precision, "bf16"
    try:
        yield
    finally:
        rnn.fp32_precision = before


def torch_autocast(dtype: str) -> AbstractContextManager[Any]:
    torch = torch_module()
    return torch.autocast("cpu", getattr(torch, dtype))


def jax_set(name: str, value: Any) -> AbstractContextManager[Any]:
    """A setting of JAX by the name of its context manager."""
    jax = pytest.importorskip("jax")
    return getattr(jax, name)(value)


@contextmanager
def keras_setting(name: str, get: str, value: Any) -> Iterator[None]:
    """A global of Keras that has a getter and a setter."""
    pytest.importorskip("multirnn_keras")  # which chooses the engine of Keras
    config = pytest.importorskip("keras").config
    before = getattr(config, get)()
    getattr(config, name)(value)
    try:
        yield
    finally:
        getattr(config, name)(before)


@contextmanager
def keras_autocast() -> Iterator[None]:
    """Within the call of a layer of mixed precision."""
    pytest.importorskip("multirnn_keras")
    from keras.src.backend import AutocastScope

    with AutocastScope("float16"):
        yield


@contextmanager
def tensorflow_functions_eager() -> Iterator[None]:
    config = pytest.importorskip("tensorflow").config
    config.run_functions_eagerly(True)
    try:
        yield
    finally:
        config.run_functions_eagerly(False)


@contextmanager
def tensorflow_compiles_all() -> Iterator[None]:
    """Graphs go to XLA, and are not optimised otherwise."""
    optimizer = pytest.importorskip("tensorflow").config.optimizer
    optimizer.set_jit("autoclustering")
    optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        optimizer.set_experimental_options({"disable_meta_optimizer": False})
        optimizer.set_jit("")


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": lambda: warnings.catch_warnings(),
    "np.errstate(all='raise')": numpy_raises,
    "warnings as errors": warnings_are_errors,
    "torch.autocast(bfloat16)": lambda: torch_autocast("bfloat16"),
    "torch.autocast(float16)": lambda: torch_autocast("float16"),
    "torch.device('meta')": lambda: torch_module().device("meta"),
    "torch.set_default_device('meta')": torch_default_device_meta,
    "torch.set_default_dtype(float64)": lambda: torch_default("set_default_dtype", "get_default_dtype", "float64"),
    "torch.set_default_dtype(bfloat16)": lambda: torch_default("set_default_dtype", "get_default_dtype", "bfloat16"),
    "torch.use_deterministic_algorithms": lambda: torch_default(
        "use_deterministic_algorithms", "are_deterministic_algorithms_enabled", True
    ),
    "torch.set_float32_matmul_precision('medium')": lambda: torch_default(
        "set_float32_matmul_precision", "get_float32_matmul_precision", "medium"
    ),
    "torch.backends.mkldnn.rnn.fp32_precision": torch_rounds_layers,
    "torch.set_num_threads(1)": lambda: torch_default("set_num_threads", "get_num_threads", 1),
    "torch.inference_mode": lambda: torch_module().inference_mode(),
    "torch.no_grad": lambda: torch_module().no_grad(),
    "torch.set_grad_enabled(False)": torch_gradients_off,
    "torch.autograd.set_detect_anomaly": lambda: torch_module().autograd.set_detect_anomaly(True),
    "keras.config.set_floatx('float64')": lambda: keras_setting("set_floatx", "floatx", "float64"),
    "keras.config.set_floatx('float16')": lambda: keras_setting("set_floatx", "floatx", "float16"),
    "keras.config.set_dtype_policy('mixed_float16')": lambda: keras_setting(
        "set_dtype_policy", "dtype_policy", "mixed_float16"
    ),
    "keras.config.set_dtype_policy('float64')": lambda: keras_setting("set_dtype_policy", "dtype_policy", "float64"),
    "keras' AutocastScope('float16')": keras_autocast,
    "tf.device('CPU:0')": lambda: pytest.importorskip("tensorflow").device("CPU:0"),
    "tf.GradientTape": lambda: pytest.importorskip("tensorflow").GradientTape(),
    "tf.config.run_functions_eagerly": tensorflow_functions_eager,
    "tf.config.optimizer": tensorflow_compiles_all,
    "jax.enable_x64(True)": lambda: jax_set("enable_x64", True),
    "jax.default_matmul_precision('bfloat16')": lambda: jax_set("default_matmul_precision", "bfloat16"),
    "jax.numpy_rank_promotion('raise')": lambda: jax_set("numpy_rank_promotion", "raise"),
    "jax.numpy_dtype_promotion('strict')": lambda: jax_set("numpy_dtype_promotion", "strict"),
    "jax.debug_nans": lambda: jax_set("debug_nans", True),
    "jax.debug_infs": lambda: jax_set("debug_infs", True),
    "jax.disable_jit": lambda: jax_set("disable_jit", True),
    "jax.checking_leaks": lambda: pytest.importorskip("jax").checking_leaks(),
    "jax.transfer_guard('disallow')": lambda: jax_set("transfer_guard", "disallow"),
    "jax.default_device": lambda: jax_set("default_device", pytest.importorskip("jax").devices("cpu")[0]),
}
"""Context managers by what they say."""


@cache
def every_backend() -> list[Any]:
    """Every implementation of every backend whose framework is installed."""
    found = []
    for name in mr.backends():
        try:
            loaded = mr.backend(name)
        except mr.MissingFramework:
            continue
        found += [with_implementation(loaded, implementation) for implementation in abilities(loaded).implementations]
    return found


def built(backend: Any, spec: mr.RecurrentSpec) -> Any:
    return backend.build(mr.initialise(spec, seed=1))


def what_it_computes(backend: Any, layer: Any) -> Iterator[tuple[str, Any]]:
    """Everything that a layer is asked for, by name: arrays, and the numbers of a comparison."""
    x, state, lengths = draw_call(layer.spec)
    yield from ((f"weights of {name}", array) for name, array in layer.weights().arrays.items())
    for case, output in {
        "a plain call": layer(x),
        "a ragged call": layer(x, state, lengths=lengths),
        "one step": layer(x[:, :1]),
        "a row": layer(x[0]),
        "a saturated call": layer(x * 300),  # its exponentials overflow, and what they divide underflows
    }.items():
        yield from numbered(case, output)
    if backend.differentiable:
        gradients = layer.vjp(x, state, lengths=lengths, cotangent=layer(x, state, lengths=lengths))
        yield from ((f"gradient of {name}", array) for name, array in gradients.weights.items())
        yield from numbered("gradient", mr.Output(gradients.x, gradients.state))
    row = mr.compare(mr.initialise(layer.spec, seed=1), backends=[backend]).rows[0]
    assert row.verdict == "equal", row
    yield "compare", np.array([row.worst.difference.normwise])


def numbered(case: str, output: mr.Output) -> Iterator[tuple[str, Any]]:
    parts = output.sequence, *(part for part in output.state if part is not None)
    return ((f"{case}, part {place}", part) for place, part in enumerate(parts))


@cache
def outside(backend: Any, spec: mr.RecurrentSpec) -> dict[str, Any]:
    return dict(what_it_computes(backend, built(backend, spec)))


@pytest.mark.parametrize("cell", SPECS)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_the_same_bits(backend: Backend, surroundings: str, cell: str) -> None:
    """What is built inside or outside, and called inside or outside, is what it is outside."""
    spec = SPECS[cell]
    for one in every_backend():
        if one.name.split()[0] != backend.name or one.refuses(spec):
            continue
        expected, layer = outside(one, spec), built(one, spec)
        with SURROUNDINGS[surroundings]():
            made = built(one, spec)
            found = [dict(what_it_computes(one, each)) for each in (layer, made)]
        for computed in (*found, dict(what_it_computes(one, made))):
            assert computed.keys() == expected.keys()
            for name, array in computed.items():
                assert array.dtype == expected[name].dtype, f"{one.name}: {name} under {surroundings}"
                assert np.array_equal(array, expected[name]), f"{one.name}: {name} under {surroundings}"
