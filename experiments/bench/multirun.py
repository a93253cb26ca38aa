"""What a sweep costs beyond its merges and evaluations: twenty settings that nobody has run, their calibration kept.

    python -m experiments bench multirun --cache .cache [--points 20] [--launchers local] [--tracking none]

First one more point of the sweep runs by itself: it builds the family where the cache lacks it, evaluates base and
experts, calibrates. Then the sweep, through `run.py -m`, is timed as one whole command, and divided by what its runs
say they spent merging and evaluating. Runs and kept stages go to a directory of their own, so that no point is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import command_line
from experiments.analysis import records
from experiments.bench import rounds
from experiments.sweeps.code_state import ROOT

TARGET = 1.1  # times what merging and evaluating takes
COLUMNS = """\
| launcher | points | whole command, s | merges and evaluations, s | rest of its runs, s | ratio | <= 1.1 |
|---|--:|--:|--:|--:|--:|---|"""


@dataclass(frozen=True)
class Sweep:
    """wall: seconds of the whole command. work: of merging and evaluating, summed over its runs. rest: what else its
    runs timed, such as looking up what calibration had kept."""

    launcher: str
    points: int
    wall: float
    work: float
    rest: float

    def row(self) -> str:
        ratio = self.wall / self.work
        return (
            f"| {self.launcher} | {self.points} | {self.wall:.1f} | {self.work:.1f} | {self.rest:.1f} | {ratio:.3f} "
            f"| {'yes' if ratio <= TARGET else 'no'} |"
        )


def measure(launcher: str, points: int, cache: Path, overrides: Sequence[str]) -> Sweep:
    """One sweep by `launcher`. RuntimeError if its runs are not all there, or one did not find its calibration kept."""
    with tempfile.TemporaryDirectory(prefix="multirun-") as scratch:
        runs, own = Path(scratch, "runs"), Path(scratch, "cache")
        own.mkdir()
        (own / "families").symlink_to(cache.resolve() / "families")
        words = [f"output.runs={runs}", f"output.cache={own}", "scaling=sens", *overrides]
        _call(*words, "scaling.temperature=1", "study=warm")
        temperatures = ",".join(f"{0.1 + point / 100:.2f}" for point in range(points))
        wall = _call("-m", f"launcher={launcher}", *words, f"scaling.temperature={temperatures}", "study=sweep")
        finished = [run.measured for run in records.load(runs) if "sweep" in run.studies]
    if len(finished) != points:
        raise RuntimeError(f"{launcher}: {len(finished)} records of {points} points")
    if any(measured.stages["sensitivity"].computed for measured in finished):
        raise RuntimeError(f"{launcher}: calibration was computed again")
    work = sum(measured.seconds["evaluate"] + measured.seconds.get("write", 0.0) for measured in finished)
    return Sweep(launcher, points, wall, work, sum(sum(measured.seconds.values()) for measured in finished) - work)


def _call(*words: str) -> float:
    return rounds.run_process([sys.executable, "run.py", *words], cwd=ROOT).wall


def main(arguments: list[str]) -> int:
    """Print a markdown table; 0 whatever it says, for a busy machine is no defect."""
    given = _parser().parse_args(arguments)
    (given.cache / "families").mkdir(parents=True, exist_ok=True)
    words = [f"model={given.model}", f"suite={given.suite}", f"merger={given.merger}", f"tracking={given.tracking}"]
    facts = [" ".join([*words, "scaling=sens"])]
    sys.stdout.write(rounds.head("bench multirun", arguments, facts, COLUMNS, packages=("torch", "transformers")))
    for launcher in given.launchers.split(","):
        sys.stdout.write(measure(launcher, given.points, given.cache, [*words, *given.override]).row() + "\n")
        sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("bench multirun", __doc__, "--points 20 threads=1", usage="[options] [override ...]")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where families lie (default: %(default)s)")
    parser.add_argument("--points", type=int, default=20, help="runs of the sweep (default: %(default)s)")
    parser.add_argument("--launchers", default="local", help="of local,local_parallel (default: %(default)s)")
    parser.add_argument("--model", default="tiny", help="default: %(default)s")
    parser.add_argument("--suite", default="tiny", help="default: %(default)s")
    parser.add_argument("--merger", default="ties", help="default: %(default)s")
    parser.add_argument("--tracking", default="none", help="default: %(default)s")
    parser.add_argument("override", nargs="*", help="more of run.py's overrides, for every run: threads=1")
    return parser
