"""Errors where the compiled recurrence is missing, built from other sources, or lacks the instructions asked for."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_calls import needs_kernel

import multirnn as mr
from multirnn import RecurrentSpec, kernel
from multirnn.kernel import build, library

pytestmark = needs_kernel


def test_unknown_instructions():
    with pytest.raises(mr.InvalidCall, match="instructions must be one of"):
        kernel.CompiledRecurrence(RecurrentSpec("lstm", 2, 3), "mmx")


@pytest.fixture
def fresh_load():
    """The library is looked for anew, and again after the test."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@pytest.mark.usefixtures("fresh_load")
class TestMissing:
    def test_not_built(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build, "LIBRARY", tmp_path / "recurrence.so")
        assert "python -m multirnn.kernel.build" in kernel.refuses()
        assert kernel.instruction_sets() == ()
        with pytest.raises(mr.MissingFramework, match="C compiler"):
            kernel.CompiledRecurrence(RecurrentSpec("lstm", 2, 3))

    def test_not_a_library(self, monkeypatch, tmp_path):
        (tmp_path / "recurrence.so").write_text("text")
        monkeypatch.setattr(build, "LIBRARY", tmp_path / "recurrence.so")
        assert "cannot be loaded" in kernel.refuses()

    def test_these_tests_fail_on_a_library_of_other_sources(self):
        stale = "from multirnn.kernel import build; build.fingerprint = lambda: 'other'; import pytest, sys; "
        run = f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {__file__!r}]))"
        done = subprocess.run([sys.executable, "-c", stale + run], capture_output=True, text=True, check=False)
        assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
        assert "was built from other sources; `python -m multirnn.kernel.build` rebuilds it" in done.stdout

    def test_built_from_other_sources(self, monkeypatch):
        monkeypatch.setattr(build, "fingerprint", lambda: "other")
        assert "other sources" in kernel.refuses()

    def test_the_old_library_stays_until_the_new_one_is_whole(self, monkeypatch, tmp_path):
        target = tmp_path / "recurrence.so"
        target.write_text("the old one")
        monkeypatch.setattr(build, "LIBRARY", target)
        linked = []

        def run(command):
            if "-shared" in command:
                linked.append(Path(command[-1]))
                linked[-1].write_text("half of a new one")
                assert target.read_text() == "the old one"
                return "the linker failed"
            return None

        monkeypatch.setattr(build, "_run", run)
        assert build.build() == "the linker failed"
        assert linked[0].parent == tmp_path
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("recurrence.so", "the old one")]

    def test_a_32_bit_system_is_told_so(self, tmp_path):
        source = tmp_path / "header.c"
        source.write_text('#include "team.h"\n')
        flags = ["-m32", "-ffreestanding", "-fsyntax-only", "-I", str(build.SOURCE)]
        compiler = build._compiler()
        if compiler is None or platform.machine() != "x86_64":
            pytest.skip("no compiler that knows -m32")
        assert "needs 64-bit addresses" in build._run([*compiler, *flags, str(source)])

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setenv("CC", "/nowhere/cc")
        assert "cannot be run" in build.build()
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", "")
        assert "no C compiler was found" in build.build()
