"""A causal LM with no weights in it, filled from its checkpoint one part at a time: transformers' modules, never whole.

Parts are the decoder blocks by index, the token embedding, the head, and the rest (final norm, position embeddings).
How a block is called (rotary tables, masks, positions) is transformers' business: the base model's own forward runs
with its blocks replaced by recorders, and what it hands them is what they are called with later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from sensmerge import models
from sensmerge.checkpoints import slots
from sensmerge.checkpoints.reader import Source
from sensmerge.checkpoints.slots import Slot
from sensmerge.tensor_names import block_of

Part = int | Literal["embedding", "head", "rest"]
_ADVICE = ": its blocks cannot be streamed; keep the resident pass (--stream off, stream=False)"


@dataclass(frozen=True)
class Call:
    """What the base model passes to a block beside the hidden states, for one sample."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """One of the places of a slot: tied embedding and head are two, each filled when its part's turn comes."""

    part: Part
    slot: Slot
    module: nn.Module
    attribute: str


class Shell:
    """Run the parts of the causal LM whose tensors are `source`'s, one after another.

    shell: the directory of its config.json (None: where the tensors lie). dtype, device: as in `models.load`.
    names: every parameter, as the resident model names them.
    tied: whether token embedding and head are one tensor, counted under the embedding's name.

    Raises ValueError naming the architecture where its parts cannot be run one by one (what `rehearse` finds included),
    and for tensors that the checkpoint lacks or holds in another shape.
    """

    def __init__(
        self, source: Source, shell: Path | None = None, *, dtype: str = "auto", device: torch.device | str = "cpu"
    ) -> None:
        self._source = source
        self.device = torch.device(device)
        self._model = models.shell(shell or source.path, dtype=dtype, device=self.device)
        self._base = self._model.base_model
        self.names = [name for name, _ in self._model.named_parameters()]
        self.blocks = self._find_blocks()
        self.embedding, self.head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        if not isinstance(self.embedding, nn.Embedding) or not isinstance(self.head, nn.Linear):
            self.refuse(f"has {type(self.embedding).__name__} and {type(self.head).__name__} at its ends")
        self.tied = self.head.weight is self.embedding.weight
        self.embedding.sparse = True  # its gradient then has the rows of the tokens that occur, and no others
        stored = models.stored_names(self._model, source.names)
        self._places = [
            place for slot in slots.find(self._model, source, stored, advice=_ADVICE) for place in self._split(slot)
        ]

    def refuse(self, why: str) -> NoReturn:
        raise ValueError(f"{type(self._model).__name__} {why}{_ADVICE}")

    def _find_blocks(self) -> nn.ModuleList:
        inner = self._base.named_modules() if self._base is not self._model else ()
        for name, module in inner:
            if isinstance(module, nn.ModuleList) and block_of(f"{name}.0.weight") == 0:
                return module
        self.refuse("has no base model with a list of decoder blocks that sensmerge/tensor_names.py knows")

    def _split(self, slot: Slot) -> Iterator[_Place]:
        block = block_of(slot.names[0])
        ends: dict[nn.Module, Part] = {self.embedding: "embedding", self.head: "head"}
        parts: list[Part] = [ends.get(module, "rest") if block is None else block for module, _ in slot.places]
        if len(parts) > 1 and not (self.tied and sorted(map(str, parts)) == ["embedding", "head"]):
            self.refuse(f"shares one tensor as {list(slot.names)}")
        for part, (module, attribute) in zip(parts, slot.places, strict=True):
            yield _Place(part, slot, module, attribute)

    @contextmanager
    def holding(self, *parts: Part) -> Iterator[dict[str, nn.Parameter]]:
        """The parameters of `parts` by name, in place while the context lasts; all on "meta" again after it."""
        places = [place for place in self._places if place.part in parts]
        held: dict[str, nn.Parameter] = {}
        try:
            for place in places:
                value = place.slot.read(self._source, self.device, requires_grad=True)
                if isinstance(value, nn.Parameter):
                    held[place.slot.names[0]] = value
                setattr(place.module, place.attribute, value)
            yield held
        finally:
            for place in places:
                setattr(place.module, place.attribute, place.slot.empty)
            held.clear()  # or the caller's variable would keep this part alive while the next is loaded
            self._source.release()

    def whole_head(self) -> nn.Linear:
        """The head with its weights, for good, gradients off; the module [n, d] -> [n, V] is no longer this shell's."""
        for place in self._places:
            if place.part == "head":
                setattr(place.module, place.attribute, place.slot.read(self._source, self.device))
        assert isinstance(self.head, nn.Linear)
        return self.head

    def opening(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """From token ids [T] to the first block's input [1, T, d], and the call of every block. Holds: embedding, rest.

        Recorded under grad, so that an argument computed from weights is noticed: its gradient would be lost.
        """
        calls: list[Call] = []
        passed: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Tensor:
            if not args or not isinstance(args[0], Tensor) or (passed and args[0] is not passed[0]):
                self.refuse("does more between its blocks than hand hidden states on")
            for value in (*args[1:], *kwargs.values()):
                if not _constant(value):
                    self.refuse(f"passes its blocks a {type(value).__name__} that is no constant of the sample")
            passed.append(args[0])
            calls.append(Call(args[1:], kwargs))
            return args[0]

        with torch.enable_grad(), _replaced(dict.fromkeys(self.blocks, record)):
            self._base(input_ids=ids.to(self.device)[None], use_cache=False)
        if len(calls) != len(self.blocks):
            self.refuse(f"called {len(calls)} of its {len(self.blocks)} blocks")
        return passed[0], calls

    def block(self, index: int, hidden: Tensor, call: Call) -> Tensor:
        """One block's output [1, T, d] for its input. Holds: the block."""
        output = self.blocks[index](hidden, *call.args, **call.kwargs)
        if not isinstance(output, Tensor) or (output.shape, output.dtype) != (hidden.shape, hidden.dtype):
            self.refuse("has blocks that do not turn hidden states into hidden states of the same kind")
        return output

    def closing(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """From the last block's output to the last hidden state, both [1, T, d]. Holds: rest."""
        with self._ending_in(hidden):
            return self._base(input_ids=ids.to(self.device)[None], use_cache=False).last_hidden_state

    @torch.enable_grad()
    def rehearse(self, ids: Tensor) -> None:
        """Both ends without the blocks between them, on one sample: ValueError for what could not be streamed.

        Refused are logits that are not the head of the last hidden state (a soft cap or a scale would be lost: the
        same rule as alignment.predict's), a weight outside the blocks that is used before and after them, and a token
        embedding whose gradient is not one of rows.
        """
        with self.holding("embedding", "rest") as held:
            hidden, _ = self.opening(ids)
            before = _gradients(hidden, held)
            if not any(
                p is self.embedding.weight and name in before and before[name].is_sparse for name, p in held.items()
            ):
                self.refuse("embeds tokens in a way of its own")
            hidden = hidden.detach()
        with self.holding("head", "rest") as held:
            last = self.closing(ids, hidden)
            after = _gradients(last, {name: p for name, p in held.items() if p is not self.head.weight})
            if both := sorted(before.keys() & after.keys()):
                self.refuse(f"uses {both} before and after its blocks")
            self._check_head(ids, hidden, last)

    @torch.no_grad()
    def _check_head(self, ids: Tensor, hidden: Tensor, last: Tensor) -> None:
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self.head.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        try:
            with self._ending_in(hidden):
                logits = self._model(input_ids=ids.to(self.device)[None], use_cache=False).logits
        finally:
            handle.remove()
        # Equal to the bit: a soft cap moves small logits by less than any tolerance worth having.
        if len(seen) != 1 or not _same(seen[0][0], last) or not _same(seen[0][1], logits):
            self.refuse("changes its logits around the output embedding")

    def _ending_in(self, hidden: Tensor) -> Any:
        """While it lasts the stack of blocks gives `hidden`, whatever it is asked, and no token is embedded."""
        empty = hidden.new_zeros(*hidden.shape[:2], self.embedding.embedding_dim)

        def same(given: Tensor, *_: Any, **__: Any) -> Tensor:
            return given

        forwards: dict[nn.Module, Callable[..., Tensor]] = dict.fromkeys(self.blocks, same)
        forwards[self.blocks[-1]] = lambda *_, **__: hidden
        forwards[self.embedding] = lambda *_, **__: empty
        return _replaced(forwards)


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Other forwards on these very modules: whatever else a base model reads off its blocks stays there."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal whatever the dtype; broken weights, which are not this module's to report, make equal NaN."""
    return torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True)


def _constant(value: Any) -> bool:
    """Whether a block's argument can be kept: no weight went into it, and no block can write to it (a cache)."""
    if isinstance(value, Tensor):
        return not value.requires_grad
    if isinstance(value, (tuple, list)):
        return all(_constant(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _gradients(output: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of the sum of `output`, of those parameters that it depends on."""
    if not output.requires_grad:
        return {}
    found = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
