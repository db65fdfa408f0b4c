"""The work in a problem and the least time that it takes, by hand; and that the ceilings can be measured."""

import json
from dataclasses import replace
from typing import Any

import pytest
from bench_examples import varied
from multirnn_bench import ceilings, machine
from multirnn_bench.limits import (
    ACTIVATION,
    LATENCY,
    Ceilings,
    Limits,
    bytes_moved,
    flops,
    measure,
    measure_again,
    minimum_memory,
)
from multirnn_bench.problems import Problem

from multirnn import kernel
from multirnn.errors import InvalidCall, InvalidData
from multirnn.spec import RecurrentSpec

RNN = Problem("rnn", RecurrentSpec("simple_rnn", 5, 11), batch=3, time=7)
LSTM = varied(RNN, name="lstm", cell="lstm", bias="")
GRU = varied(RNN, name="gru", cell="gru", bias="")
STACK = varied(LSTM, name="stack", num_layers=2, bidirectional=True)

# --- Work --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "mode", "expected"),
    [
        (RNN, "inference", 2 * 21 * 11 * (5 + 11)),
        (RNN, "streaming", 2 * 3 * 11 * (5 + 11)),
        (RNN, "gradients", 3 * 2 * 21 * 11 * (5 + 11)),
        # No gradient of x, and two operations a parameter: 11 * 5 + 11 * 11 + 11 of them.
        (RNN, "training", 3 * 2 * 21 * 11 * (5 + 11) - 2 * 21 * 11 * 5 + 2 * 187),
        (LSTM, "inference", 4 * 2 * 21 * 11 * (5 + 11)),
        (GRU, "inference", 3 * 2 * 21 * 11 * (5 + 11)),
        # Above layer 0, the features are both directions' outputs.
        (STACK, "inference", 2 * 4 * 2 * 21 * 11 * (5 + 11) + 2 * 4 * 2 * 21 * 11 * (22 + 11)),
        (varied(RNN, lengths=(1, 7)), "inference", 2 * 3 * 4 * 11 * (5 + 11)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_operations_by_hand(problem: Problem, mode: str, expected: int) -> None:
    assert flops(problem, mode) == expected


@pytest.mark.parametrize(
    ("problem", "mode", "expected"),
    [
        (RNN, "inference", 4 * (187 + 21 * (5 + 11))),
        (RNN, "streaming", 4 * (187 + 3 * (5 + 11))),
        (varied(RNN, dtype="float64"), "inference", 8 * (187 + 21 * (5 + 11))),
        # Parameters read twice and their gradients written; x twice and its gradient; the output twice and its cotangent.
        (RNN, "gradients", 4 * (3 * 187 + 21 * (3 * 5 + 3 * 11))),
        # The same without the gradient of x, and the target; the parameters are written too.
        (RNN, "training", 4 * (4 * 187 + 21 * (2 * 5 + 4 * 11))),
        # i, f, g, o and c, written and read.
        (LSTM, "gradients", 4 * (3 * 748 + 21 * (3 * 5 + 3 * 11 + 2 * 5 * 11))),
        (STACK, "inference", 4 * (STACK.spec.parameter_count + 21 * (5 + 3 * 22))),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_bytes_by_hand(problem: Problem, mode: str, expected: int) -> None:
    assert bytes_moved(problem, mode) == expected


def test_the_least_memory_by_hand() -> None:
    assert minimum_memory(RNN) == 4 * (187 + 21 * (5 + 11))
    assert minimum_memory(STACK) == 4 * (STACK.spec.parameter_count + 21 * (5 + 2 * 22))
    assert minimum_memory(varied(RNN, lengths=(1, 7))) == minimum_memory(RNN)


# --- Limits -----------------------------------------------------------------------------------------------------------------------

MACHINE = Limits(
    {"L1": 40_000, "L2": 1_000_000, "L3": 24_000_000},
    {
        1: Ceilings.of({"float32": 1e11, "float64": 5e10}, {"L1": 2e11, "L2": 1e11, "L3": 2e10, "memory": 1e10}),
        2: Ceilings.of({"float32": 2e11, "float64": 1e11}, {"L1": 4e11, "L2": 2e11, "L3": 4e10, "memory": 1.5e10}),
    },
)


def rnn(batch: int, time: int, size: int, **fields: Any) -> Problem:
    return Problem(
        "it", RecurrentSpec(**{"cell": "simple_rnn", "input_size": size, "hidden_size": size, **fields}), batch, time
    )


def test_a_large_batch_is_bound_by_products() -> None:
    problem = rnn(64, 100, 256)
    product = 2 * 6400 * 256 * 256 / 1e11
    assert MACHINE.seconds(problem, "inference", 1) == pytest.approx(2 * product + 6400 * 256 * ACTIVATION / 1e11)
    assert MACHINE.seconds(problem, "inference", 2) == pytest.approx(MACHINE.seconds(problem, "inference", 1) / 2)
    # Forward: two products and the activations; backward: the recurrence, dx, dW_ih and dW_hh.
    assert MACHINE.seconds(problem, "gradients", 1) == pytest.approx(6 * product + 6400 * 256 * ACTIVATION / 1e11)
    assert MACHINE.seconds(problem, "training", 1) == pytest.approx(5 * product + 6400 * 256 * ACTIVATION / 1e11)


def test_a_batch_of_one_is_bound_by_reading_the_weights() -> None:
    problem = rnn(1, 100, 256)  # 262,144 bytes of recurrent weights: 0.8 of L1 keeps 32,000
    stream = 100 * (32_000 / 2e11 + (4 * 256 * 256 - 32_000) / 1e11)
    project = 2 * 100 * 256 * 256 / 1e11
    expected = project + stream + 100 * 256 * ACTIVATION / 1e11
    assert MACHINE.seconds(problem, "inference", 1) == pytest.approx(expected)
    parameters = 4 * (2 * 256 * 256 + 256)
    a_byte = (32_000 / 2e11 + (parameters - 32_000) / 1e11) / parameters
    streaming = 2 * 4 * 256 * 256 * a_byte + 256 * ACTIVATION / 1e11
    assert MACHINE.seconds(problem, "streaming", 1) == pytest.approx(streaming)


def test_weights_that_fit_in_two_caches_and_not_in_one() -> None:
    # 1.44 MB of recurrent weights: two cores keep all of them in their L2, and one core 0.8 MB.
    problem = rnn(1, 100, 600, input_size=8)
    one, two = (MACHINE.seconds(problem, "inference", threads) for threads in (1, 2))
    other = 2 * 100 * 8 * 600 + 100 * 600 * ACTIVATION  # operations
    assert one == pytest.approx(100 * (32_000 / 2e11 + 768_000 / 1e11 + 640_000 / 2e10) + other / 1e11)
    assert two == pytest.approx(100 * (64_000 / 4e11 + 1_376_000 / 2e11) + other / 2e11)
    assert one > 5 * two


def test_what_is_read_at_every_step_is_what_has_to_fit() -> None:
    problem = rnn(1, 100, 400)  # 1.28 MB of weights, half of them recurrent: those stay in L2
    product, stream = 2 * 100 * 400 * 400 / 1e11, 100 * (32_000 / 2e11 + (4 * 400 * 400 - 32_000) / 1e11)
    expected = product + stream + 100 * 400 * ACTIVATION / 1e11
    assert MACHINE.seconds(problem, "inference", 1) == pytest.approx(expected)
    parameters = 4 * (2 * 400 * 400 + 400)  # a single step finds what L2 cannot keep of them in L3
    a_byte = (32_000 / 2e11 + 768_000 / 1e11 + (parameters - 800_000) / 2e10) / parameters
    weights = 2 * 4 * 400 * 400 * a_byte + 400 * ACTIVATION / 1e11
    moved = 32_000 / 2e11 + 768_000 / 1e11 + (parameters + 4 * 2 * 400 - 800_000) / 2e10
    assert MACHINE.seconds(problem, "streaming", 1) == pytest.approx(max(moved, weights))


def test_weights_somewhat_larger_than_a_cache_find_in_it_what_it_keeps() -> None:
    within, beyond = (rnn(1, 100, size) for size in (2190, 2200))  # 19.18 and 19.36 MB beside 19.2
    ratio = MACHINE.seconds(beyond, "inference", 1) / MACHINE.seconds(within, "inference", 1)
    assert 1 < ratio < 1.03
    far = rnn(1, 100, 8192)  # 268 MB, of which 19.2 are in L3
    every_step = 32_000 / 2e11 + 768_000 / 1e11 + 18.4e6 / 2e10 + (4 * 8192**2 - 19.2e6) / 1e10
    product = 2 * 100 * 8192**2 / 1e11
    expected = product + 100 * every_step + 100 * 8192 * ACTIVATION / 1e11
    assert MACHINE.seconds(far, "inference", 1) == pytest.approx(expected)
    # Two cores have twice as much of L1 and L2, and share one L3.
    every_step = 64_000 / 4e11 + 1_536_000 / 2e11 + 17.6e6 / 4e10 + (4 * 8192**2 - 19.2e6) / 1.5e10
    expected = product / 2 + 100 * every_step + 100 * 8192 * ACTIVATION / 2e11
    assert MACHINE.seconds(far, "inference", 2) == pytest.approx(expected)


def test_small_steps_are_bound_by_latency() -> None:
    problem = rnn(1, 672, 4)
    product = 2 * 672 * 16 / 1e11
    assert MACHINE.seconds(problem, "inference", 1) == pytest.approx(product + 672 * LATENCY)
    assert MACHINE.seconds(problem, "gradients", 1) == pytest.approx(product + 672 * LATENCY * 2 + 3 * product)


def test_gates_and_activations_are_counted() -> None:
    base = rnn(64, 100, 64)
    cost = 6400 * 64 * ACTIVATION / 1e11

    def without_products(**fields: Any) -> float:
        problem = varied(base, bias="", **fields)
        return MACHINE.seconds(problem, "inference", 1) - flops(problem, "inference") / 1e11

    assert without_products() == pytest.approx(cost)
    assert without_products(activation="relu") == pytest.approx(0, abs=1e-12)
    assert without_products(cell="lstm") == pytest.approx(5 * cost)
    assert without_products(cell="gru") == pytest.approx(3 * cost)
    assert without_products(cell="lstm", activation="relu") == pytest.approx(3 * cost)


def test_sequences_that_are_large_are_bound_by_memory() -> None:
    problem = rnn(4096, 1000, 2, activation="relu")
    moved = 4 * (problem.spec.parameter_count + 4_096_000 * 4)
    seconds = 32_000 / 2e11 + 768_000 / 1e11 + 18.4e6 / 2e10 + (moved - 19.2e6) / 1e10
    assert MACHINE.seconds(problem, "inference", 1) == pytest.approx(seconds)


def test_threads_that_were_not_measured_are_refused() -> None:
    with pytest.raises(InvalidCall, match="with 1, 2 threads, not with 3"):
        MACHINE.seconds(RNN, "inference", 3)


def test_limits_are_written_and_read() -> None:
    assert Limits.from_dict(json.loads(json.dumps(MACHINE.to_dict()))) == MACHINE


# --- Measuring --------------------------------------------------------------------------------------------------------------------


def test_the_ceilings_are_measured_by_several_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZE", 64)
    monkeypatch.setattr(ceilings, "PERIOD", 0.003)
    monkeypatch.setattr(ceilings, "READING", 0.003)
    monkeypatch.setattr(ceilings, "BEYOND", 2**22)
    monkeypatch.setattr(ceilings, "cache_sizes", lambda: {"L1": 2**15, "L2": 2**19, "L3": 2**21})
    monkeypatch.setattr(ceilings, "PASSES", 1)
    assert set(measure(1, dtypes=["float64"]).ceilings[1].products) == {"float64"}
    limits = measure(1)
    (found,) = limits.ceilings.values()
    assert list(found.bandwidths) == ["L1", "L2", "L3", "memory"]
    speeds = list(found.bandwidths.values())
    assert speeds == sorted(speeds, reverse=True)
    for best, means in ((found.products, found.product_means), (found.bandwidths, found.bandwidth_means)):
        for name, rate in best.items():
            assert rate == max(means[name].values()) > 1e8
    assert "NumPy as installed" in found.product_means["float32"]
    assert (ceilings.TILE in found.product_means["float32"]) != bool(kernel.refuses())
    assert limits.seconds(RNN, "inference", 1) > 0
    compiled = {
        level for level, means in found.bandwidth_means.items() if "weights of the compiled recurrence" in means
    }
    assert compiled == (set() if kernel.refuses() else {"L1", "L2", "L3"})


def test_several_cores_are_at_least_as_many_times_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(machine.allowed_cores()) < 2:
        pytest.skip("this process may use one core")
    monkeypatch.setattr(ceilings, "SIZE", 64)
    monkeypatch.setattr(ceilings, "PERIOD", 0.003)
    alone = {"float32": {"one": 1e30}, "float64": {"one": 1.0}}
    found = ceilings.joint_products(2, alone)
    assert found["float32"]["2 times one core by itself"] == 2e30
    tiles = set() if kernel.refuses() else {f"{ceilings.TILE}, one a core"}
    assert set(found["float64"]) == {"one product", "a product a core", "2 times one core by itself"} | tiles


def test_one_core_reads_no_less_than_its_part_of_what_several_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: {"L1": 9e10, "L3": 1.1e10, "memory": 9e9}, 2: {"L1": 18e10, "L3": 3.4e10, "memory": 1.6e10}}
    monkeypatch.setattr("multirnn_bench.limits.first_cores", lambda count: ())
    monkeypatch.setattr("multirnn_bench.limits.matrix_products", lambda dtypes: {"float32": {"one": 1e11}})
    monkeypatch.setattr("multirnn_bench.limits.joint_products", lambda count, alone: {"float32": {"both": 2e11}})
    monkeypatch.setattr(
        "multirnn_bench.limits.bandwidths",
        lambda count, alone=None: {level: {"read": rate} for level, rate in rates[count].items()},
    )
    found = measure(1, 2)
    assert list(found.ceilings) == [1, 2]
    assert found.ceilings[1].bandwidths == {"L1": 9e10, "L3": 1.7e10, "memory": 9e9}
    assert found.ceilings[1].bandwidth_means["L3"]["1/2 of what 2 cores read together"] == 1.7e10
    assert found.ceilings[2].bandwidths == rates[2]


def test_of_two_measurements_the_higher_rates_count() -> None:
    one = {"BLAS": 9e10, "tile": 1e11}
    other = {"BLAS": 9.5e10, "tile": 9e10}
    levels = {"L1": {"read": 1e11}, "memory": {"read": 1e10}}
    limits = [Limits({"L1": 1}, {1: Ceilings({"float32": means}, levels)}) for means in (one, other)]
    found = limits[0].highest(limits[1]).ceilings[1]
    assert found.product_means == {"float32": {"BLAS": 9.5e10, "tile": 1e11}}
    assert found.products == {"float32": 1e11}
    assert MACHINE.highest(MACHINE).ceilings[2].products == MACHINE.ceilings[2].products
    assert MACHINE.highest(Limits({}, {})).ceilings[1].bandwidths == MACHINE.ceilings[1].bandwidths


def test_products_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZE", 64)
    monkeypatch.setattr(ceilings, "PERIOD", 0.003)
    slow = Limits(MACHINE.caches, {1: replace(MACHINE.ceilings[1], product_means={"float32": {"": 1.0}})})
    found = measure_again(slow)
    assert found.ceilings[1].products["float32"] > 1e8
    assert found.ceilings[1].bandwidths == MACHINE.ceilings[1].bandwidths
    fast = Limits(MACHINE.caches, {1: replace(MACHINE.ceilings[1], product_means={"float32": {"": 1e30}})})
    assert measure_again(fast).ceilings[1].products == {"float32": 1e30}


def test_what_is_no_limit_is_told() -> None:
    values = MACHINE.to_dict()
    for broken in ({}, values | {"ceilings": {"one": {}}}, values | {"ceilings": {"1": {"rate": 1}}}):
        with pytest.raises(InvalidData, match="its limits are none that were measured"):
            Limits.from_dict(broken)


def test_more_threads_than_cores_cannot_be_measured() -> None:
    with pytest.raises(InvalidCall, match="may run on"):
        measure(10_000)


# --- The machine ------------------------------------------------------------------------------------------------------------------


def test_a_machine_is_described_the_same_twice() -> None:
    first, second = machine.describe(), machine.describe()
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert first["processor"]
    assert first["versions"]["numpy"]
    assert set(first["caches"]) >= {"L1", "L2"}


def test_steal_only_grows() -> None:
    before = machine.steal()
    if before is None:
        pytest.skip("this system does not tell the steal time")
    assert 0 <= before <= (machine.steal() or 0)
    assert machine.activity()["steal_s"] >= before
