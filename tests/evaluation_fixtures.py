"""A byte-level tokenizer, a random two-block Llama over it, and harnesses that answer without a model."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.answers import Generation, LogLikelihood, Sampling
from evaluation.harness import Harness

CORPUS = [
    "Q: Where does Ada live?\nA: in the green house by the river",
    "Question: Tom has 3 apples and buys 12 more. How many apples?\nAnswer: 3 + 12 = 15\n#### 15",
    "def add(a, b):\n    return a + b\n\nclass Thing:\n    pass\n",
]


@functools.cache
def tokenizer() -> Any:
    """320 tokens: two specials, the 256 bytes, a few merges. No BOS, as in many models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


def model(*, positions: int = 512, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=False,  # tied random weights repeat one token for ever
        bos_token_id=None,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = LlamaForCausalLM(config)
        with torch.no_grad():  # far from uniform, so that batching cannot flip an argmax
            built.model.embed_tokens.weight.mul_(40)
            built.lm_head.weight.mul_(40)
    return built.eval().requires_grad_(False)


class Answering(Harness):
    """A harness without a model: `write` continues a prompt, `likes` gives a continuation's log-probability."""

    def __init__(
        self,
        write: Callable[[str], str] = lambda prompt: "",
        likes: Callable[[str, str], float] = lambda context, continuation: 0.0,
    ) -> None:
        self._write, self._likes = write, likes

    def settings(self) -> dict[str, Any]:
        return {"batch_size": 1}

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, ids: Sequence[str] | None = None, clip: bool = False
    ) -> list[LogLikelihood]:
        return [LogLikelihood(self._likes(*pair), False) for pair in pairs]

    def chat(self, said: str | Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else said
        return "".join(f"<{turn['role']}>{turn['content']}</{turn['role']}>" for turn in turns)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        ids: Sequence[str] | None = None,
        clip: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        return [Generation(self._write(prompt), truncated=False) for prompt in prompts]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
