"""What benches have in common: whose turn it is, what is counted, ratios by hand, processes that are watched."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from experiments.bench import rounds
from experiments.bench.rounds import Process, in_turns, processes_in_turns, run_process


def _python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.mark.parametrize(("cold", "order"), [(False, "ba ab ba ab"), (True, "ab ba ab")])
def test_sides_take_turns_and_the_first_round_is_dropped(cold: bool, order: str) -> None:
    """Each pass returns its place in the order of all."""
    ran: list[str] = []

    def side(name: str) -> int:
        ran.append(name)
        return len(ran)

    results = in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 3, cold=cold)
    assert ran == list(order.replace(" ", ""))
    assert results == ({"a": [1, 4, 5], "b": [2, 3, 6]} if cold else {"a": [3, 6, 7], "b": [4, 5, 8]})


def test_ratios_are_taken_round_by_round() -> None:
    """Ratios 1, 2 and 9, whose median is 2; of the medians, 4 and 3, it would be 4/3."""
    ours, theirs = [3.0, 4.0, 9.0], [3.0, 2.0, 1.0]
    assert rounds.ratios(ours, theirs) == [1.0, 2.0, 9.0]
    assert rounds.ratio(ours, theirs) == 2.0
    assert rounds.spread(ours) == "4.00 (3.00 .. 9.00)"
    with pytest.raises(ValueError, match="shorter"):
        rounds.ratio(ours, theirs[:2])


def test_a_process_tells_seconds_and_memory(tmp_path: Path) -> None:
    held = "x = bytearray(10**8); import time; time.sleep(0.3); del x; print('noise')"
    done = run_process(
        _python(f"{held}; import os; print(os.environ['A'], os.getcwd()); print(0.25)"),
        cwd=tmp_path,
        environment={"A": "b"},
    )
    assert done.output.splitlines() == ["noise", f"b {tmp_path}", "0.25"]
    assert done.seconds == 0.25
    assert done.wall > 0.3
    assert done.resident > done.anonymous > 9e7
    assert done.file > 0


@pytest.mark.parametrize(
    ("end", "how"), [("sys.exit(3)", "3:"), ("os.kill(os.getpid(), 9)", "-9 .killed: out of memory")]
)
def test_a_side_that_fails_ends_the_bench_with_its_output(end: str, how: str) -> None:
    text = f"import os, sys; print('said', flush=True); print('broken', file=sys.stderr, flush=True); {end}"
    ran: list[str] = []
    with pytest.raises(RuntimeError, match=f"(?s)ended with {how}.*\nsaid\nbroken\n") as error:
        processes_in_turns({"never": _python("1"), "bad": _python(text)}, 1, before=lambda: ran.append("pass"))
    assert shlex.join(_python(text)) in str(error.value)
    assert ran == ["pass"]  # "bad" came first, in the round that is thrown away, and nothing came after it


def test_the_head_names_command_machine_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "version", lambda package: f"of {package}")
    monkeypatch.setattr(rounds.provenance, "processor", lambda: "CPU")
    command, facts, empty, columns, last = rounds.head("bench merge", ["--a", "b c"], ["fact"], "| a |").split("\n")
    assert command == "`python -m experiments bench merge --a 'b c'`"
    assert facts.split(", ")[1] == "CPU"
    assert facts.endswith("cores, fact, torch of torch")
    assert (empty, columns, last) == ("", "| a |", "")


def test_a_side_is_the_benchs_own_command() -> None:
    command = rounds.side_command("merge", ["--rounds", "2"], "floor")
    assert command[1:] == ["-m", "experiments", "bench", "merge", "--rounds", "2", "--side", "floor"]
    assert str(Process("a\n0.5\n", 1.0, 0, 3 * 2**20)) == "0.50 s, 3 MiB anonymous"
