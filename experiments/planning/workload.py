"""A run's stages and what each will take: bytes, FLOPs, memory, time and disk, from headers and calibration lengths."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments.planning import costs, published
from experiments.planning.costs import Disk, Stage
from experiments.planning.hardware import Machine
from experiments.planning.headers import Headers
from experiments.run.prepare import draw_samples
from experiments.run.spec import RunSpec
from sensmerge import memory, models
from sensmerge.checkpoints.header import Entry
from sensmerge.coefficients import Oracle, Rule
from sensmerge.device.arrivals import AHEAD
from sensmerge.device.outgoing import BUFFERS as LEAVING
from sensmerge.device.resident import GIB, fits
from sensmerge.distances.survey import PIECE
from sensmerge.memory import Fit, Peaks, Weights
from sensmerge.mergers import Merger
from sensmerge.store import nearest
from sensmerge.tensor_names import is_projection

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Workload:
    """What a run will do on a machine. members: their headers, the base's known. data: where the family's data lie."""

    spec: RunSpec
    members: Mapping[str, Headers]
    data: Path | None
    machine: Machine

    @property
    def _base(self) -> Headers:
        return self.members["base"]

    @property
    def _entries(self) -> Mapping[str, Entry]:
        """Of the base, as the merge has them."""
        assert self._base.merged is not None
        return self._base.merged

    @property
    def _nbytes(self) -> int:
        """Of what is merged."""
        return sum(entry.nbytes for entry in self._entries.values())

    @cached_property
    def weights(self) -> Weights:
        return Weights.of(self._entries)

    def stages(self) -> list[Stage]:
        """In the order they run. ValueError for calibration data that the run itself would refuse."""
        merger, stages = self.spec.merger, []
        if isinstance(merger, Merger):
            if {"sensitivity", "fisher"} & self.spec.scaling.needs:
                stages.append(self._sensitivity())
            if {"alignment", "information"} & self.spec.scaling.needs:  # of activations less: a bound
                stages.append(self._alignment())
            stages += [self._inputs(word) for word in ("grams", "activity") if word in merger.told]
            if (rule := self.spec.scaling.fitted) is not None and self.spec.validation is not None:
                stages.append(self._oracle(rule))
            stages.append(self._survey())
            stages.append(self._merge(merger))
        stages.append(self._evaluation())
        if isinstance(merger, Merger) and self.spec.output.checkpoint:
            stages.append(self._checkpoint(merger))
        return stages

    def disks(self, stages: list[Stage]) -> list[Disk]:
        """What each file system is asked for."""
        from huggingface_hub import constants

        spec = self.spec
        wanted: list[tuple[str, Path, int]] = [
            ("checkpoint", spec.output.runs, sum(stage.write for stage in stages)),
            ("hidden states", spec.output.cache, max((stage.spilled for stage in stages), default=0)),
            ("covariances", spec.output.cache, sum(stage.kept for stage in stages)),
            ("downloads", Path(constants.HF_HUB_CACHE), sum(m.nbytes for m in self.members.values() if not m.path)),
        ]
        disks: dict[int, Disk] = {}
        for what, path, need in wanted:
            if need:
                place = nearest(path)
                disk = Disk(str(place), {}, shutil.disk_usage(place).free)
                disks.setdefault(os.stat(place).st_dev, disk).needs[what] = need
        return list(disks.values())

    def notes(self) -> list[str]:
        """What the numbers rest on."""
        spec, said = self.spec, []
        if spec.draws:
            lengths = [length for task in self.lengths.values() for length in task]
            how = "drawn" if self._drawn else "at most: neither data nor tokenizer is read here"
            said.append(
                f"calibration: {len(lengths)} samples, {sum(lengths)} tokens, the longest {max(lengths)} ({how})"
            )
        items = [f"{name} {published.n_items(one, self.data) or '?'}" for name, one in spec.suite.benchmarks.items()]
        said.append(f"items: {', '.join(items)}")
        if tokens := self._tokens:
            read, written = tokens
            said.append(
                f"suite {spec.suite.name}: about {read / 1e6:.2f} M tokens read and at most {written / 1e6:.2f} M "
                "written, as SmolLM2's tokenizer counts; the evaluation's FLOP are of all of these"
            )
        if spec.references:
            said.append(f"references: {len(self.members)} more models are evaluated, once for all runs of the family")
        said += filter(None, [self._resident()])
        if spec.record_path.is_file():
            said.append(f"complete already: {spec.directory} has its record, nothing would be done again")
        return said

    def _resident(self) -> str | None:
        """What becomes of base and experts on a GPU between the points of a sweep in one process."""
        if self.machine.device == "cpu" or not isinstance(self.spec.merger, Merger):
            return None
        need = sum(self._passed(member) for member in self.members.values())
        if self.machine.device_memory is None:
            return f"base and experts would stay on the GPU between points of a local sweep: {need / GIB:.1f} GiB"
        left = max(0, self.machine.device_memory - self.weights.parameters * self._size(self._evaluation_dtype))
        room = f"{need / GIB:.1f} GiB of {left / GIB:.1f} GiB free beside the model"
        if not fits(need, left):
            return f"base and experts are read again for every point of a sweep: they would take {room}"
        return f"base and experts resident: {room}, between points of a local sweep (not in the figures above)"

    # ---- calibration

    @cached_property
    def _drawn(self) -> bool:
        """Whether the very samples can be drawn here, without the network."""
        path, data = self._base.path, self.data
        return (
            path is not None
            and data is not None
            and any((path / name).is_file() for name in _TOKENIZERS)
            and not any(pairs.missing(data) for pairs in self.spec.model.calibration.values())
        )

    @cached_property
    def lengths(self) -> dict[str, list[int]]:
        """Tokens of every calibration sample by task: of the real ones, else as many as the settings allow."""
        spec, path = self.spec, self._base.path
        if self._drawn:
            assert path is not None
            return {t: [len(one.ids) for one in drawn] for t, drawn in draw_samples(spec, path, self.data).items()}
        return {task: [self._longest] * spec.calibration.samples for task in spec.model.calibration}

    @property
    def _longest(self) -> int:
        """Tokens of a sample at most."""
        path, most = self._base.path, self.spec.calibration.max_length
        context = models.context_length(path) if path and (path / "config.json").is_file() else None
        return min(most, context or most)

    @property
    def _space(self) -> int:
        """Bytes for a model where it computes; as many as it likes on a device that is not here."""
        if self.machine.device == "cpu":
            return self.machine.memory - self.machine.own
        return sys.maxsize if self.machine.device_memory is None else self.machine.device_memory

    def _size(self, name: str) -> int:
        return memory.resolve_dtype(name, self._entries).itemsize

    def _sensitivity(self) -> Stage:
        """One expert after the other on its own task's samples; the memory is the hungriest's."""
        size = self._size(self.spec.calibration.dtype)
        peaks = [memory.sensitivity_peaks(self.weights, lengths, size) for lengths in self.lengths.values()]
        worst = max(peaks, key=lambda one: (one.resident, one.states))
        found = self._fit(worst, size)
        flops = sum(costs.sensitivity_flops(self.weights, lengths, found.mode) for lengths in self.lengths.values())
        return self._pass("sensitivity", found, worst, flops)

    def _alignment(self) -> Stage:
        size = self._size(self.spec.calibration.dtype)
        lengths = [length for of_task in self.lengths.values() for length in of_task]
        peaks = memory.alignment_peaks(self.weights, lengths, size, len(self.lengths))
        flops = len(self.lengths) * costs.forward_flops(self.weights, lengths)
        return self._pass("alignment", self._fit(peaks, size), peaks, flops)

    def _inputs(self, word: str) -> Stage:
        """Of each expert's own samples X^T X, or of all of them the base's sums of |x|, which are small."""
        size, lengths, name = self._size(self.spec.calibration.dtype), self.lengths, "covariances"
        block, every = memory.gram_numbers(self._entries)
        if word == "activity":
            lengths, name, block, every = {"base": [n for one in lengths.values() for n in one]}, "activity", 0, 0
        worst = memory.gram_peaks(self.weights, block, max(lengths.values(), key=sum), size)
        flops = sum(costs.gram_flops(self.weights, every, one) for one in lengths.values())
        made = self._pass(name, self._fit(worst, size), worst, flops)
        return dataclasses.replace(made, kept=4 * every * len(lengths), note="a block at a time, kept in files")

    def _oracle(self, rule: Rule) -> Stage:
        """The model, the base and every expert's change in fp32; as many gradients as there may be iterations."""
        assert isinstance(rule, Oracle)
        assert self.spec.validation is not None
        tokens = memory.fit_tokens(self.weights, self._longest)
        held = memory.fit_peak(self.weights, len(self.members) - 1, tokens)
        items = sum(published.n_items(one, self.data) or 0 for one in self.spec.validation.benchmarks.values())
        flops = 6 * self.weights.matmul * rule.iterations * items * self._longest
        note = f"FLOP at most: {rule.iterations} iterations, {items or '?'} items taken to be of {self._longest} tokens"
        on_cpu = self.machine.device == "cpu"
        return Stage("oracle", held if on_cpu else 0, 0 if on_cpu else held, flops=flops, note=note)

    def _survey(self) -> Stage:
        inside = sum(entry.nbytes for entry in self._entries.values() if is_projection(entry.name))
        read = sum(map(self._passed, self.members.values())) + inside * len(self.members)
        held = 8 * 4 * len(self.members) * min(PIECE, self.weights.largest)  # fp64, and what is made of it
        return Stage("survey", held, read=read, seconds=read / (self.machine.reading or math.inf), note="once a family")

    def _fit(self, peaks: Peaks, size: int) -> Fit:
        here = self.machine
        return memory.fit(
            self.weights, peaks, size, cpu=here.device == "cpu", space=self._space, memory=here.memory - here.own
        )

    def _pass(self, name: str, found: Fit, peaks: Peaks, flops: int) -> Stage:
        note = (
            f"streamed; resident would hold {peaks.resident / 1e9:.1f} GB" if found.mode == "streamed" else found.mode
        )
        seconds = flops / self.machine.flops if self.machine.flops else None
        note += ", hidden states in files" if found.spilled else ""
        # A tensor that is computed takes three buffers of its size: for an adapter W, BA and their sum. Resident, all
        # are computed before the peak, which comes with the activations; streamed, blocks are read at any time.
        computed = max(member.computed for member in self.members.values())
        host = found.host + (3 * computed if found.mode == "streamed" else 0)
        return Stage(name, host, found.device, flops=flops, seconds=seconds, spilled=found.spilled, note=note)

    # ---- the merge and its model

    def _merge(self, merger: Merger) -> Stage:
        """Into the resident model that is evaluated."""
        size = self._size(self._evaluation_dtype)
        stored = self._size("auto")
        made = self.weights.largest * stored if size != stored else 0  # a tensor in its own dtype, before it is cast
        times = costs.passes(merger, self.machine.device)
        return self._merged("merge", merger, times, model=self.weights.parameters * size, made=made)

    def _checkpoint(self, merger: Merger) -> Stage:
        """Into files, once more; what trimming keeps is known from the first merge, unless it depends on masks."""
        steps = merger.steps()
        times = costs.passes(merger, self.machine.device, known=steps is not None and not steps.drop)
        return self._merged("checkpoint", merger, times, write=self._nbytes)

    def _merged(self, name: str, merger: Merger, times: int, *, model: int = 0, made: int = 0, write: int = 0) -> Stage:
        members, here = self.members.values(), self.machine
        once = sum(self._passed(member) for member in members)
        adapters = [member.factors + self._base.nbytes for member in members if member.factors]
        # Every member holds one computed tensor; while one is being computed, two more buffers of its size are there.
        sizes = [member.computed for member in members]
        made += sum(sizes) + 2 * max(sizes)
        scratch = costs.merge_scratch(merger, self.weights, len(members) - 1, here.device, here.threads)
        scratch = max(scratch, costs.matrix_scratch(merger, self._entries, len(members) - 1))
        host, device = model + scratch, 0
        if here.device != "cpu":  # base and experts of a tensor are there as stored, and the next ones arrive
            there = (len(members) + 1) * self.weights.largest * self._size("auto")
            host, device = model + min(write, LEAVING), model + scratch + there + min(AHEAD, once)
        read = once * times + sum(adapters)
        seconds = read / here.reading if here.reading else None
        note = f"{times} pass{'es' * (times > 1)} over {len(members)} checkpoints"
        note += f", {len(adapters)} of them made from the base and an adapter" if adapters else ""
        return Stage(name, host + made, device, read, write, seconds=seconds, note=note)

    def _passed(self, member: Headers) -> int:
        """Bytes of a member's tensors as the merge has them; of one that is not here, the base's."""
        return sum(entry.nbytes for entry in (member.merged or self._entries).values())

    def _evaluation(self) -> Stage:
        resident = 1 + self.spec.routed  # the router looks at the base's hidden states
        size = resident * self.weights.parameters * self._size(self._evaluation_dtype)
        device = 0 if self.machine.device == "cpu" else size
        flops = 2 * self.weights.matmul * sum(self._tokens or ())
        note = "weights alone: batches come on top"
        note += ", and the base for the router; merged again at every change of task" if self.spec.routed else ""
        return Stage("evaluation", size, device, flops=flops, note=note)

    @property
    def _tokens(self) -> tuple[int, int] | None:
        """Read, and at most written, by the suite; None where that of a benchmark is unknown."""
        counts = [published.tokens(one, self.data) for one in self.spec.suite.benchmarks.values()]
        told = [count for count in counts if count is not None]
        return (sum(r for r, _ in told), sum(w for _, w in told)) if len(told) == len(counts) else None

    @property
    def _evaluation_dtype(self) -> str:
        return self.spec.evaluation.dtype_on(self.machine.device)
