"""Every line of the compiled recurrence is reached, and every branch that is not has its reason."""

import shutil
import sys
from pathlib import Path

import pytest
from kernel_fuzz import command

from multirnn.kernel import build

COMMAND = Path(__file__).with_name("kernel_coverage.py")


@pytest.mark.skipif(shutil.which("gcov") is None or build._compiler() is None, reason="gcov comes with gcc")
def test_every_line_and_every_branch():
    done = command(sys.executable, COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tile.h" in done.stdout
