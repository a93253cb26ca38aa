"""One run, frozen: everything that determines its numbers, and where it reads and writes."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf, SkipValidation
from pydantic.dataclasses import dataclass

from evaluation.batches import ON_CPU
from evaluation.generation import choice
from evaluation.suites import Suite
from experiments.families import Family
from experiments.provenance import data_digests
from experiments.run.record import RECORD_JSON
from experiments.tracking.settings import Tracking
from sensmerge import models
from sensmerge.calibration import Calibration
from sensmerge.coefficients import Rule
from sensmerge.mergers import Merger
from sensmerge.onebit import OneBitMerge
from sensmerge.store import describe, digest

# Names become directories: one part of a path, none that begins with a dot.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+=,@-]{0,99}$"


@dataclass(frozen=True, config={"extra": "forbid"})
class Member:
    """No merging: evaluate one member of the family as it is. member: "base" or a task's name (its expert)."""

    member: str = "base"


@dataclass(frozen=True, config={"extra": "forbid"})
class Evaluation:
    """How models are held while they are evaluated; each of these can move a score, so each is part of the run.

    batch_size: sequences at once; "auto" is 64 on a CPU, and as many as the free memory holds elsewhere
    (evaluation/batches.py). max_length: tokens (None: what the model allows).
    dtype: "auto" is fp32 on a CPU, the checkpoint's own dtype elsewhere.
    generation: what continues prompts (evaluation/generation); "auto" is the library.
    """

    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    max_length: int | None = Field(default=None, gt=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    generation: choice.Way = dataclasses.field(default="auto", metadata={"before": "library"})

    def on(self, device: str) -> Evaluation:
        """With what "auto" is: the loop of generation; on a kind of device the batch size, where that is a number."""
        size = ON_CPU if (self.batch_size, device) == ("auto", "cpu") else self.batch_size
        return dataclasses.replace(self, batch_size=size, generation=choice.resolved(self.generation))

    def dtype_on(self, device: str) -> str:
        """`dtype` with "auto" resolved on a kind of device ("cpu", "cuda"), so that results are keyed by the choice."""
        return "float32" if self.dtype == "auto" and device == "cpu" else self.dtype


@dataclass(frozen=True, config={"extra": "forbid"})
class Output:
    """Where things lie; none of it determines a number.

    runs: one directory per run. cache: built families and stage results. data: directory of local data sets in the
    layout of docs/data.md (None: the Hugging Face hub). checkpoint: also write the merged model into the run directory.
    """

    runs: Path = Path("results/runs")
    cache: Path = Path(".cache")
    data: Path | None = None
    checkpoint: bool = False


@dataclass(frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class RunSpec:
    """A run.

    references: also evaluate the base and every expert (once per suite), without which no merge's score means anything.
    threads: of torch; None leaves it to torch.
    plan: only say what the run would take; "deep" also reads the members that are here.
    validation: what an oracle's coefficients are fitted on; not looked at by other rules.
    labels, study, overrides: names of the chosen yamls, of the experiment, and what the command line said; they name
        things in directories and tables.
    """

    model: SkipValidation[Family]
    merger: InstanceOf[Merger] | Member
    scaling: InstanceOf[Rule]
    calibration: Calibration
    suite: Suite
    evaluation: Evaluation
    tracking: Tracking
    output: Output
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    threads: int | None = Field(default=None, gt=0, le=1024)
    references: bool = True
    study: str | None = Field(default=None, pattern=NAME)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    plan: Literal[False, True, "deep"] = False
    validation: Suite | None = None

    def identity(self) -> dict[str, Any]:
        """What determines the numbers, and nothing else: a rule that looks at no data does not depend on calibration,
        and a member of the family depends on no seed. Local data count by their content, not by where they lie; the
        kind of device counts because "auto" dtypes and sums depend on it."""
        device = models.device_kind(self.device)
        parts: dict[str, Any] = {
            "model": self.model,
            "merger": self.merger,
            "suite": self.suite,
            "evaluation": self.evaluation.on(device),
            "device": device,
        }
        if not self.model.brings_data:
            parts["suite_data"] = data_digests(self.suite, self.output.data)
        if isinstance(self.merger, Merger):
            parts |= {"seed": self.seed, "scaling": self.scaling}
            if self.scaling.fitted is not None:
                parts["validation"] = self.validation
                if not self.model.brings_data and self.validation is not None:
                    parts["validation_data"] = data_digests(self.validation, self.output.data)
            if self.draws:
                parts["calibration"] = self.calibration
                if not self.model.brings_data:
                    parts["calibration_data"] = data_digests(dict(self.model.calibration), self.output.data)
        return describe(parts)

    @cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of the identity: names the run directory and the W&B run."""
        return digest(self.identity())[:12]

    @property
    def title(self) -> str:
        """A readable name: tiny-ties-sens-s0, or tiny-base for a member of the family."""
        model = self.labels.get("model", self.model.name)
        if isinstance(self.merger, Member):
            return f"{model}-{self.merger.member}"
        merger = self.labels.get("merger", type(self.merger).__name__.lower())
        scaling = self.labels.get("scaling", type(self.scaling).__name__.lower())
        return f"{model}-{merger}-{scaling}-s{self.seed}"

    def choices(self) -> str:
        """What will be run, settings included, for the first lines of a log."""
        data = self.calibration
        calibrated = f"calibration {data.samples} samples a task of {data.max_length} tokens at most, {data.dtype}"
        parts = [
            f"model {self.labels.get('model', self.model.name)}",
            f"merger {_settings(self.merger)}",
            *([f"scaling {_settings(self.scaling)}"] if isinstance(self.merger, Merger) else []),
            *([calibrated] if self.draws else []),
            f"suite {self.suite.name} ({len(self.suite.benchmarks)} benchmarks)",
            f"evaluation {self.evaluation.dtype_on(models.device_kind(self.device))}, "
            f"batches {self.evaluation.on(models.device_kind(self.device)).batch_size}",
            f"device {models.device_kind(self.device)}",
        ]
        return " · ".join(parts)

    @property
    def draws(self) -> bool:
        """Whether anything looks at calibration samples."""
        return isinstance(self.merger, Merger) and (
            bool(self.scaling.needs) or self.routed or bool({"grams", "activity"} & self.merger.told)
        )

    @property
    def routed(self) -> bool:
        """Whether each prompt is answered by a merge of its own."""
        return isinstance(self.merger, OneBitMerge) and self.merger.routed

    @property
    def directory(self) -> Path:
        return self.output.runs / f"{self.title}-{self.run_id}"

    @property
    def record_path(self) -> Path:
        """What the run writes last."""
        return self.directory / RECORD_JSON

    def reference(self, member: str) -> RunSpec:
        """The run that evaluates one member of the same family on the same suite."""
        labels = {**self.labels, "merger": "member", "scaling": member}
        return dataclasses.replace(
            self, merger=Member(member), seed=0, references=False, labels=labels, overrides=(), plan=False
        )


def _settings(part: Any) -> str:
    """
    >>> _settings(Member("math")), _settings(Evaluation())  # what is None is not set
    ('member(member=math)', 'evaluation(batch_size=auto, dtype=auto, generation=auto)')
    """
    named = ((field.name, getattr(part, field.name)) for field in dataclasses.fields(part))
    given = ((name, value) for name, value in named if value is not None)
    told = [f"{name}={_settings(value) if dataclasses.is_dataclass(value) else value}" for name, value in given]
    return f"{type(part).__name__.lower()}({', '.join(told)})"
