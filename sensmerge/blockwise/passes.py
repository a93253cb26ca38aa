"""Sensitivities and predictions of a model that need not fit in memory: one decoder block there at a time.

The same numbers as sensmerge.sensitivity and sensmerge.alignment on the resident model, up to rounding. Samples go
forward through a block before the next is read, and backward likewise, so each block is read twice however many samples
there are; between blocks live the hidden states at every boundary, L + 1 times T x d numbers a sample, in memory or in
files. Backward, a block is computed again from its input and its gradients are reduced and freed one by one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sensmerge.activations import mean_of
from sensmerge.alignment import Predictions
from sensmerge.blockwise.model import Call, Shell
from sensmerge.calibration import Sample
from sensmerge.checkpoints.open import open_source
from sensmerge.checkpoints.reader import Source
from sensmerge.sensitivity import Sums, importance, require_finite, sample_loss

HEAD_ROWS = 4096  # of the head, whose gradient exists at once: 4096 x 4096 fp32 = 67 MB
Bar = Callable[[Sequence[int]], Iterable[int]]


def sensitivities(
    model: Path | Source,
    samples: Sequence[Sample],
    *,
    shell: Path | None = None,
    loss: Literal["answer", "full"] = "answer",
    squared: bool = False,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    spill: Path | None = None,
    progress: Bar = iter,
) -> dict[str, float]:
    """Tensor name -> S over `samples` for a checkpoint: `sensitivity.sensitivities` without the model.

    squared: F instead of S.
    model: its directory, or an open source of its tensors, which stays its owner's to close. shell: the directory of
    its config.json (None: where the tensors lie); an adapter's is its base's. dtype, device: as in `models.load`.
    spill: a directory below which hidden states are kept while they are not needed (None: in memory); what is written
    there is removed on the way out. progress: wraps the indices of the blocks, once on the way forward and once on the
    way back, for a bar.

    Raises ValueError for an empty set, a loss that is not finite, or an architecture that `Shell` refuses; OSError if
    the hidden states do not fit below `spill`.
    """
    if not samples:
        raise ValueError("no calibration samples: sensitivities over an empty set do not exist")
    with opened(model) as source, held_states(spill, device) as states:
        parts = Shell(source, shell, dtype=dtype, device=device)
        sums = Sums(parts.names, device)
        calls = forward(parts, samples, states, progress, keep=True)
        _through_end(parts, samples, states, sums, loss, squared)
        _through_blocks(parts, calls, states, sums, progress, squared)
        _through_start(parts, samples, states, sums, squared)
    return sums.read()


@torch.no_grad()
def predict(
    model: Path | Source,
    samples: Mapping[str, Sequence[Sample]],
    *,
    shell: Path | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    spill: Path | None = None,
    progress: Bar = iter,
) -> Predictions:
    """`alignment.predict` for a checkpoint without the model: one pass for the samples of all tasks.

    Parameters and errors are those of `sensitivities`. The head of the result is resident, a single matrix (in the
    checkpoint's own dtype on the CPU it is the file itself, mapped).
    """
    every = [sample for of_task in samples.values() for sample in of_task]
    with opened(model) as source, held_states(spill, device) as states:
        parts = Shell(source, shell, dtype=dtype, device=device)
        forward(parts, every, states, progress, keep=False)
        with parts.holding("rest"):
            last = (
                parts.closing(sample.ids, states.pop(len(parts.blocks), number))[0, sample.answer_start - 1 : -1]
                for number, sample in enumerate(every)
            )
            hidden = {task: [next(last).clone() for _ in of_task] for task, of_task in samples.items()}
        return Predictions(hidden, parts.whole_head())


@torch.no_grad()
def activations(
    model: Path | Source,
    samples: Sequence[Sample],
    *,
    shell: Path | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    spill: Path | None = None,
    progress: Bar = iter,
) -> Tensor:
    """[L, samples, d] fp32: `activations.means` for a checkpoint. Arguments and errors as of `sensitivities`."""
    found: dict[int, list[Tensor]] = {}
    with opened(model) as source, held_states(spill, device) as states:
        parts = Shell(source, shell, dtype=dtype, device=device)
        forward(
            parts, samples, states, progress, keep=False,
            see=lambda block, output: found.setdefault(block, []).append(mean_of(output)),
        )  # fmt: skip
    return torch.stack([torch.stack(found[block]) for block in sorted(found)])


def opened(model: Path | Source) -> AbstractContextManager[Source]:
    return nullcontext(model) if isinstance(model, Source) else open_source(model)


class _States:
    """Tensors put away on the CPU under (where, sample): in memory, or in a file each below a directory."""

    def __init__(self, directory: Path | None, device: torch.device | str) -> None:
        self._directory = directory
        self._device = device
        self._kept: dict[tuple[int | str, int], Tensor | Path] = {}
        self.nbytes = 0  # of all that was ever put

    def put(self, where: int | str, sample: int, tensor: Tensor) -> None:
        kept: Tensor | Path = tensor.detach().cpu()
        self.nbytes += tensor.nbytes
        if self._directory is not None:
            torch.save(kept, self._directory / f"{where}-{sample}")
            kept = self._directory / f"{where}-{sample}"
        self._kept[where, sample] = kept

    def get(self, where: int | str, sample: int) -> Tensor:
        """On the device, and a copy: a block may write into what it is given."""
        kept = self._kept[where, sample]
        tensor = torch.load(kept, weights_only=True) if isinstance(kept, Path) else kept
        return tensor.to(self._device, copy=kept is tensor)

    def pop(self, where: int | str, sample: int) -> Tensor:
        tensor = self.get(where, sample)
        kept = self._kept.pop((where, sample))
        if isinstance(kept, Path):
            kept.unlink()
        return tensor

    def require(self, nbytes: int) -> None:
        """OSError if that much will not fit where files are kept."""
        if self._directory is not None and nbytes > (free := shutil.disk_usage(self._directory).free):
            raise OSError(
                f"hidden states at block boundaries need {nbytes / 1e9:.2f} GB, {self._directory.parent} has "
                f"{free / 1e9:.2f} GB free; take fewer or shorter samples, or another directory"
            )


@contextmanager
def held_states(spill: Path | None, device: torch.device | str) -> Iterator[_States]:
    if spill is None:
        yield _States(None, device)
        return
    spill.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="states-", dir=spill) as directory:
        yield _States(Path(directory), device)


@torch.no_grad()
def forward(
    shell: Shell,
    samples: Sequence[Sample],
    states: _States,
    progress: Bar,
    *,
    keep: bool,
    see: Callable[[int, Tensor], None] = lambda block, output: None,
    watch: Callable[[int, Mapping[str, torch.nn.Parameter]], AbstractContextManager[object]] | None = None,
) -> list[list[Call]]:
    """Put every sample's hidden states at boundary 0 .. L (keep), or L alone. Returns the call [sample][block].

    see: is given each block's output for each sample, block by block. watch: of a block and its parameters by name,
    entered while all samples go through that block.
    """
    calls = []
    if samples:
        shell.rehearse(samples[0].ids)
        calls = _enter(shell, samples, states)
        states.require(states.nbytes * (len(shell.blocks) if keep else 1))  # that much again at every other boundary
    for block in progress(range(len(shell.blocks))):
        with shell.holding(block) as held, watch(block, held) if watch else nullcontext():
            for number, call in enumerate(calls):
                hidden = states.get(block, number) if keep else states.pop(block, number)
                output = shell.block(block, hidden, call[block])
                see(block, output)
                states.put(block + 1, number, output)
    return calls


def _enter(shell: Shell, samples: Sequence[Sample], states: _States) -> list[list[Call]]:
    calls = []
    with shell.holding("embedding", "rest"):
        for number, sample in enumerate(samples):
            hidden, call = shell.opening(sample.ids)
            states.put(0, number, hidden)
            calls.append(call)
    return calls


def _through_end(
    shell: Shell,
    samples: Sequence[Sample],
    states: _States,
    sums: Sums,
    loss: Literal["answer", "full"],
    squared: bool,
) -> None:
    """Loss and backward through head and final norm: the gradient at the last boundary takes the hidden states' place.

    The gradient of a tied head is half the tensor's: its rows for the sample's tokens, the only ones that the embedding
    adds to, are put away for `_through_start`, and the others are counted here.
    """
    end = len(shell.blocks)
    with shell.holding("head", "rest") as held:
        rest = {name: p for name, p in held.items() if p is not shell.head.weight}
        name = next(name for name, p in held.items() if p is shell.head.weight)
        for number, sample in enumerate(samples):
            hidden = states.pop(end, number).requires_grad_()
            first = sample.answer_start - 1 if loss == "answer" else 0
            rows = shell.closing(sample.ids, hidden)[0, first:]
            logits = shell.head(rows)
            value = sample_loss(logits, Sample(sample.ids[first:], 1), loss)
            require_finite(value)
            to_hidden, to_logits, *others = torch.autograd.grad(
                value, [hidden, logits, *rest.values()], allow_unused=True
            )
            states.put("gradient", number, to_hidden)
            for (other, parameter), gradient in zip(rest.items(), others, strict=True):
                if gradient is not None:
                    sums.add(other, importance(parameter, gradient, squared=squared))
            by_token = _head_importance(shell.head.weight, to_logits, rows.detach(), squared)
            if shell.tied:
                tokens = sample.ids.unique().to(by_token.device)
                states.put("head", number, to_logits[:, tokens].T @ rows.detach())
                by_token[tokens] = 0
            sums.add(name, by_token.sum())


def _through_blocks(
    shell: Shell, calls: list[list[Call]], states: _States, sums: Sums, progress: Bar, squared: bool
) -> None:
    """Backward through the blocks, the last first: the gradient at each boundary becomes that at the one before."""
    for block in progress(range(len(shell.blocks))[::-1]):
        with shell.holding(block) as held:
            for name, parameter in held.items():
                parameter.register_post_accumulate_grad_hook(sums.hook(name, squared=squared))
            for number, call in enumerate(calls):
                hidden = states.pop(block, number).requires_grad_()
                shell.block(block, hidden, call[block]).backward(states.pop("gradient", number))
                assert hidden.grad is not None
                states.put("gradient", number, hidden.grad)


def _through_start(shell: Shell, samples: Sequence[Sample], states: _States, sums: Sums, squared: bool) -> None:
    """Backward through the embeddings, whose gradient is there only for the tokens that occur."""
    with shell.holding("embedding", "rest") as held:
        for number, sample in enumerate(samples):
            hidden, _ = shell.opening(sample.ids)
            gradient = states.pop("gradient", number)
            found = torch.autograd.grad(hidden, list(held.values()), gradient, allow_unused=True)
            for (name, parameter), part in zip(held.items(), found, strict=True):
                if part is None:
                    continue
                if part.is_sparse:  # the token embedding's: see Shell.rehearse
                    rows = part.coalesce()
                    tokens, part = rows.indices()[0], rows.values()
                    if shell.tied:
                        own, tokens = tokens, sample.ids.unique().to(tokens.device)
                        part = states.pop("head", number).index_add_(0, torch.searchsorted(tokens, own), part)
                    parameter = parameter[tokens]
                sums.add(name, importance(parameter, part, squared=squared))


def _head_importance(weight: Tensor, to_logits: Tensor, rows: Tensor, squared: bool = False) -> Tensor:
    """`importance` of the head's rows, [V] fp64, its gradient to_logits.T @ rows (of [n, V] and [n, d]) in pieces."""
    pieces = zip(weight.split(HEAD_ROWS), to_logits.split(HEAD_ROWS, dim=1), strict=True)
    return torch.cat([importance(theta, part.T @ rows, -1, squared=squared) for theta, part in pieces])
