"""The experiment of `benchmarks/diagnosis.py`, which runs it in full: pairs of layers with planted mistakes."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["Planted", "PortPair", "experiment", "function", "same"]

_source = spec_from_file_location("diagnosis_benchmark", Path(__file__).parents[1] / "benchmarks" / "diagnosis.py")
assert _source
assert _source.loader
experiment = module_from_spec(_source)
_source.loader.exec_module(experiment)
PortPair, Planted, function, same = experiment.PortPair, experiment.Planted, experiment.function, experiment.same
