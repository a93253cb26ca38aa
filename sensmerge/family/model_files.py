"""Shells: directories with the config.json, and the tokenizer, that make a model of a member's tensors.

A whole model has its own, an adapter wears its base's. Where rows for tokens were moved none fits, and a small one
without weights is made, below cache/shells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sensmerge import models
from sensmerge.checkpoints.json_file import read_config, read_json
from sensmerge.checkpoints.open import on_base
from sensmerge.checkpoints.reader import copy_companions
from sensmerge.family.members import Layout, Models
from sensmerge.store import build_whole, digest

# Settings that speak of tokens by number, so that they belong to an order of rows.
_NUMBERED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def shells(members: Models, layout: Layout | None, digests: Mapping[str, str], cache: Path) -> dict[str, Path]:
    """Member -> its shell; the base's also holds the tokenizer that all are asked with.

    digests: of `members.digests`. ValueError for tokens that cannot be added to the base's tokenizer.
    """
    moved = layout.moved if layout else frozenset()
    base = members.base
    if layout and "base" in moved:
        base = build_whole(cache / "shells" / digests["base"][:12], lambda folder: _widened(members, layout, folder))
    directories = {"base": base}
    for task, path in members.experts.items():
        if on_base(path):
            directories[task] = base
        else:
            directories[task] = _renumbered(path, base, cache / "shells") if task in moved else path
    return directories


def _renumbered(expert: Path, base: Path, cache: Path) -> Path:
    """The expert's config.json with what it says of tokens by number as the base says it."""
    theirs, ours = (read_config(path) for path in (expert, base))
    config = {key: value for key, value in theirs.items() if key not in _NUMBERED}
    files = {"config.json": config | {key: ours[key] for key in _NUMBERED if key in ours}}
    if (base / "generation_config.json").is_file():  # what ends an answer
        files["generation_config.json"] = read_json(base / "generation_config.json", infinite=True)

    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2))

    return build_whole(cache / digest(files)[:12], fill)


def _widened(members: Models, layout: Layout, folder: Path) -> None:
    """The base's files but its weights, the new tokens in its tokenizer, and their rows counted in config.json."""
    copy_companions(members.base, folder)
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": layout.report.rows}, indent=2))
    lenders = {
        token: next(path for task, path in sorted(members.experts.items()) if token in (layout.experts[task] or {}))
        for token in layout.report.added
    }
    models.widen_tokenizer(members.base, lenders, layout.tokens, folder)
