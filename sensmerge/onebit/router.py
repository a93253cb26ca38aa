"""Which task a prompt belongs to: the nearest centroid of calibration prompts in the base's hidden states. Ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TOKENS = 8192  # of a batch, padding included


@dataclass(frozen=True)
class Router:
    """tasks: K, sorted. centres: [K, d], in units of `spread` [d] from `mean` [d], those of all calibration prompts.

    accuracy: of the `samples` calibration prompts, the share that the centroids of the others put where it belongs.
    """

    tasks: tuple[str, ...]
    centres: Tensor
    mean: Tensor
    spread: Tensor
    accuracy: float
    samples: int

    def choose(self, states: Tensor) -> list[str]:
        """The task of each of `states` [n, d]; of equally near ones the first."""
        distances = torch.cdist((states - self.mean) / self.spread, self.centres)
        return [self.tasks[number] for number in distances.argmin(1).tolist()]

    def to_json(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).tolist() for name in ("centres", "mean", "spread")}
        return {"tasks": list(self.tasks), **tensors, "accuracy": self.accuracy, "samples": self.samples}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Router:
        tensors = {name: torch.tensor(data[name]) for name in ("centres", "mean", "spread")}
        return Router(tuple(data["tasks"]), **tensors, accuracy=data["accuracy"], samples=data["samples"])


def fit(states: Mapping[str, Tensor]) -> Router:
    """The router of each task's calibration prompts [n, d]. ValueError for a task with fewer than two: its accuracy
    could not be told."""
    if few := sorted(task for task, found in states.items() if len(found) < 2):
        raise ValueError(f"a router needs two calibration prompts a task at least; {few} have fewer")
    tasks = tuple(sorted(states))
    every = torch.cat([states[task] for task in tasks])
    mean, spread = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
    scaled = {task: (states[task] - mean) / spread for task in tasks}
    centres = torch.stack([scaled[task].mean(0) for task in tasks])
    right = 0
    for number, task in enumerate(tasks):
        own, n = scaled[task], len(scaled[task])
        distances = torch.cdist(own, centres)
        without = (n * centres[number] - own) / (n - 1)  # its own centroid, without the prompt that is asked about
        distances[:, number] = (own - without).norm(dim=1)
        right += int((distances.argmin(1) == number).sum())
    return Router(tasks, centres, mean, spread, right / len(every), len(every))


@torch.inference_mode()
def prompt_states(model: Any, prompts: Sequence[Sequence[int]], progress: Any = iter) -> Tensor:
    """Each prompt's mean over its tokens of the last hidden state (after the final norm), [n, d] fp32 on the CPU.

    prompts: token ids, one at least each. Batches are of similar lengths; a state does not depend on its batch but in
    its last bits.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    found: dict[int, Tensor] = {}
    for batch in progress(list(_batches(order, prompts))):
        longest = len(prompts[batch[-1]])
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, : len(prompts[index])] = torch.tensor(prompts[index])
            mask[row, : len(prompts[index])] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        found |= dict(zip(batch, mean.cpu(), strict=True))
    return torch.stack([found[index] for index in range(len(prompts))])


def _batches(order: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterable[list[int]]:
    """Consecutive pieces of `order`, which is by length."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(prompts[index]) > _TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
