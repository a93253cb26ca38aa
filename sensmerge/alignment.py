"""How far apart the experts' predictions lie on each other's data.

g[i, j] = mean over samples x of task j, over x's answer positions, of d(f_i(x), f_j(x)), i != j: expert i against the
expert whose task it is (Sens-Merging, arXiv 2502.12420; d = L2 distance of the logits there). Positions are averaged
within a sample, then samples; the diagonal is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sensmerge.calibration import Sample


def _centred(rows: Tensor) -> Tensor:
    """Rows [n, V] minus their means over V."""
    return rows - rows.mean(-1, keepdim=True)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Of two logit rows [n, V] (another expert's, the task's own expert's) -> [n].
    "l2": lambda other, own: (other - own).norm(dim=-1),
    # A shift common to all tokens moves logits and no softmax: without it.
    "l2_centred": lambda other, own: _centred(other - own).norm(dim=-1),
    "l2sq": lambda other, own: (other - own).square().sum(-1),
    "kl": lambda other, own: F.kl_div(
        other.log_softmax(-1), own.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1),
    "cosine": lambda other, own: 1 - F.cosine_similarity(other, own, dim=-1),
}
_ROWS = 256  # positions whose logits exist at once: 256 x 32,000 fp32 = 33 MB a model


@dataclass(frozen=True)
class Predictions:
    """An expert's answers in small: final hidden states, and the head that turns them into logits.

    hidden: per task, one [n_answer, d] per sample. head: the output embedding, a module [n, d] -> [n, V].
    A sample costs n_answer x d numbers instead of n_answer x V.
    """

    hidden: Mapping[str, list[Tensor]]
    head: Any


@torch.inference_mode()
def predict(
    model: Any,
    samples: Mapping[str, Sequence[Sample]],
    *,
    progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
) -> Predictions:
    """Hidden states of `model` at every answer position of every task's samples.

    Raises ValueError if the model's logits are not its output embedding applied to its last hidden state (a soft cap or
    a scale would be lost).
    """
    head = model.get_output_embeddings()
    hidden: dict[str, list[Tensor]] = {}
    for task, task_samples in samples.items():
        hidden[task] = []
        for sample in progress(task_samples):
            ids = sample.ids.to(model.device, non_blocking=True)[None]
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            if not hidden[task]:
                logits = model(input_ids=ids, use_cache=False).logits[0]
                if not torch.allclose(head(states).float(), logits.float(), rtol=1e-3, atol=1e-3):
                    raise ValueError(
                        f"{type(model).__name__} changes its logits after the output embedding: not supported"
                    )
            hidden[task].append(states[sample.answer_start - 1 : -1])
    return Predictions(hidden, head)


@torch.inference_mode()
def distances(predictions: Mapping[str, Predictions]) -> dict[str, list[list[float]]]:
    """Metric name -> g [K][K], rows and columns in sorted order of the tasks. fp32 logits, fp64 means.

    A task's own expert gives its logits once for all that are compared with it, and the device is waited for once a
    task.
    """
    tasks = sorted(predictions)
    table = {metric: [[0.0] * len(tasks) for _ in tasks] for metric in METRICS}
    for j, task in enumerate(tasks):
        own, others = predictions[task], [i for i in range(len(tasks)) if i != j]
        compared = [predictions[tasks[i]] for i in others]
        if not compared:
            continue
        sums = [
            _compare(list(zip(hidden, [one.head for one in compared], strict=True)), rows, own.head)
            for rows, *hidden in zip(own.hidden[task], *(one.hidden[task] for one in compared), strict=True)
        ]
        read = torch.stack(sums).tolist()  # [samples][K - 1][metrics]
        for row, i in enumerate(others):
            for column, metric in enumerate(METRICS):
                means = [found[row][column] / len(rows) for found, rows in zip(read, own.hidden[task], strict=True)]
                table[metric][i][j] = sum(means) / len(means)
    return table


def _compare(others: Sequence[tuple[Tensor, Any]], own: Tensor, own_head: Any) -> Tensor:
    """Each metric's sum over one sample's answer positions, [K - 1, metrics] fp64, for other experts' hidden states
    [n_answer, d] and heads against the task's own."""
    sums = torch.zeros(len(others), len(METRICS), dtype=torch.float64, device=own.device)
    for start in range(0, len(own), _ROWS):
        b = own_head(own[start : start + _ROWS]).float()
        for row, (hidden, head) in enumerate(others):
            a = head(hidden[start : start + _ROWS]).float()
            sums[row] += torch.stack([distance(a, b).sum(dtype=torch.float64) for distance in METRICS.values()])
    return sums
