"""Damaged files of every format under a bound of time; more by `python tests/formats_fuzz.py`."""

from pathlib import Path

import formats_fuzz
from formats_damage import SHAPED, damaged
from formats_seeds import seeds

INPUTS = 3000


def test_a_damaged_file_gives_an_error_of_ours_soon_and_nothing_else():
    findings, peak = formats_fuzz.fuzz(INPUTS, 1)
    assert not findings, "\n".join(f"--seed {one.seed} {one.suffix}: {one.said}\n{one.traced}" for one in findings)
    assert peak < 1000  # MB, of which NumPy and the readers' packages are 80


def test_damage_guided_by_the_lines_that_are_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a file that goes wrong is kept
    findings, _ = formats_fuzz.fuzz(300, 1, guided=True)
    assert not findings, findings


def test_lines_of_the_readers_alone_are_seen(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"none")
    with formats_fuzz.Lines() as lines:
        formats_fuzz.examined(tmp_path / "a.npz", 1)
    assert {Path(name).name for name, _ in lines.reached} >= {"npz.py", "archive.py", "__init__.py"}
    assert {Path(name).parent.name for name, _ in lines.reached} == {"formats"}


def test_every_suffix_is_damaged_and_most_files_are_refused(tmp_path):
    valid = seeds(tmp_path)
    assert {suffix for suffix, _ in valid} <= set(SHAPED)
    drawn = [damaged(valid, number) for number in range(500)]
    assert {suffix for suffix, _ in drawn} == {suffix for suffix, _ in valid}
    assert drawn == [damaged(valid, number) for number in range(500)]
    unchanged = [one for one in drawn if one in valid]
    assert len(unchanged) < 25


def test_what_goes_wrong_is_found(tmp_path, monkeypatch):
    def read(path):
        return {".npz": lambda: 1 / 0, ".pt": lambda: (path.parent / "harmed").write_bytes(b"")}[path.suffix]()

    monkeypatch.setattr(formats_fuzz.formats, "inspect", read)
    for suffix, said in ((".npz", "ZeroDivisionError"), (".pt", "something was written")):
        path = tmp_path / suffix[1:] / f"7{suffix}"
        path.parent.mkdir()
        path.write_bytes(b"")
        finding = formats_fuzz.examined(path, 7)
        assert said in finding.said
        assert finding.seed == 7
