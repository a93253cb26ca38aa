"""A base and its experts, ready to be read: rows for tokens in one order, each with digest and configuration."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sensmerge import models
from sensmerge.checkpoints.reader import Source
from sensmerge.device import lanes, resident
from sensmerge.family import model_files
from sensmerge.family.members import Layout, Models, check_files, digests, line_up, opened
from sensmerge.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """members as the merge sees them, with the digests that results are kept by.

    layout: None where rows for tokens are as they are stored. shells: member -> directory of its configuration, the
    base's with the tokenizer that all are asked with. cache: where digests are remembered, and hidden states lie when
    they do not fit in memory.
    """

    members: Models
    base_digest: str
    expert_digests: dict[str, str]
    layout: Layout | None
    shells: dict[str, Path]
    cache: Path

    @property
    def tasks(self) -> list[str]:
        return sorted(self.members.experts)

    def opened(self, stack: ExitStack) -> dict[str, Source]:
        """Every member's tensors by name, the base's as "base", as the merge sees them; closed with `stack`."""
        return opened(self.members, self.layout, stack)

    def readers(self, stack: ExitStack) -> tuple[Source, dict[str, Source]]:
        """Base and experts. What is written of the base takes its files from the base's shell."""
        experts = self.opened(stack)
        base = experts.pop("base")
        return base, experts

    def staying(
        self, base: Source, experts: dict[str, Source], device: torch.device
    ) -> tuple[Source, dict[str, Source]]:
        """What `readers` gave, such that it stays on the device where it is merged (device/resident.py). Whatever looks
        at what kind of source an expert is comes before."""
        digests = {"base": self.base_digest, **self.expert_digests}
        kept = resident.keeping({"base": base, **experts}, digests, device)
        return kept.pop("base"), kept

    def load(self, member: str, *, dtype: str, device: torch.device) -> Any:
        """A member's causal LM, resident, as the merge sees it."""
        return resident.relieved(f"loading {member}", lambda: self._loaded(member, dtype, device))

    def _loaded(self, member: str, dtype: str, device: torch.device) -> Any:
        shell = self.shells[member]
        if shell == (self.members.base if member == "base" else self.members.experts[member]):
            return models.load(shell, dtype=dtype, device=device)
        with ExitStack() as stack:
            return models.load_source(self.opened(stack)[member], shell, dtype=dtype, device=device)

    def to_fill(self, *, dtype: str, device: torch.device) -> Any:
        """The base's causal LM, resident, for a merge that sets every tensor of it: on an accelerator none is read."""
        if lanes.lane(device) is not None:
            try:
                made = partial(models.blank, self.shells["base"], dtype=dtype, device=device)
                return resident.relieved("room for the merged model", made)
            except ValueError as error:
                log.info("  the base is loaded first: %s", error)
        return self.load("base", dtype=dtype, device=device)


def ready(members: Models, cache: Path) -> Family:
    """Bring the members' rows for tokens into one order and take their digests.

    cache: where digests are remembered, and configurations kept that fit no directory there is
    (sensmerge/family/model_files.py).
    Raises what opening and lining up raise.
    """
    check_files(members)
    layout = line_up(members)
    by_member = digests(members, layout, Store(cache / "stages"))
    shells = model_files.shells(members, layout, by_member, cache)
    return Family(members, by_member.pop("base"), by_member, layout, shells, cache)
