"""What a resolved run will cost and whether it fits here, before anything is trained, downloaded or read.

    python run.py model=... merger=... plan=true
    python run.py model=... merger=... plan=deep        # also reads members that are here, and asks the hub of others

Tensors are known by headers (headers.py), their cost by arithmetic (costs.py, workload.py), and time by what this
machine does in a second (hardware.py). A member that is not here yet is taken to have its base's tensors, as the merge
demands. A base that is not here is planned from its published shape (sensmerge/checkpoints/shapes.py), without a
file or a network; of one that is neither here nor published, and that the hub tells nothing of, nothing is planned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from experiments.families import Located
from experiments.planning import hardware, headers
from experiments.planning.costs import Disk, Stage
from experiments.planning.hardware import Machine
from experiments.planning.headers import Headers, Lineage
from experiments.planning.workload import Workload
from experiments.run import preflight
from experiments.run.spec import RunSpec
from sensmerge import memory, models
from sensmerge.adapters import FactorMerger
from sensmerge.checkpoints.reader import Entry
from sensmerge.distances.survey import survey
from sensmerge.family.members import Models, line_up, opened
from sensmerge.mergers.prism import DESTRUCTIVE

_NOTHING = "nothing more can be told before the base is here"
_PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))


@dataclass(frozen=True)
class Plan:
    """stages, disks, machine: empty where nothing is known of the base. refused: settings, vocabularies, a line each.
    gpu: bytes that a GPU would be asked for, where the weights are not here and the machine has none; else None.
    relief: stage -> what on the command line would lower its memory; a stage that is not there has no such setting."""

    title: str
    members: tuple[Lineage, ...]
    stages: tuple[Stage, ...] = ()
    disks: tuple[Disk, ...] = ()
    machine: Machine | None = None
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    gpu: int | None = None
    relief: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def host(self) -> int:
        """Peak of anonymous memory of the process, in bytes."""
        return max((stage.host for stage in self.stages), default=0) + (self.machine.own if self.machine else 0)

    @property
    def device(self) -> int:
        return max((stage.device for stage in self.stages), default=0)

    @property
    def seconds(self) -> float:
        """Of what can be told: evaluation is not in it."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def slurm(self) -> str:
        """Overrides for conf/launcher/slurm.yaml: a quarter more memory, twice the time in steps of ten minutes."""
        assert self.machine is not None
        memory, minutes = math.ceil(1.25 * self.host / 2**30), 10 * max(1, math.ceil(2 * self.seconds / 600))
        return (
            f"launcher=slurm hydra.launcher.mem_gb={memory} hydra.launcher.timeout_min={minutes} "
            f"hydra.launcher.gpus_per_node={int(self.machine.device != 'cpu')} "
            f"hydra.launcher.cpus_per_task={self.machine.threads}"
        )

    def problems(self) -> list[str]:
        """What does not fit, each with what to do."""
        found, here = list(self.refused), self.machine
        if here is None:
            return found
        for what, need, has, limit in (
            ("memory", self.host, here.memory, here.limit),
            ("device memory", self.device, here.device_memory, f"free on {here.device}"),
        ):
            if has is not None and need > has:
                worst = max(self.stages, key=lambda s, what=what: s.host if what == "memory" else s.device).name
                found.append(
                    f"{what}: {worst} needs {si(need, 'B')}, {si(has, 'B')} are there ({limit}); take a machine with "
                    + " or ".join(filter(None, ["more", self.relief.get(worst)]))
                )
        for disk in self.disks:
            if (need := sum(disk.needs.values())) > disk.free:
                found.append(
                    f"disk: {si(need, 'B')} are needed below {disk.place} ({_uses(disk)}), {si(disk.free, 'B')} are "
                    "free; free some, or choose another output.runs or output.cache"
                )
        return found

    def check(self) -> None:
        """ValueError with one line for everything that does not fit."""
        if found := self.problems():
            raise ValueError(f"{self.title} cannot run:\n" + "\n".join(f"  - {problem}" for problem in found))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, with the totals and what does not fit."""
        totals = {"host": self.host, "device": self.device, "seconds": self.seconds}
        slurm = self.slurm() if self.machine else None
        return {**dataclasses.asdict(self), **totals, "slurm": slurm, "problems": self.problems()}

    def text(self) -> str:
        """For a terminal: a table of the members and what is odd about them, one of the stages, what they rest on."""
        rows = [["member", "tensors", "parameters", "size", "dtype", "where"]]
        for one in self.members:
            sizes = [str(one.tensors or "-"), si(one.parameters), si(one.nbytes, "B")]
            rows.append([one.member, *sizes, " ".join(one.dtypes) or "-", one.note])
        out = [f"plan of {self.title}", *_table(rows)]
        out += [f"  ! {warning}" for one in self.members for warning in one.warnings()]
        for one in self.members:
            if near := list(one.distances.values()):
                out.append(f"  {one.member}: {min(near):.3f} to {max(near):.3f} of the base's norm away from it")
        out += self._costs(self.machine) if self.machine else []
        return "\n".join([*out, *(f"  {note}" for note in self.notes)])

    def _costs(self, here: Machine) -> list[str]:
        rows = [["stage", "reads", "writes", "memory", "device", "FLOP", "at least", ""]]
        for stage in self.stages:
            sizes = [si(size, "B") for size in (stage.read, stage.write, stage.host, stage.device)]
            rows.append([stage.name, *sizes, si(stage.flops), duration(stage.seconds), stage.note])
        out = ["", *_table(rows), ""]
        out.append(f"  memory: {si(self.host, 'B')} at the peak, {si(here.memory, 'B')} there ({here.limit})")
        if here.device_memory is not None:
            out.append(f"  {here.device}: {si(self.device, 'B')} at the peak, {si(here.device_memory, 'B')} free")
        if self.gpu is not None:
            out.append(f"  a GPU (device=cuda): {si(self.gpu, 'B')} at the peak, where it has them")
        for disk in self.disks:
            out.append(f"  disk of {disk.place}: {_uses(disk)}; {si(disk.free, 'B')} free")
        speed = (
            f"{si(here.flops, 'FLOP/s')}, reads {si(here.reading, 'B/s')}" if here.flops else "not here, so no times"
        )
        out.append(f"  {here.device}, {here.threads} threads: {speed}")
        return [*out, f"  on SLURM, evaluation's time to be added: {self.slurm()}"]


def of(spec: RunSpec, *, deep: bool = False, machine: Machine | None = None) -> Plan:
    """The plan of `spec` on this machine, or on `machine`.

    deep: read six tensors of each member too, and tell how far experts are from their base; where all are here, read
    them whole for PRISM's score of their interference; of published checkpoints that are not here, ask the hub.
    ValueError or FileNotFoundError for checkpoints and calibration data that the run itself would refuse.
    """
    located = spec.model.located(spec.output.cache, spec.output.data)
    members, said, refused = headers.line_up(headers.read(located, ask=deep), located.vocabulary)
    refused = (*preflight.choices(spec), *_factors(spec.merger, members), *refused)
    base = members["base"]
    lineages = tuple(headers.compare(member, known, base, deep=deep) for member, known in members.items())
    if base.entries is None:
        return Plan(spec.title, lineages, notes=(*said, _NOTHING), refused=refused)
    here = machine
    if here is None:
        dtype = memory.resolve_dtype(spec.calibration.dtype, base.entries)
        here = hardware.machine(_device(spec.device), dtype, spec.threads, spec.output.cache)
    work = Workload(spec, members, located.data or spec.output.data, here)
    stages = work.stages()
    faulty = bool(refused) or any(one.mismatches for one in lineages)
    notes = (*said, *work.notes(), *(_interference(located, members, faulty) if deep else ()))
    gpu = _on_gpu(work) if base.published and here.device == "cpu" else None
    relief = _relief(spec, base.entries, here.device)
    return Plan(spec.title, lineages, tuple(stages), tuple(work.disks(stages)), here, notes, refused, gpu, relief)


def _relief(spec: RunSpec, entries: Mapping[str, Entry], device: str) -> dict[str, str]:
    """See `Plan`: half the bytes a number, where there are more than two; fewer and shorter samples."""

    def halved(setting: str, dtype: str) -> str:
        wide = memory.resolve_dtype(dtype, entries).itemsize > 2
        return f"{setting}.dtype=bfloat16" if wide else ""

    samples = "fewer and shorter samples (calibration.samples, calibration.max_length)"
    calibration = " or ".join(filter(None, [halved("calibration", spec.calibration.dtype), samples]))
    evaluation = halved("evaluation", spec.evaluation.dtype_on(device))
    by_stage = {"sensitivity": calibration, "alignment": calibration, "merge": evaluation, "evaluation": evaluation}
    return {stage: what for stage, what in by_stage.items() if what}


def _factors(merger: object, members: Mapping[str, Headers]) -> Iterator[str]:
    """Experts that are here, and have no factors for a merger of such."""
    if isinstance(merger, FactorMerger) and merger.rank is None:
        for member, known in members.items():
            if member != "base" and known.path is not None and not known.factors:
                yield merger.refusal(f"expert {member!r} ({known.path}) has full weights")
                return


def _interference(located: Located, members: Mapping[str, Headers], faulty: bool) -> Iterator[str]:
    """PRISM's score, known before any merge; nothing unless every member is here and has its base's tensors."""
    paths = {member: headers.path for member, headers in members.items() if headers.path is not None}
    if len(paths) < len(members) or len(members) < 2 or faulty:
        return
    models = Models(paths.pop("base"), paths, located.vocabulary)
    with ExitStack() as stack:
        sources = opened(models, line_up(models), stack)
        found = survey(sources.pop("base"), sources)
    above = "above" if found.score > DESTRUCTIVE else "not above"
    norms = ", ".join(f"{task} {norm:.3g}" for task, norm in found.experts.items())
    yield f"norms of the task vectors: {norms}; of the base {found.base:.3g}"
    yield (
        f"PRISM's interference score at c = 1/K (arXiv 2610.03199): {found.score:.3g}, {above} its threshold of "
        f"{DESTRUCTIVE:.3g} for destructive merges; opposite signs make {found.cancellation:.0%} of it"
    )


def _on_gpu(work: Workload) -> int:
    """Bytes of a GPU that keeps whatever this run would keep on one."""
    gpu = dataclasses.replace(work.machine, device="cuda", device_memory=None, flops=None, reading=None)
    return max(stage.device for stage in dataclasses.replace(work, machine=gpu).stages())


def _device(name: str) -> str:
    """Where a run on device `name` computes; a device that is not here keeps its name."""
    return models.resolve_device(name).type if name == "auto" else name


def si(value: float | None, unit: str = "") -> str:
    """A quantity to three digits, with a decimal prefix; nothing, zero and unknown as "-".

    >>> si(26_031_369_216, "B"), si(999.9, "B"), si(42), si(0)
    ('26.0 GB', '1.00 kB', '42.0', '-')
    """
    if not value:
        return "-"
    prefix, scale = next((p, s) for p, s in _PREFIXES if value >= 0.9995 * s or s == 1)
    return f"{value / scale:#.3g}".rstrip(".") + (f" {prefix}{unit}" if prefix or unit else "")


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.04), duration(75), duration(9000), duration(None)
    ('0.0 s', '1.2 min', '2.5 h', '-')
    """
    if seconds is None:
        return "-"
    scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= s or s == 1)
    return f"{seconds / scale:.1f} {unit}"


def _uses(disk: Disk) -> str:
    return ", ".join(f"{what} {si(size, 'B')}" for what, size in disk.needs.items())


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns, the first and the last to the left, numbers between them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells, last]).rstrip())
    return lines
