"""The contenders: backends through their layers, and files of peers that are found by their path."""

from pathlib import Path
from typing import Any

import pytest
from bench_examples import PEERS, SMALL
from multirnn_bench import inputs, verify
from multirnn_bench.contenders import find
from multirnn_bench.ours import NoImplementation, Ours

import multirnn as mr
from multirnn.errors import InvalidData


class Plain:
    """A backend of somebody else, who does not know of benchmarks."""

    name, differentiable = "plain", True

    def __getattr__(self, name: str) -> Any:
        if name in ("build", "refuses", "read", "versions"):
            return getattr(mr.backend("numpy"), name)
        raise AttributeError(name)


@pytest.mark.parametrize("mode", ["inference", "gradients", "streaming"])
def test_any_backend_is_a_contender_through_its_layer(mode: str) -> None:
    contender = Ours(Plain(), "native", "plain")
    work = inputs.draw(SMALL, mode)
    assert contender.refuses(work) is None
    prepared = contender.prepare(work, 1)
    found = verify.answer(work, prepared.result())
    assert verify.error(work, found, verify.expected(work))[0] < verify.allowed(SMALL.spec)
    prepared.call()
    assert "NumPy to NumPy" in prepared.plan


def test_what_a_backend_cannot_do_is_refused() -> None:
    contender = Ours(Plain(), "native", "plain")
    assert "no `prepare` to reach them" in str(contender.refuses(inputs.draw(SMALL, "training")))
    Plain.differentiable = False
    try:
        assert contender.refuses(inputs.draw(SMALL, "gradients")) == "it is for inference only"
    finally:
        Plain.differentiable = True


def test_an_implementation_that_a_backend_lacks_is_absent() -> None:
    with pytest.raises(NoImplementation):
        Ours(Plain(), "by hand", "plain by hand")


def test_contenders_are_found_by_name_and_none_is_loaded() -> None:
    names = [source.name for source in find(["numpy", "torch"], [PEERS])]
    assert names[:6] == ["numpy", "numpy fast", "numpy frozen", "torch", "torch fast", "torch frozen"]
    assert "killed late" in names[6:]
    assert [source.name for source in find(["numpy"], [PEERS], ["numpy*", "right"])] == [*names[:3], "right"]
    with pytest.raises(mr.InvalidCall, match="no contender is named 'rihgt'"):
        find(["numpy"], [PEERS], ["rihgt"])
    with pytest.raises(mr.InvalidCall, match="two contenders are named 'right'"):
        find(["numpy"], [PEERS, PEERS])


def test_what_is_no_file_of_peers_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no file or folder of peers"):
        find(["numpy"], [tmp_path / "none"])
    (tmp_path / "nothing_in_it.py").write_text("")
    with pytest.raises(InvalidData, match="needs CONTENDERS"):
        find(["numpy"], [tmp_path])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def x(:", r"broken\.py cannot be loaded: SyntaxError"),
        ("import a_framework_that_nobody_has", r"broken\.py cannot be loaded: ModuleNotFoundError: No module named"),
        ("1 / 0", r"broken\.py cannot be loaded: ZeroDivisionError"),
        ("CONTENDERS = (1,)", r"broken\.py: 1 in CONTENDERS is no contender: it has no name, kind"),
    ],
)
def test_a_broken_file_of_peers_is_told_with_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    for _ in range(2):  # what broke is not taken for loaded the second time
        with pytest.raises(InvalidData, match=sentence):
            find(["numpy"], [tmp_path])


def test_files_of_one_name_in_two_folders_are_two_and_share_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "_named.py").write_text(f"NAME = {name!r}\n")
        lines = "from ._named import NAME\nclass Peer:\n  name, kind = NAME, 'peer'\n  versions = refuses = prepare = None\n"
        (folder / "peer.py").write_text(lines + "CONTENDERS = (Peer(),)\n")
    assert [source.name for source in find([], [tmp_path / "one", tmp_path / "other"])] == ["one", "other"]
