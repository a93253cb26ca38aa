"""Fine-tuning for the families this project builds itself: answer-only cross-entropy, AdamW, resumable, seeded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from sensmerge.calibration import Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class Recipe:
    """One fine-tuning run.

    batch_tokens: samples of similar length are batched until prompt, answer and padding reach this many tokens.
    learning_rate: peak; linear warm-up over `warmup` steps, then linear decay to zero.
    precision: "bfloat16" runs the forward under autocast, with fp32 weights and optimizer.
    save_every: steps between resumable states (0: none).
    """

    steps: int = Field(gt=0)
    batch_tokens: int = Field(default=2048, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    save_every: int = Field(default=0, ge=0)


def batches(samples: Sequence[Sample], recipe: Recipe) -> Iterator[list[Sample]]:
    """Batch number s for s = 0, 1, ...: depends on (recipe.seed, epoch) alone, so a resumed run sees the same."""
    epoch = 0
    while True:
        rng = random.Random(f"{recipe.seed}/{epoch}")
        order = list(range(len(samples)))
        rng.shuffle(order)
        # Shuffled chunks sorted by length keep padding small without fixing who meets whom across epochs.
        chunk = 64
        groups: list[list[Sample]] = []
        for at in range(0, len(order), chunk):
            block = sorted((samples[i] for i in order[at : at + chunk]), key=lambda s: len(s.ids))
            group: list[Sample] = []
            for sample in block:
                if group and len(sample.ids) * (len(group) + 1) > recipe.batch_tokens:
                    groups.append(group)
                    group = []
                group.append(sample)
            groups.append(group)
        rng.shuffle(groups)
        yield from groups
        epoch += 1


def pad(batch: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask and labels, each [B, T]; labels are -100 on prompt and padding."""
    length = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = sample.ids
        mask[row, :n] = 1
        labels[row, sample.answer_start : n] = sample.ids[sample.answer_start :]
    return ids, mask, labels


def finetune(
    model: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    label: str,
    state: Path | None = None,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    parameters: Sequence[torch.nn.Parameter] | None = None,
    position: int = 0,
) -> float:
    """Train `model` in place on `samples`; the mean loss of the last tenth of the steps.

    optimizers: in place of AdamW over all parameters; the schedule scales each group's own rate. Not resumable.
    parameters: what is trained; None: all of the model.
    position: the line of the progress bar, where several are shown.
    state: a file for resumable states, written atomically every `recipe.save_every` steps and removed at the end.
    A run that finds it goes on from there and ends with the weights an undisturbed run would have had.
    """
    if not samples:
        raise ValueError(f"{label}: no samples to fine-tune on")
    model.requires_grad_(parameters is None).train()
    parameters = list(model.parameters()) if parameters is None else parameters
    for parameter in parameters:
        parameter.requires_grad_(True)
    device = next(model.parameters()).device
    if optimizers is not None and state is not None:
        raise ValueError(f"{label}: a state is kept for AdamW only")
    optimizers = optimizers or [
        torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    ]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done, losses = 0, []
    if state is not None and state.is_file():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizers[0].load_state_dict(saved["optimizer"])
        done, losses = saved["step"], saved["losses"]

    stream = batches(samples, recipe)
    for _ in range(done):
        next(stream)
    with tqdm(
        total=recipe.steps, initial=done, desc=label, unit="step", leave=False, mininterval=1, position=position
    ) as bar:
        for step in range(done, recipe.steps):
            for optimizer, own in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, own, strict=True):
                    group["lr"] = rate * _schedule(step, recipe)
            ids, mask, labels = (tensor.to(device) for tensor in pad(next(stream)))
            # Only columns that predict an answer's token meet the output matrix: a fifth of a small model's work.
            columns = (labels[:, 1:] != -100).any(0).nonzero().squeeze(-1)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=columns).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels[:, columns + 1].flatten(), ignore_index=-100
            )
            if not torch.isfinite(loss):
                raise ValueError(f"{label}: loss is {loss.item()} at step {step}; lower learning_rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
            if state is not None and recipe.save_every and (step + 1) % recipe.save_every == 0:
                _save(
                    state, model=model.state_dict(), optimizer=optimizers[0].state_dict(), step=step + 1, losses=losses
                )
    model.requires_grad_(False).eval()
    if state is not None:
        state.unlink(missing_ok=True)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return (recipe.steps - step) / max(1, recipe.steps - recipe.warmup)


def _save(path: Path, **content: Any) -> None:
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    os.replace(partial, path)
