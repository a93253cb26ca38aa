"""How the `tiny` family's tokenizer and models are made: a byte-level BPE, a small Llama, Muon for its matrices."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from experiments.families.training import Recipe, finetune
from sensmerge import models
from sensmerge.calibration import Sample, encode

END = "<|end|>"
Pair = tuple[str, str]


@dataclass(frozen=True, config={"extra": "forbid"})
class Architecture:
    """A LlamaForCausalLM; kv_heads < heads shares keys and values as the large models do.

    Deep and narrow, because the method's question is asked of blocks. Embeddings start with entries of `embedding_std`
    and what writes to the residual stream (2 layers)^-0.5 smaller than other matrices (as GPT-2 does), so that every
    block has a say in the sum.
    """

    vocabulary: int = Field(default=896, ge=258)
    hidden: int = Field(default=64, gt=0)
    intermediate: int = Field(default=176, gt=0)
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    context: int = Field(default=256, gt=0)
    tied: bool = False
    embedding_std: float = Field(default=1.0, gt=0)
    matrix_std: float = Field(default=0.125, gt=0)  # hidden^-0.5

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden={self.hidden}, heads={self.heads}, kv_heads={self.kv_heads}: hidden is a multiple of twice "
                "the heads (positions turn pairs of numbers), heads a multiple of kv_heads"
            )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE in which digits and newlines stand alone.

    Single digits make arithmetic learnable; a newline that never joins the indentation after it keeps a prompt that
    ends in one tokenised as it was in training. The end token is also the padding; there is no beginning token.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE())
    isolated = pre_tokenizers.Split(Regex(r"\d|\n"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([isolated, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)


def initialise(shape: Architecture, tokenizer: Any, seed: int) -> Any:
    """A random model; the global random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        initializer_range=shape.matrix_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.model.embed_tokens.weight.normal_(std=shape.embedding_std)
            blocks: Any = model.model.layers
            for block in blocks:
                for written in (block.self_attn.o_proj, block.mlp.down_proj):
                    written.weight.mul_((2 * shape.layers) ** -0.5)
    return model


def pretrain(model: Any, samples: Sequence[Sample], recipe: Recipe, muon: float) -> float:
    """Train the base: Muon at rate `muon` for the blocks' matrices, AdamW at the recipe's for the rest.

    Muon reaches in 350 steps what AdamW alone does not in 600 at this size. Returns the last steps' mean loss.
    """
    blocks = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.dim() == 2)]
    optimizers = [
        torch.optim.Muon(blocks, lr=muon, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay),
    ]
    return finetune(model, samples, recipe, label="base", optimizers=optimizers)


def end_with_parent() -> None:
    """Let this worker process end when the process that started it does.

    A worker outlives a parent that was killed outright, and would go on writing into the next build's directory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_expert(
    root: Path,
    task: str,
    pairs: Sequence[Pair],
    recipe: Recipe,
    trained: Literal["blocks", "all"],
    threads: int,
    position: int,
) -> tuple[float, float]:
    """Fine-tune root/base on `pairs` and save it as root/<task>; (loss, seconds).

    Self-contained and picklable, so that experts can be trained in processes of their own.
    """
    start = time.perf_counter()
    torch.set_num_threads(threads)
    tokenizer = models.load_tokenizer(root / "base")
    model = models.load(root / "base", dtype="float32")
    samples = [encode(*pair, tokenizer) for pair in pairs]
    parameters = list(model.model.layers.parameters() if trained == "blocks" else model.parameters())
    loss = finetune(model, samples, recipe, label=f"{task} expert", parameters=parameters, position=position)
    models.save(model, tokenizer, root / task)
    return loss, time.perf_counter() - start


def mixture(pools: Mapping[str, Sequence[Pair]], shares: Mapping[str, float], n: int, rng: Any) -> list[Pair]:
    """About `n` pairs drawn with replacement from each task's pool in proportion to `shares`."""
    total = sum(shares.values())
    return [pair for task in sorted(pools) for pair in rng.choices(pools[task], k=round(n * shares[task] / total))]
