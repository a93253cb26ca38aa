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
from sensmerge.checkpoints.reader import Source
from sensmerge.tensor_names import block_of

Part = int | Literal["embedding", "head", "rest"]


@dataclass(frozen=True)
class Call:
    """What the base model passes to a block beside the hidden states, for one sample."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Slot:
    """A place for one tensor. name: as named_parameters says it (a tied tensor's first); stored: in the checkpoint."""

    part: Part
    module: nn.Module
    attribute: str
    name: str
    stored: str
    empty: Tensor  # what stands there when nothing does: shape and dtype on "meta"


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
        kept = self._model._keep_in_fp32_modules_strict
        if self._model.dtype == torch.float16:
            kept = kept | self._model._keep_in_fp32_modules
        if kept and self._model.dtype != torch.float32:
            self.refuse(f"keeps {sorted(kept)} in fp32 whatever the dtype")
        self.tied = self.head.weight is self.embedding.weight
        self.embedding.sparse = True  # its gradient then has the rows of the tokens that occur, and no others
        self._checkpoint_names = models.stored_names(self._model, source.names)
        self._slots = list(self._find_slots())

    def refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"{type(self._model).__name__} {why}: its blocks cannot be streamed; keep the resident pass "
            "(--stream off, stream=False)"
        )

    def _find_blocks(self) -> nn.ModuleList:
        inner = self._base.named_modules() if self._base is not self._model else ()
        for name, module in inner:
            if isinstance(module, nn.ModuleList) and block_of(f"{name}.0.weight") == 0:
                return module
        self.refuse("has no base model with a list of decoder blocks that sensmerge/tensor_names.py knows")

    def _find_slots(self) -> Iterator[_Slot]:
        aliases: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        for path, module in self._model.named_modules():
            local = {**module._parameters, **module._buffers}
            for attribute, empty in local.items():
                if empty is None or attribute in module._non_persistent_buffers_set:
                    continue
                name = f"{path}.{attribute}".lstrip(".")
                names = aliases.get(id(empty), [name])
                part: Part = "embedding" if module is self.embedding else "head" if module is self.head else "rest"
                if (block := block_of(name)) is not None:
                    part = block
                if len(names) > 1 and not (part in ("embedding", "head") and self.tied and len(names) == 2):
                    self.refuse(f"shares one tensor as {names}")
                yield _Slot(part, module, attribute, names[0], self._stored(names, empty), empty)

    def _stored(self, names: list[str], empty: Tensor) -> str:
        """Which of the checkpoint's tensors fills the place that the model calls by `names`."""
        found = [self._checkpoint_names[name] for name in names if name in self._checkpoint_names]
        if not found:
            self.refuse(f"needs {names[0]}, which {self._source.path} lacks or stores in another form")
        if (shape := self._source.entries[found[0]].shape) != tuple(empty.shape):
            raise ValueError(
                f"{found[0]} has shape {list(shape)} in {self._source.path}, config.json makes it {list(empty.shape)}"
            )
        if len(found) > 1 and not torch.equal(*(self._source.tensor(name) for name in found)):
            self.refuse(f"ties {found[0]} to {found[1]} by its config, but {self._source.path} holds two tensors")
        return found[0]

    @contextmanager
    def holding(self, *parts: Part) -> Iterator[dict[str, nn.Parameter]]:
        """The parameters of `parts` by name, in place while the context lasts; all on "meta" again after it."""
        slots = [slot for slot in self._slots if slot.part in parts]
        held: dict[str, nn.Parameter] = {}
        try:
            for slot in slots:
                self._fill(slot, held)
            yield held
        finally:
            for slot in slots:
                setattr(slot.module, slot.attribute, slot.empty)
            held.clear()  # or the caller's variable would keep this part alive while the next is loaded
            self._source.release()

    def _fill(self, slot: _Slot, held: dict[str, nn.Parameter]) -> None:
        tensor = self._source.tensor(slot.stored).to(device=self.device, dtype=slot.empty.dtype)
        if isinstance(slot.empty, nn.Parameter):
            held[slot.name] = tensor = nn.Parameter(tensor)
        setattr(slot.module, slot.attribute, tensor)

    def whole_head(self) -> nn.Linear:
        """The head with its weights, for good, gradients off; the module [n, d] -> [n, V] is no longer this shell's."""
        for slot in self._slots:
            if slot.part == "head":
                tensor = self._source.tensor(slot.stored).to(device=self.device, dtype=slot.empty.dtype)
                setattr(slot.module, slot.attribute, nn.Parameter(tensor, requires_grad=False))
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
