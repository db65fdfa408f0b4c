"""Tests for every backend and every hand-written layer.

suite       every check that a backend must pass: `cases`, `check_backend`, and their `VERSION`
grid        the specs of the suite: `covering_specs`
laws        the laws of the suite, such as "chunks equal the whole"
large       problems of sizes at which a fast implementation takes other paths: `large_cases`
agreement   compares any two layers: `assert_layers_agree`
mutation    backends with a mistake, and how many of them a test catches: `mutation_score`
strategies  specs, weights and calls drawn by Hypothesis; imported on its own, since it needs Hypothesis
"""

from multirnn.testing.agreement import Agreement, Disagreement, assert_layers_agree
from multirnn.testing.grid import covering_specs
from multirnn.testing.large import LargeProblem, large_cases, large_problems
from multirnn.testing.mutation import Mutant, Score, mutants, mutation_score
from multirnn.testing.suite import VERSION, Check, cases, check_backend

__all__ = ["VERSION", "Agreement", "Check", "Disagreement", "LargeProblem", "Mutant", "Score", "assert_layers_agree"]
__all__ += ["cases", "check_backend", "covering_specs", "large_cases", "large_problems", "mutants", "mutation_score"]
