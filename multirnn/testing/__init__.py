"""What tests are made of, for every backend and every hand-written layer.

suite       every check that a backend has to hold: `cases`, `check_backend`; `VERSION` is the suite's
large       problems at sizes where a fast implementation goes another way: `large_cases`
agreement   any two layers held against each other: `assert_layers_agree`
mutation    backends made wrong on purpose, and how many a test notices: `mutation_score`
strategies  specs, weights and calls that Hypothesis draws; imported by whoever wants it, since it needs Hypothesis
"""

from multirnn.testing.agreement import Agreement, Disagreement, assert_layers_agree
from multirnn.testing.large import LargeProblem, large_cases, large_problems
from multirnn.testing.mutation import Mutant, Score, mutants, mutation_score
from multirnn.testing.suite import FORMS, VERSION, Check, cases, check_backend, covering_specs

__all__ = [
    "FORMS",
    "VERSION",
    "Agreement",
    "Check",
    "Disagreement",
    "LargeProblem",
    "Mutant",
    "Score",
    "assert_layers_agree",
    "cases",
    "check_backend",
    "covering_specs",
    "large_cases",
    "large_problems",
    "mutants",
    "mutation_score",
]
