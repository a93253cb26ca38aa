"""Experts with vocabularies of their own, their embedding rows lined up with the base's by token string.

Row i of a token embedding or output embedding belongs to the token with id i, and fine-tuning often adds tokens, moves
them, or pads the matrix; subtracting rows by index would then subtract one token from another. Here every model's rows
are brought into one layout before anything else sees them:

base    The result has the base's rows. An expert's row for a token is taken from wherever the expert keeps that token;
        where it lacks the token, it gets the base's row, so its task vector is zero there. Tokens that only experts
        have are dropped, and reported.
union   The result has the base's tokens at their ids, then every other token of the experts, in the order of sorted
        tasks and of ids within one. For such a token the base's row is *defined* as the mean of the rows of the experts
        that have it: the only choice that treats them alike and, for a token that one expert has, gives that expert's
        row whatever the coefficients (a base row of zeros would shrink it). Experts that lack it get that same row.
error   Any difference is refused.

Rows that belong to no token (padding, as Qwen's) are matched by index where both models have such a row there; new
tokens take the first ones, which is where adding them to the tokenizer puts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sensmerge.checkpoints.reader import Source
from sensmerge.checkpoints.token_rows import Aligned, Filler, Mean, Own
from sensmerge.tensor_names import holds_tokens, is_input

Policy = Literal["base", "union", "error"]
Vocabulary = Mapping[str, int]
_LISTED = 20


def check_policy(policy: str) -> None:
    """Raise ValueError for what is no `Policy`."""
    if policy not in get_args(Policy):
        raise ValueError(f"vocabulary is {policy!r}; it may be {', '.join(get_args(Policy))}")


def rows(source: Source) -> int:
    """Rows of the token embedding. ValueError where there is none, or not all tensors with rows for tokens agree."""
    counts = {name: sum(entry.shape[:1]) for name, entry in source.entries.items() if holds_tokens(name)}
    if not any(map(is_input, counts)) or len(set(counts.values())) != 1:
        raise ValueError(
            f"{source.path} has {counts or 'no tensor'} with rows for tokens; to line up vocabularies one number of "
            "rows must hold for all, a token embedding among them (names: sensmerge/checkpoints/vocabulary.py)"
        )
    return next(iter(counts.values()))


@dataclass(frozen=True)
class Matched:
    """How one model's rows found their places in the result.

    matched: tokens of the result that the model has a row for. moved: those of them that it keeps at another id.
    filled: tokens of the result that it lacks. dropped: its own tokens that the result lacks. rowless: tokens of its
    tokenizer beyond its last row, which count as lacking. padding: rows of no token matched by index, and
    padding_filled: those that it has no such row for.
    """

    matched: int
    moved: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    rowless: tuple[str, ...] = ()
    padding: int = 0
    padding_filled: int = 0

    def to_json(self, listed: int = _LISTED) -> dict[str, Any]:
        """Counts, and of each kind of token the first `listed`."""
        kinds = {"moved": self.moved, "filled": self.filled, "dropped": self.dropped, "rowless": self.rowless}
        found = {kind: {"n": len(tokens), "first": list(tokens[:listed])} for kind, tokens in kinds.items()}
        return {"matched": self.matched, **found, "padding": self.padding, "padding_filled": self.padding_filled}


@dataclass(frozen=True)
class Report:
    """What alignment did. rows: of the result's embeddings. added: tokens that the base lacks. experts: by task."""

    policy: Policy
    rows: int
    added: tuple[str, ...]
    experts: dict[str, Matched]

    def to_json(self, listed: int = _LISTED) -> dict[str, Any]:
        """Plain data to record; tokens are counted, and the first `listed` of each kind named."""
        return {
            "policy": self.policy,
            "rows": self.rows,
            "added": {"n": len(self.added), "first": list(self.added[:listed])},
            "experts": {task: found.to_json(listed) for task, found in sorted(self.experts.items())},
        }


@dataclass(frozen=True)
class Alignment:
    """Base and experts whose tensors have one layout. vocabulary: token -> id in the result.

    Models that had it already are the very sources that were given.
    """

    base: Source
    experts: dict[str, Source]
    vocabulary: dict[str, int]
    report: Report


def align(
    base: Source,
    experts: Mapping[str, Source],
    vocabulary: Vocabulary | None,
    vocabularies: Mapping[str, Vocabulary | None],
    policy: Policy = "base",
) -> Alignment:
    """Bring all models into the layout that `policy` asks for (see the top of this file).

    vocabulary: the base's, token -> id; None if it has no tokenizer, and then no expert may have one. vocabularies: the
    experts'; None, or no entry, for one without a tokenizer of its own, which is taken to have the base's.

    Raises ValueError for experts with a tokenizer on a base without; for an expert that keeps fewer than half of the
    base's tokens, or has no tokenizer and another number of rows; with "union" for a base whose tokenizer has tokens
    without a row; with "error" for any difference.
    """
    own = {task: vocabularies.get(task) for task in sorted(experts)}
    if not vocabulary and (known := [task for task, tokens in own.items() if tokens]):
        raise ValueError(
            f"experts {known} have a tokenizer and their base ({base.path}) has none, so nothing tells whether their "
            "rows are the same tokens': put the base's tokenizer files beside its weights"
        )
    vocabulary = vocabulary or {}
    if all(own[task] in (None, vocabulary) and _alike(base, expert) for task, expert in experts.items()):
        return _untouched(base, experts, vocabulary, policy)
    ours = _Rows(vocabulary, rows(base))
    theirs = {task: _rows(task, experts[task], own[task], ours) for task in own}
    result, size = dict(vocabulary), ours.count
    if policy == "union":
        result = _union(base, ours, theirs)
        size = max([size, *(index + 1 for index in result.values())])
    layout = _layout(result, size)
    found = {task: _match(layout, result, has) for task, has in theirs.items()}
    reports = {task: report for task, (_, report) in found.items()}
    if policy == "error":
        _refuse(ours, theirs, reports)
    added = tuple(sorted(result.keys() - vocabulary.keys(), key=result.__getitem__))
    takes = {task: take for task, (take, _) in found.items()}
    origin, aligned = _wrapped(base, experts, takes, size, [result[token] for token in added])
    return Alignment(origin, aligned, result, Report(policy, size, added, reports))


def _wrapped(
    base: Source, experts: Mapping[str, Source], takes: Mapping[str, Tensor], size: int, added: Sequence[int]
) -> tuple[Source, dict[str, Source]]:
    """The models with their rows as `takes` say, but for those whose rows stay. added: rows that the base lacks."""
    origin: Source = base
    filler: Filler = Own(base)
    if added:
        kept = torch.arange(size)
        kept[list(added)] = -1
        origin = filler = Aligned(base, kept, Mean(base, [(experts[task], take) for task, take in takes.items()]))
    aligned = dict(experts)
    for task, take in takes.items():
        if take.tolist() != list(range(rows(experts[task]))):
            aligned[task] = Aligned(experts[task], take, filler)
    return origin, aligned


@dataclass(frozen=True)
class _Rows:
    """A model's tokens and the number of its rows. known: the tokens that have one."""

    vocabulary: Vocabulary
    count: int

    @cached_property
    def known(self) -> dict[str, int]:
        return {token: index for token, index in self.vocabulary.items() if index < self.count}

    @property
    def rowless(self) -> tuple[str, ...]:
        return tuple(sorted(self.vocabulary.keys() - self.known.keys(), key=self.vocabulary.__getitem__))


def _rows(task: str, expert: Source, vocabulary: Vocabulary | None, ours: _Rows) -> _Rows:
    """An expert's rows. ValueError where nothing tells whose they are, or they are another tokenizer's altogether."""
    count = rows(expert)
    if vocabulary is None and count != ours.count:
        raise ValueError(
            f"expert {task!r} ({expert.path}) has {count} rows for tokens, the base {ours.count}, and no tokenizer to "
            "tell which token each belongs to: put the expert's tokenizer files beside its weights"
        )
    theirs = _Rows(ours.vocabulary if vocabulary is None else vocabulary, count)
    shared = len(theirs.known.keys() & ours.known.keys())
    if 2 * shared < len(ours.known):
        raise ValueError(
            f"expert {task!r} ({expert.path}) has {shared} of the base's {len(ours.known)} tokens: that is another "
            "tokenizer; was it fine-tuned from this base?"
        )
    return theirs


def _alike(base: Source, expert: Source) -> bool:
    def shapes(source: Source) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in source.entries.items() if holds_tokens(name)}

    return shapes(base) == shapes(expert)


def _untouched(base: Source, experts: Mapping[str, Source], vocabulary: Vocabulary, policy: Policy) -> Alignment:
    size = max((sum(entry.shape[:1]) for name, entry in base.entries.items() if is_input(name)), default=0)
    ours = _Rows(vocabulary, size)
    report = Matched(len(ours.known), rowless=ours.rowless, padding=size - len(set(ours.known.values())))
    reports = Report(policy, size, (), dict.fromkeys(sorted(experts), report))
    return Alignment(base, dict(experts), dict(vocabulary), reports)


def _union(base: Source, ours: _Rows, theirs: Mapping[str, _Rows]) -> dict[str, int]:
    """The base's tokens at their ids, the experts' others after the last of them."""
    if ours.rowless:
        raise ValueError(
            f"the tokenizer of {base.path} has {_few(ours.rowless)} beyond the {ours.count} rows of its embedding, and "
            'new tokens would go there: resize the base\'s embedding first, or align with "base"'
        )
    result = dict(ours.vocabulary)
    free = max(result.values(), default=-1) + 1
    for has in theirs.values():
        for token in sorted(has.known.keys() - result.keys(), key=has.known.__getitem__):
            result[token] = free
            free += 1
    return result


def _layout(vocabulary: Vocabulary, size: int) -> list[list[str]]:
    """The tokens of every row: none for padding, several where a tokenizer has two names for one id."""
    layout: list[list[str]] = [[] for _ in range(size)]
    for token, index in vocabulary.items():
        if index < size:
            layout[index].append(token)
    return layout


def _match(layout: Sequence[Sequence[str]], result: Vocabulary, has: _Rows) -> tuple[Tensor, Matched]:
    """For every row of the result the model's own row, or -1 where it has none [V']; and what was found."""
    named = set(has.known.values())
    take, moved, filled = [-1] * len(layout), [], []
    matched = padding = missing = 0
    for row, tokens in enumerate(layout):
        if tokens:
            at = [has.known[token] for token in tokens if token in has.known]
            take[row] = row if row in at else at[0] if at else -1
            matched += bool(at)
            moved += [tokens[0]] * (bool(at) and row not in at)
            filled += [tokens[0]] * (not at)
        elif row < has.count and row not in named:
            take[row] = row
            padding += 1
        else:
            missing += 1
    lost = [token for token in has.known if result.get(token, len(layout)) >= len(layout)]
    dropped = tuple(sorted(lost, key=has.known.__getitem__))
    report = Matched(matched, tuple(moved), tuple(filled), dropped, has.rowless, padding, missing)
    return torch.tensor(take, dtype=torch.long), report


def _refuse(ours: _Rows, theirs: Mapping[str, _Rows], reports: Mapping[str, Matched]) -> None:
    """ValueError with a line for every expert that differs in any way."""
    lines = []
    for task, found in reports.items():
        said = [("it alone has", found.dropped), ("it lacks", found.filled), ("it keeps elsewhere", found.moved)]
        said.append(("it has no row for", tuple(token for token in found.rowless if token not in ours.vocabulary)))
        parts = [f"{what} {_few(tokens)}" for what, tokens in said if tokens]
        if theirs[task].count != ours.count:
            parts.insert(0, f"{theirs[task].count} rows, the base has {ours.count}")
        if parts:
            lines.append(f"expert {task!r}: {'; '.join(parts)}")
    if lines:
        raise ValueError(
            "vocabularies differ:\n  "
            + "\n  ".join(lines)
            + '\n  policy "base" lines them up and keeps the tokens of the base, "union" those of all (a run\'s '
            "model.vocabulary)"
        )


def _few(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - 5} more" if len(tokens) > 5 else ""
    return ", ".join(map(repr, tokens[:5])) + more
