"""A greedy loop over fixed slots: an answer that ends makes room for the next prompt, and no answer waits for others.

The host reads tokens some steps after the device made them, so that its work (end tokens, stop strings, which prompt is
next) is done while the device computes; what a slot wrote in between belongs to nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evaluation.generation.decoder import Decoder
from evaluation.generation.stops import Stops

AT_ONCE = 8192  # tokens of prompts that enter slots in one forward pass, or one prompt
_SHARED = 16  # tokens: a prefix that all prompts share is worth a pass of its own
_REFILL = 8  # slots / _REFILL free slots are refilled together: a pass for each would cost the others a step


@dataclass
class Answer:
    """launched: tokens that the device was asked for. tokens: those that the host has read."""

    place: int
    prompt: Sequence[int]
    launched: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, where that saves something; each keeps one of its own.

    >>> shots = list(range(20))
    >>> shared_prefix([[*shots, 1], [*shots, 2, 3]]), shared_prefix([shots, shots]), shared_prefix([shots])
    (20, 19, 0)
    """
    if len(prompts) < 2:
        return 0
    most = min(map(len, prompts)) - 1
    common = next((i for i in range(most) if len({prompt[i] for prompt in prompts}) > 1), most)
    return common if common >= _SHARED else 0


@torch.no_grad()
def answers(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    slots: int,
    max_new_tokens: int,
    ends: frozenset[int],
    stops: Stops,
    lag: int = 0,
) -> Iterator[list[tuple[int, list[int]]]]:
    """(place in `prompts`, tokens) of answers that have ended since the last time, in the order in which they end.

    Tokens may go on after a stop string or an end token. lag: steps that the host reads behind the device.
    """
    waiting = deque(Answer(place, prompt) for place, prompt in enumerate(prompts))
    start = shared_prefix(prompts)
    if start:
        decoder.share(prompts[0][:start])
    running: dict[int, Answer] = {}
    free = deque(range(slots))
    unread: deque[tuple[dict[int, Answer], Callable[[], list[int]]]] = deque()
    while waiting or running or unread:
        if waiting and (not running or len(free) >= min(len(waiting), max(1, slots // _REFILL))):
            made = _enter(decoder, waiting, free, start)
            running |= made
        elif running:
            decoder.step(max(len(one.prompt) + one.launched for one in running.values()))
            made = dict(running)
        else:
            made = {}
        if made:
            for answer in made.values():
                answer.launched += 1
            unread.append((made, _later(decoder.tokens)))
        over: list[Answer] = []
        while unread and (len(unread) > lag or not made):
            of, read = unread.popleft()
            over += _read(of, read(), max_new_tokens, ends, stops)
        for slot, answer in list(running.items()):
            if answer.ended or answer.launched == max_new_tokens:
                del running[slot]
                free.append(slot)
        if over:
            yield [(answer.place, answer.tokens) for answer in over]


def _enter(decoder: Decoder, waiting: deque[Answer], free: deque[int], start: int) -> dict[int, Answer]:
    """Let the next prompts into free slots: as many as one pass takes."""
    entered: dict[int, Answer] = {}
    longest = 0
    while waiting and free:
        longest = max(longest, len(waiting[0].prompt) - start)
        if entered and longest * (len(entered) + 1) > AT_ONCE:
            break
        entered[free.popleft()] = waiting.popleft()
    decoder.enter(list(entered), [answer.prompt for answer in entered.values()], start)
    return entered


def _read(
    of: dict[int, Answer], tokens: list[int], max_new_tokens: int, ends: frozenset[int], stops: Stops
) -> list[Answer]:
    """Take in what a step wrote for the answers `of` (by slot); those that it ended."""
    for slot, answer in of.items():
        if not answer.ended:
            answer.tokens.append(tokens[slot])
    fresh = [answer for answer in of.values() if not answer.ended]
    due = [answer for answer in fresh if stops.due(len(answer.tokens))]
    heard = [one for one, said in zip(due, stops.heard([o.tokens for o in due]), strict=True) if said] if due else []
    for answer in fresh:
        answer.ended = answer.tokens[-1] in ends or len(answer.tokens) == max_new_tokens
    for answer in heard:
        answer.ended = True
    return [answer for answer in fresh if answer.ended]


def _later(values: Any) -> Callable[[], list[int]]:
    """Reads small `values` as they are now; on a CUDA device no one waits for them before that."""
    there = values.to("cpu", non_blocking=True, copy=True)
    if values.device.type != "cuda":
        return there.tolist
    event = torch.cuda.Event()
    event.record()

    def read() -> list[int]:
        event.synchronize()
        return there.tolist()

    return read
