"""What each published reading of Sens-Merging does to the coefficients, from the profiles in committed records.

    python -m experiments report readings    # the first table of docs/method.md

Reads records alone, and no weights.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments import command_line
from sensmerge.coefficients import VARIANTS, Evidence, Rule, Sens, SensL2s, Table

PACK = "records.tar.xz"
FAMILIES = {  # column -> studies whose records hold its profiles
    "SmolLM2-135M": ("smollm2_135m_screen", "smollm2_135m_screen_calibration"),
    "tiny": ("tiny_seeds", "tiny_screen_calibration"),
}
OURS = {
    "`sens` at T = 0.1, its default before spread": Sens(temperature=0.1),
    "`sens` at spread 0.10": Sens(spread=0.10),
}
RAW = {  # distances as they are, at the published T
    f"raw distances, farther, T = {t:g} (inferred)": Sens(sign="farther", normalise="raw", temperature=t)
    for t in (1.0, 6.0)
}


@dataclass(frozen=True)
class Profile:
    """Evidence of one calibration: alpha task -> [L], g by metric [K][K]. loss: whose gradient alpha is made of."""

    loss: str
    alpha: Mapping[str, Sequence[float]]
    distances: Mapping[str, Any]

    def evidence(self, tasks: Sequence[str]) -> Evidence:
        """Of these experts alone. A profile is its own profile, so alpha stands for the sensitivities."""
        names = [f"layers.{block}.weight" for block in range(len(self.alpha[tasks[0]]))]
        alpha = {task: dict(zip(names, self.alpha[task], strict=True)) for task in tasks}
        at = [sorted(self.alpha).index(task) for task in tasks]
        distances = {metric: [[g[i][j] for j in at] for i in at] for metric, g in self.distances.items()}
        return Evidence(tasks, names, alpha, distances)


def profiles(pack: Path) -> list[Profile]:
    """Every calibration that the pack's records have both profiles and distances of, once each."""
    found = {}
    with tarfile.open(pack, "r:xz") as tar:
        for member in tar:
            if not member.name.endswith("/record.json"):
                continue
            file = tar.extractfile(member)
            assert file
            record = json.load(file)
            made = record["coefficients"]
            if made and made["alpha"] and made["distances"]:
                loss = record["identity"]["calibration"]["loss"]
                key = json.dumps([loss, record["digests"]["samples"], record["digests"]["experts"]], sort_keys=True)
                found.setdefault(key, Profile(loss, made["alpha"], made["distances"]))
    return [found[key] for key in sorted(found)]


def tables(rule: Rule, known: Sequence[Profile]) -> Iterator[Table]:
    """What the rule makes of every profile of its loss. Groups outside the blocks are left out: records do not keep
    their sensitivities."""
    for profile in known:
        if profile.loss == (getattr(rule, "loss", None) or "answer"):
            yield rule.table(profile.evidence(sorted(profile.alpha)))


def of_pairs(known: Sequence[Profile]) -> Iterator[Table]:
    """sens_l2s at both ends of a, where it moves most, of every two of the experts."""
    for profile in known:
        for tasks in combinations(sorted(profile.alpha), 2):
            for a in (0.0, 1.0):
                yield SensL2s(a=a).table(profile.evidence(tasks))


def rows(known: Sequence[Profile]) -> dict[str, str]:
    """Reading -> "smallest .. largest K sigma, its spread, the first block's share", each as a range over profiles."""
    answers = [profile for profile in known if profile.loss == "answer"]
    found = {
        "`sens_words`": list(tables(VARIANTS["sens_words"], known)),
        "`sens_rcp`": list(tables(VARIANTS["sens_rcp"], known)),
        "`sens_l2s`, a = 0 or 1": list(of_pairs(answers)),
        **{name: list(tables(rule, known)) for name, rule in {**RAW, **OURS}.items()},
    }
    return {name: _row(made) for name, made in found.items()}


def _row(made: Sequence[Table]) -> str:
    spans = [table.summary() for table in made]
    low, high = min(span["min"] for span in spans), max(span["max"] for span in spans)
    return " | ".join(
        [f"{low:.3f} .. {high:.3f}", *(_range([span[key] for span in spans]) for key in ("sd", "first_block"))]
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} .. {high}"


def text(results: Path) -> str:
    """Markdown. FileNotFoundError for a study whose pack is not below `results`."""
    known = {
        column: [one for study in studies for one in profiles(results / study / PACK)]
        for column, studies in FAMILIES.items()
    }
    blocks = {column: len(next(iter(found[0].alpha.values()))) for column, found in known.items()}
    columns = [
        title for column in known for title in (f"{column}, {blocks[column]} blocks: K sigma", "spread", "in block 0")
    ]
    made = {column: rows(found) for column, found in known.items()}
    lines = [f"| {name} | {' | '.join(made[column][name] for column in known)} |" for name in made["tiny"]]
    return "\n".join([f"| reading | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *lines])


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    parser = command_line.parser("report readings", __doc__, "--results results")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where packs of records are")
    sys.stdout.write(text(parser.parse_args(arguments).results) + "\n")
    return 0
