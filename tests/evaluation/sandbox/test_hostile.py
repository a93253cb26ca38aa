"""Hostile programs: none passes, reads, writes, deletes, connects or survives in a layer that claims so; no neighbour
is lost. What the weak layers let through is what SECURITY.md says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile_machine import BREAKOUTS, GOT_THROUGH, HEAD, HEAD_MARK, RESOURCES
from hostile_machine import NEIGHBOUR as REACHES
from hostile_verdicts import BUILTIN_NAMES, ENDS_EARLY, FALSE_PASSES, NEIGHBOUR, TESTS, WALKS

from evaluation.sandbox import execution, layers, trial
from evaluation.sandbox.execution import Limits, Program, Verdict, run
from evaluation.sandbox.layers import LAYERS, Layer
from evaluation.sandbox.trial import best, tried

LIMITS = Limits(seconds=10, cpu_seconds=1, memory=256 << 20)
BY_NAME = {layer.name: layer for layer in LAYERS}
PAGE = Path(__file__).resolve().parents[3] / "SECURITY.md"
OTHER_PYTHON = Path("/usr/bin/python3")  # readable for every user, as the one of this environment may not be
SHARED = [Path(folder, f"sandbox-hostile-{os.getpid()}") for folder in ("/tmp", "/dev/shm")]  # of this process alone
each_hook = pytest.mark.parametrize("hook", [True, False], ids=["hook", "no-hook"])


@dataclass
class Bait:
    """What a program could reach. seen(): what has been made, lost or changed, and who has called."""

    place: Path
    inet: socket.socket
    unix: socket.socket

    def head(self) -> str:
        port, name = self.inet.getsockname()[1], self.unix.getsockname().decode()
        return HEAD.format(place=str(self.place), port=port, unix=name, pid=os.getpid())

    def seen(self) -> list[str]:
        found = [] if (self.place / "secret").read_text() == "sesame" else ["secret has changed"]
        found += sorted({"secret", "victim", "empty"} ^ {one.name for one in self.place.iterdir()})
        found += [str(path) for path in SHARED if path.exists()]
        for listening in (self.inet, self.unix):
            with contextlib.suppress(BlockingIOError):
                listening.accept()[0].close()
                found.append("a call")
        return found


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bait]:
    monkeypatch.setenv("SANDBOX_TEST_KEY", "sesame")
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o1777)
    (place / "empty").mkdir()
    for name in ("secret", "victim"):
        (place / name).write_text("sesame")
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as unix:
        inet.bind(("127.0.0.1", 0))
        unix.bind(f"\0sandbox-hostile-{os.getpid()}")
        for one in (inet, unix):
            one.listen(64)
            one.setblocking(False)
        yield Bait(place, inet, unix)
    for path in SHARED:
        path.unlink(missing_ok=True)


@pytest.fixture(params=["bubblewrap", "namespaces"])
def walled(request: pytest.FixtureRequest) -> Layer:
    layer = BY_NAME[request.param]
    if fault := tried(layer).fault:
        pytest.skip(f"no layer {layer.name} here: {fault}")
    return layer


def among_neighbours(
    sources: dict[str, str], layer: Layer, *, tests: str, names: tuple[str, ...], good: str, hook: bool
) -> dict[str, Verdict]:
    """Verdicts by name; a right program goes before each and has to pass."""
    programs = []
    for name, source in sources.items():
        programs += [Program("", f"{good}# before {name}\n", tests, names), Program(name, source, tests, names)]
    verdicts = run(programs, layer, workers=2, limits=LIMITS, hook=hook)
    lost = [(p.source, v) for p, v in zip(programs, verdicts, strict=True) if not p.id and not v.passed]
    assert lost == []
    return {p.id: v for p, v in zip(programs, verdicts, strict=True) if p.id}


def passing(verdicts: dict[str, Verdict]) -> list[str]:
    return [name for name, verdict in verdicts.items() if verdict.passed]


def reaching(sources: dict[str, str], layer: Layer, bait: Bait, *, hook: bool) -> list[str]:
    """The programs that got through, by their own word, which is checked against SECRET."""
    whole = {name: source.replace(HEAD_MARK, bait.head()) for name, source in sources.items()}
    tests = GOT_THROUGH.format(secret="sesame")
    return passing(among_neighbours(whole, layer, tests=tests, names=("attempt",), good=REACHES, hook=hook))


def descendants() -> set[int]:
    """That run, of this process, which adopts what its workers leave behind (see `adopting`)."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture
def adopting() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    before = descendants()
    yield
    deadline = time.monotonic() + 5  # the kernel takes moments to end what was killed
    while (left := descendants() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    libc.prctl(36, 0, 0, 0, 0)
    assert left == set()


def page_lists(heading: str) -> set[str]:
    """The names in the list under a heading of SECURITY.md."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition(f"### {heading}\n")[2].partition("\n#")[0]
    return set(re.findall(r"`((?:read|write|network|process|call): [^`]+)`", section))


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(FALSE_PASSES) + len(ENDS_EARLY) + len(BUILTIN_NAMES) >= 80
    assert len(BREAKOUTS) + len(RESOURCES) >= 120


def test_some_of_each_kind_in_the_layer_that_is_used(bait: Bait, adopting: None) -> None:
    layer = best()
    chosen = dict(list(FALSE_PASSES.items())[::6])
    verdicts = among_neighbours(chosen, layer, tests=TESTS, names=("add",), good=NEIGHBOUR, hook=True)
    assert passing(verdicts) == []
    verdicts = among_neighbours(ENDS_EARLY, layer, tests=WALKS, names=("add",), good=NEIGHBOUR, hook=True)
    assert passing(verdicts) == []
    assert reaching(dict(list(BREAKOUTS.items())[::9]), layer, bait, hook=True) == []
    assert bait.seen() == []


@pytest.mark.slow
@each_hook
@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_passes_that_does_not_add(name: str, hook: bool) -> None:
    if fault := tried(BY_NAME[name]).fault:
        pytest.skip(f"no layer {name} here: {fault}")
    verdicts = among_neighbours(FALSE_PASSES, BY_NAME[name], tests=TESTS, names=("add",), good=NEIGHBOUR, hook=hook)
    assert passing(verdicts) == []
    verdicts = among_neighbours(ENDS_EARLY, BY_NAME[name], tests=WALKS, names=("add",), good=NEIGHBOUR, hook=hook)
    assert passing(verdicts) == []
    programs = [Program(n, source, test, ("add",), "import math") for n, (source, test) in BUILTIN_NAMES.items()]
    every = "\n".join(dict.fromkeys(test for _, test in BUILTIN_NAMES.values()))
    right = Program("right", NEIGHBOUR, every, ("add",), "import math")
    *others, last = run([*programs, right], BY_NAME[name], workers=2, limits=LIMITS, hook=hook)
    assert [p.id for p, v in zip(programs, others, strict=True) if v.passed] == []
    assert last.passed, last


@pytest.mark.slow
@each_hook
def test_nothing_gets_through_walls(walled: Layer, bait: Bait, hook: bool, adopting: None) -> None:
    assert reaching(BREAKOUTS | RESOURCES, walled, bait, hook=hook) == []
    assert bait.seen() == []


@pytest.fixture(params=[True, False], ids=["landlock", "no-landlock"])
def rules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not layers.landlocked():
        pytest.skip("this kernel has no Landlock")
    for module in (layers, trial):
        monkeypatch.setattr(module, "landlocked", lambda: request.param)
    return request.param


def told(layer: str, *, rules: bool, hook: bool) -> set[str]:
    heading = "limits and uid" if rules else f"{layer}, no Landlock" + ("" if hook else ", the hook got round")
    assert page_lists(heading)
    return page_lists(heading)


@pytest.mark.slow
@each_hook
def test_the_weak_layer_lets_through_what_the_page_says(bait: Bait, rules: bool, hook: bool, adopting: None) -> None:
    got = set(reaching(BREAKOUTS | RESOURCES, BY_NAME["limits"], bait, hook=hook))
    assert got - told("limits", rules=rules, hook=hook) == set()
    assert any(name.startswith("read") for name in got)  # not a wall: if it were one, the page should say so
    assert not rules or bait.seen() == []


@pytest.mark.slow
@each_hook
def test_a_user_of_its_own(
    bait: Bait, rules: bool, hook: bool, adopting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() or not OTHER_PYTHON.exists():
        pytest.skip("needs root, and a Python that every user can read")
    monkeypatch.setattr(execution, "interpreter", lambda: os.path.realpath(OTHER_PYTHON))
    layer = BY_NAME["uid"]
    if fault := tried.__wrapped__(layer).fault:
        pytest.skip(f"no layer uid here: {fault}")
    got = set(reaching(BREAKOUTS | RESOURCES, layer, bait, hook=hook))
    assert got - told("uid", rules=rules, hook=hook) == set()
    assert not rules or bait.seen() == []
