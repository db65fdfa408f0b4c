"""What tests are made of, for every backend and every hand-written layer: the conformance suite.

agreement   any two layers held against each other: `assert_layers_agree`
suite       every check that a backend has to hold: `cases`, `check_backend`
mutation    backends made wrong on purpose, and how many a test notices: `mutation_score`
"""

from multirnn.testing.agreement import Agreement, Disagreement, assert_layers_agree
from multirnn.testing.mutation import Mutant, Score, mutants, mutation_score
from multirnn.testing.suite import FORMS, Check, cases, check_backend, covering_specs

__all__ = [
    "FORMS",
    "Agreement",
    "Check",
    "Disagreement",
    "Mutant",
    "Score",
    "assert_layers_agree",
    "cases",
    "check_backend",
    "covering_specs",
    "mutants",
    "mutation_score",
]
