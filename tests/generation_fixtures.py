"""Small random models of several kinds, prompts of mixed lengths, and greedy decoding without any cache."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

import torch

from evaluation.generation import choice, slots
from evaluation.generation.capture import Capture
from evaluation.generation.decoder import Decoder
from evaluation.generation.stops import Stops

VOCABULARY = 320


def small(kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """Two blocks with random weights so large that every token depends on all that it sees, and no sum's order flips an
    argmax."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model(
        kind, **{**shape, "tie_word_embeddings": False, "eos_token_id": None, "pad_token_id": 0, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built: Any = AutoModelForCausalLM.from_config(config)
        for parameter in built.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)
    return built.eval().requires_grad_(False)


def prompts(count: int, shortest: int = 1, longest: int = 24, *, shared: int = 0) -> list[list[int]]:
    """Longest first. shared: tokens that all begin with."""
    rng = random.Random(count)
    head = [rng.randrange(2, VOCABULARY) for _ in range(shared)]
    lengths = sorted((rng.randint(shortest, longest) for _ in range(count)), reverse=True)
    return [[*head, *(rng.randrange(2, VOCABULARY) for _ in range(length))] for length in lengths]


@torch.no_grad()
def by_hand(model: Any, prompt: Sequence[int], new: int, ends: Collection[int] = ()) -> list[int]:
    """Greedy decoding of one prompt, every token from a pass over the whole sequence."""
    made: list[int] = []
    while len(made) < new and not (made and made[-1] in ends):
        made.append(int(model(input_ids=torch.tensor([[*prompt, *made]]), use_cache=False).logits[0, -1].argmax()))
    return made


def by_slots(
    model: Any,
    asked: Sequence[Sequence[int]],
    new: int,
    *,
    count: int = 3,
    ends: Collection[int] = (),
    lag: int = 0,
    stops: Stops | None = None,
    capture: Capture | None = None,
    decoder: Decoder | None = None,
) -> list[list[int]]:
    """Answers in the order of `asked`, of `count` slots."""
    room = max(map(len, asked)) + new
    made = decoder or Decoder(model, count, room, window=choice.window(model), capture=capture)
    silent = stops or Stops([], lambda tokens: [])
    found: dict[int, list[int]] = {}
    for group in slots.answers(
        made, asked, slots=count, max_new_tokens=new, ends=frozenset(ends), stops=silent, lag=lag
    ):
        assert found.keys().isdisjoint(place for place, _ in group)
        found |= dict(group)
    return [found[place] for place in range(len(asked))]
