"""What tests are made of, for every backend and every hand-written layer: the conformance suite.

    suite       every check that a backend has to hold: `cases`, `check_backend`
"""

from multirnn.testing.suite import FORMS, Check, cases, check_backend, covering_specs

__all__ = ["FORMS", "Check", "cases", "check_backend", "covering_specs"]
