"""The contract of a coefficient rule: what it may look at, and what it makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensmerge.calibration import Calibration
from sensmerge.coefficients.table import Table


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at.

    tasks: K names, sorted. names: every tensor of the checkpoint.
    sensitivities: task -> tensor name -> S; None where no rule of the run asked for it.
    distances: metric -> g [K][K], rows and columns as `tasks`; None likewise. fisher: as sensitivities, of squared
    gradients. information: task -> number of bins -> I [L] (sensmerge/activations.py). magnitudes: task -> tensor name
    -> squared L2 norm of the task vector. fitted: blocks [K][L] and default [K] that were fitted through the merge.
    """

    tasks: Sequence[str]
    names: Sequence[str]
    sensitivities: Mapping[str, Mapping[str, float]] | None = None
    distances: Mapping[str, Sequence[Sequence[float]]] | None = None
    fisher: Mapping[str, Mapping[str, float]] | None = None
    information: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    magnitudes: Mapping[str, Mapping[str, float]] | None = None
    fitted: Mapping[str, Any] | None = None
    seed: int = 0


class Rule(ABC):
    """Evidence -> Table. A frozen dataclass of its own options; `needs` says which evidence must be computed."""

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of calibration data: subset of {"sensitivity", "alignment", "fisher", "information"}."""
        return frozenset()

    @property
    def weighs(self) -> bool:
        """Whether it looks at the magnitudes of the task vectors, which takes a pass over the weights and no data."""
        return False

    @property
    def fitted(self) -> Rule | None:
        """The rule, this one or inside it, whose coefficients are fitted through the merge (sensmerge/oracle)."""
        return None

    def check(self, tasks: Iterable[str]) -> None:  # noqa: B027, most rules are for any
        """Raise ValueError if the rule is not for experts of these tasks."""

    def calibrated(self, settings: Calibration) -> Calibration:
        """The settings that the evidence is computed under: the run's, but for what the rule's own definition says."""
        return settings

    @abstractmethod
    def table(self, evidence: Evidence) -> Table: ...
