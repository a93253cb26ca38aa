"""log p(continuation | context), with logits made only where a token is scored.

A model's own forward would make them at every position: [64, 4100, 49152] of them are 26 GB in bf16, and 52 GB in the
fp32 in which they are compared. Requests, their order and their padding are those of lm-eval's HFLM, so that a model
computes the same hidden states for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.batches import Batches

_ROWS = 1024  # positions whose logits are turned into fp32 at a time


@dataclass(frozen=True)
class Request:
    """Tokens of a context (one at least) and of a continuation (one at least)."""

    context: Sequence[int]
    continuation: Sequence[int]


def log_likelihoods(
    model: Any,
    requests: Sequence[Request],
    batches: Batches,
    max_length: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> list[tuple[float, bool]]:
    """For each request the natural logarithm, summed over the continuation, and whether greedy decoding would give it.

    max_length: tokens a sequence may have; the heads of longer ones are dropped. progress: wraps the batches, told the
    number of sequences. Requests that differ in the last token only (one-letter choices) share a sequence.
    torch.OutOfMemoryError where not even a single sequence fits.
    """
    sequences: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        whole = (*request.context, *request.continuation)[-(max_length + 1) :]
        sequences.setdefault(whole[:-1], []).append(number)

    def last(inputs: tuple[int, ...]) -> int:
        return requests[sequences[inputs][0]].continuation[-1]

    order = sorted(sequences, key=lambda inputs: (-len(inputs), (*inputs, last(inputs))))
    rows = [(inputs, [requests[number].continuation for number in sequences[inputs]]) for inputs in order]
    spans = [max(map(len, continuations)) for _, continuations in rows]
    results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    made = batches.each(
        range(len(rows)),
        lambda batch: _picked(model, [rows[i] for i in batch]),
        lambda footprint, batch: footprint.scoring(len(batch), len(order[batch[0]]), sum(spans[i] for i in batch)),
    )
    counted = ((batch, answers, sum(len(order[index]) for index in batch)) for batch, answers in made)
    for batch, answers, _ in progress(counted, len(rows)):
        for index, of_sequence in zip(batch, answers, strict=True):
            for number, answer in zip(sequences[order[index]], of_sequence, strict=True):
                results[number] = answer
    return results


def _picked(model: Any, batch: Sequence[tuple[Sequence[int], list[Sequence[int]]]]) -> list[list[tuple[float, bool]]]:
    """For each sequence, and each continuation that ends one token behind it: log-probability, and greedy or not."""
    import torch

    device, length = model.device, max(len(inputs) for inputs, _ in batch)
    ids = torch.tensor([[*inputs, *[0] * (length - len(inputs))] for inputs, _ in batch], device=device)
    rows: list[int] = []
    columns: list[int] = []
    for row, (inputs, continuations) in enumerate(batch):
        span = max(map(len, continuations))
        rows += [row] * span
        columns += range(len(inputs) - span, len(inputs))
    with torch.inference_mode():
        logits = logits_at(model, ids, torch.tensor(rows, device=device), torch.tensor(columns, device=device))
        wanted, positions, lengths, start = [], [], [], 0
        for _, continuations in batch:
            end = start + max(map(len, continuations))
            for tokens in continuations:
                wanted += tokens
                positions += range(end - len(tokens), end)
                lengths.append(len(tokens))
            start = end
        picked, greedy = _compared(logits, torch.tensor(positions, device=device), torch.tensor(wanted, device=device))
        sums = torch.stack([part.sum() for part in picked.split(lengths)]).tolist()
        all_greedy = torch.stack([part.all() for part in greedy.split(lengths)]).tolist()
    answers = iter(zip(sums, all_greedy, strict=True))
    return [[next(answers) for _ in continuations] for _, continuations in batch]


def logits_at(model: Any, ids: Any, rows: Any, columns: Any, **how: Any) -> Any:
    """Logits [N, V] at the positions (rows[i], columns[i]) of ids [B, T]. how: what else the model is given.

    What the model does to its head's output (a scale, a soft cap) is done to these too: the head is handed the hidden
    states of those positions alone. A model without a head of its own is asked for all of them.
    """
    head = model.get_output_embeddings()
    if head is None:
        return model(input_ids=ids, **how).logits[rows, columns]

    def gather(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = given
        return (hidden[rows, columns][None], *rest)

    hook = head.register_forward_pre_hook(gather)
    try:
        return model(input_ids=ids, **{"use_cache": False, **how}).logits[0]
    finally:
        hook.remove()


def _compared(logits: Any, positions: Any, tokens: Any) -> tuple[Any, Any]:
    """log p(tokens[i]) at row positions[i] of `logits`, in fp32, and whether that token is the likeliest there."""
    import torch

    picked, greedy = [], []
    for start in range(0, len(tokens), _ROWS):
        some = slice(start, start + _ROWS)
        scores = torch.log_softmax(logits[positions[some]], -1, dtype=torch.float32)
        picked.append(scores.gather(1, tokens[some, None])[:, 0])
        greedy.append(scores.argmax(-1) == tokens[some])
    return torch.cat(picked), torch.cat(greedy)
