"""A head that the model ties to its token embedding, and the checkpoint stores a second time: one tensor to a merge."""

from __future__ import annotations

import torch
from torch import Tensor

from sensmerge import models
from sensmerge.checkpoints.reader import Source
from sensmerge.tensor_names import is_head, is_input


class Once(Source):
    """`source` without tensor `twice`, which is the same as another of its own. Everything else is the source's."""

    def __init__(self, source: Source, twice: str) -> None:
        self.source = source
        self.path = source.path
        self.entries = {name: entry for name, entry in source.entries.items() if name != twice}

    def __exit__(self, *error: object) -> None:
        self.source.__exit__(*error)

    def tensor(self, name: str) -> Tensor:
        """The source's tensor. KeyError names the checkpoint."""
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        return self.source.tensor(name)

    def prefetch(self, name: str) -> None:
        """Ask the source to read ahead."""
        self.source.prefetch(name)

    def release(self) -> None:
        """Let go of the source's pages."""
        self.source.release()


def once(source: Source) -> Source:
    """`source`, or, where its config.json ties the head to the token embedding and it stores both, that without head.

    Two names would draw two masks (DARE, DELLA), of which the model has room for one. Reads both tensors then.

    Raises ValueError if the two are not equal: which of them is meant, its configuration does not say.
    """
    embedding = next((name for name in source.entries if is_input(name)), None)
    head = next((name for name in source.entries if is_head(name) and name.endswith(".weight")), None)
    if embedding is None or head is None or not models.ties_embeddings(source.path):
        return source
    if not torch.equal(source.tensor(embedding), source.tensor(head)):
        raise ValueError(
            f"{source.path}/config.json ties {embedding} and {head}, and the weights hold two different tensors: if "
            "the model was trained with both, say tie_word_embeddings: false in its config.json; else take one out"
        )
    return Once(source, head)
