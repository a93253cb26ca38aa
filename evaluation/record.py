"""What one benchmark says of one model: metrics with their uncertainty, and every item's outcome behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One item. `values` holds each metric's value on it; `output` what the model wrote (generative benchmarks);
    `groups` the parts of the benchmark it belongs to, such as its subject."""

    id: str
    values: dict[str, float]
    output: str | None = None
    gold: str | None = None
    note: str | None = None  # why it failed, that it was cut short, ...
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """Mean over `n` items and its standard error s / sqrt(n), s with n - 1 in the divisor (nan for one item)."""

    score: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Result:
    """A benchmark's metrics on one model; `primary` names the one that tables show, and that `groups` holds by part.

    prompts: item -> its prompt as the model read it, of the first items.
    """

    benchmark: str
    primary: str
    higher_is_better: bool
    metrics: dict[str, Metric]
    outcomes: list[Outcome]
    settings: dict[str, Any] = field(default_factory=dict)  # shots, versions, limits: what a reader needs to compare
    groups: dict[str, Metric] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> Metric:
        return self.metrics[self.primary]

    def to_json(self) -> dict[str, Any]:
        """Without `prompts` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "prompts" or value}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Result:
        return Result(
            **{
                **data,
                "metrics": {name: Metric(**metric) for name, metric in data["metrics"].items()},
                "groups": {name: Metric(**metric) for name, metric in data.get("groups", {}).items()},
                "outcomes": [
                    Outcome(**{**outcome, "groups": tuple(outcome.get("groups", ()))}) for outcome in data["outcomes"]
                ],
            }
        )


def mean(values: Sequence[float]) -> Metric:
    """Mean and standard error.

    >>> mean([0.0, 1.0, 1.0, 0.0])          # s^2 = 4 * 0.25 / 3, stderr = sqrt(1/3 / 4)
    Metric(score=0.5, stderr=0.28867513459481287, n=4)
    """
    n = len(values)
    if n == 0:
        raise ValueError("no outcomes: a score over zero items does not exist")
    score = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - score) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Metric(score, spread / math.sqrt(n), n)


def summarise(
    benchmark: str,
    primary: str,
    outcomes: Sequence[Outcome],
    *,
    higher_is_better: bool = True,
    settings: dict[str, Any] | None = None,
) -> Result:
    """Collect per-item outcomes into a Result; every item must carry the same metrics."""
    names = list(outcomes[0].values) if outcomes else []
    odd = next((o.id for o in outcomes if list(o.values) != names), None)
    if odd is not None:
        raise ValueError(f"{benchmark}: item {odd} carries other metrics than {names}")
    if primary not in names:
        raise ValueError(f"{benchmark}: primary metric {primary!r} is not among {names}")
    metrics = {name: mean([o.values[name] for o in outcomes]) for name in names}
    members: dict[str, list[float]] = {}
    for outcome in outcomes:
        for group in outcome.groups:
            members.setdefault(group, []).append(outcome.values[primary])
    groups = {name: mean(values) for name, values in sorted(members.items())}
    return Result(benchmark, primary, higher_is_better, metrics, list(outcomes), dict(settings or {}), groups)
