"""A family's members as a run uses them: opened as tensors, their rows for tokens in one order, each with its digest.

Nothing is copied: .bin shards, adapters and rows in another order are read as what they stand for, tensor by tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensmerge import models
from sensmerge.checkpoints import reader, vocabulary
from sensmerge.checkpoints.json_file import read_json
from sensmerge.checkpoints.open import on_base, open_source
from sensmerge.checkpoints.reader import Source
from sensmerge.checkpoints.vocabulary import Policy, Report, Vocabulary
from sensmerge.family.tied import Once, once
from sensmerge.store import Store, digest

_LISTED = 5
_TASK = re.compile(r"\w[\w.+@ -]{0,99}")
_MODEL = ("config.json", "generation_config.json")
_WHENCE = ("is_local", "local_files_only", "name_or_path")  # in tokenizer_config.json, left there by save_pretrained


@dataclass(frozen=True)
class Models:
    """Directories of a base and its experts by task, on disk.

    The base is a whole model; an expert is one too, or a LoRA adapter or one-bit task vector on the base. vocabulary:
    what becomes of tokens that an expert keeps elsewhere than the base (see checkpoints/vocabulary.py); None: all are
    known to agree.
    """

    base: Path
    experts: dict[str, Path]
    vocabulary: Policy | None = None

    def __post_init__(self) -> None:
        check_tasks(self.experts)
        if self.vocabulary is not None:
            vocabulary.check_policy(self.vocabulary)


def check_tasks(tasks: Iterable[str]) -> None:
    """ValueError for a task that could not be called so: names of tasks become names of directories and columns."""
    for task in tasks:
        if not _TASK.fullmatch(task):
            raise ValueError(
                f"a task is called {task[:100]!r}: a name is of at most 100 letters, digits, spaces and _.+@-, and "
                "begins with a letter, a digit or _"
            )


@dataclass(frozen=True)
class Layout:
    """How rows for tokens are brought into one order, where not all members keep them as the base does.

    base, experts: their tokenizers, token -> id; None where there is none. tokens: the result's, token -> id.
    moved: the members whose tensors are not as they are stored.
    """

    policy: Policy
    base: Vocabulary | None
    experts: Mapping[str, Vocabulary | None]
    tokens: Vocabulary
    moved: frozenset[str]
    report: Report

    def said(self) -> list[str]:
        """A sentence for every expert whose rows are not the base's: what was dropped, filled and moved."""
        return [_sentence(task, self.report) for task in sorted(self.moved - {"base"})]


def check_files(members: Models) -> None:
    """Raise FileNotFoundError or ValueError, naming the file, for one beside the weights that cannot be what its name
    says, and for one of the base's that may not be copied (`reader.copied`)."""
    for path in (members.base, *members.experts.values()):
        if path.is_dir():
            reader.check_parts(path)
            for file in reader.companions(path):
                if file.suffix == ".json" and file.name in reader.COPIED:
                    read_json(file, infinite=True)
    if members.base.is_dir():
        reader.copied(members.base)


def opened(members: Models, layout: Layout | None, stack: ExitStack) -> dict[str, Source]:
    """Every member by name, the base as "base", in the order of rows that the merge has; closed with `stack`.

    Raises what `open_source` raises for what cannot be read, ValueError for an adapter that does not fit the base, and
    for a tied head that differs from its embedding.
    """
    base = stack.enter_context(once(open_source(members.base)))
    experts = {task: stack.enter_context(once(open_source(path, base))) for task, path in members.experts.items()}
    if layout is None:
        return {"base": base, **experts}
    found = vocabulary.align(base, experts, layout.base, layout.experts, layout.policy)
    return {"base": found.base, **found.experts}


def line_up(members: Models) -> Layout | None:
    """The layout that the family's policy makes; None where every member has the base's, or the family has no policy.

    Reads headers and tokenizers. Raises what `opened` raises, and ValueError for a tokenizer that cannot be loaded, for
    vocabularies that `vocabulary.align` refuses, and, with "error", for any difference.
    """
    if members.vocabulary is None:
        return None
    with ExitStack() as stack:
        sources = opened(members, None, stack)
        base = _tokens("base", members.base)
        experts = {task: _tokens(task, path) for task, path in members.experts.items()}
        given = {task: sources[task] for task in experts}
        found = vocabulary.align(sources["base"], given, base, experts, members.vocabulary)
    aligned = {"base": found.base, **found.experts}
    moved = frozenset(member for member, source in sources.items() if aligned[member] is not source)
    return Layout(members.vocabulary, base, experts, found.vocabulary, moved, found.report) if moved else None


def _tokens(member: str, path: Path) -> dict[str, int] | None:
    try:
        return models.load_vocabulary(path)
    except BaseException as error:  # of its own kind in each of the libraries that may be asked
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers, in Rust
            raise
        raise ValueError(
            f"the tokenizer of {member!r} in {path} cannot be loaded ({type(error).__name__}: {error!s:.300}), and it "
            "tells which token each row belongs to: fetch its files again, or take them away if it has the base's"
        ) from error


def _sentence(task: str, report: Report) -> str:
    found = report.experts[task]
    parts = [f"{found.matched} tokens matched"]
    for what, tokens in (("dropped", found.dropped), ("filled", found.filled), ("moved", found.moved)):
        if tokens:
            more = ", ..." if len(tokens) > _LISTED else ""
            parts.append(f"{len(tokens)} {what} ({', '.join(map(repr, tokens[:_LISTED]))}{more})")
    if found.padding_filled:
        parts.append(f"{found.padding_filled} rows of no token filled")
    return f"vocabulary of {task} brought to {report.rows} rows by {report.policy!r}: {', '.join(parts)}"


def digests(members: Models, layout: Layout | None, store: Store) -> dict[str, str]:
    """Member -> digest of what its tensors depend on: its files, an adapter's on those of the base too, and moved rows
    on the base, the policy and the order of tokens (with "union" on all experts, whose rows are the new tokens').

    A tied head that is stored a second time used to be merged on its own: a model with one has another digest since.
    All files of all members are read side by side, as many as there are processors: sha256 takes longer than reading.
    """
    with ExitStack() as stack:
        twice = {member for member, source in opened(members, None, stack).items() if isinstance(source, Once)}
    paths = [members.base, *members.experts.values()]
    with ThreadPoolExecutor(_processors()) as files, ThreadPoolExecutor(len(paths)) as each:
        base, *others = each.map(lambda path: checkpoint_digest(path, store, files), paths)
    base = digest({"member": base, "head": "once"}) if "base" in twice else base
    found = {"base": base}
    for (task, path), own in zip(members.experts.items(), others, strict=True):
        found[task] = digest({"adapter": own, "base": base}) if on_base(path) else own
        found[task] = digest({"member": own, "head": "once"}) if task in twice else found[task]
    if layout is None:
        return found
    rows: dict[str, Any] = {"base": base, "policy": layout.policy, "tokens": layout.tokens}
    if layout.policy == "union":
        rows["experts"] = dict(found)
    return {m: digest({"member": one, **rows}) if m in layout.moved else one for m, one in found.items()}


def tokenizer_digest(path: Path) -> str:
    """sha256 of the files beside the weights but the model's own configuration, less what says only where a tokenizer
    was loaded from."""
    found = {}
    for file in reader.companions(path):
        if file.name not in _MODEL:
            found[file.relative_to(path).as_posix()] = file.read_bytes().decode("utf-8", "surrogateescape")
            if file.name == "tokenizer_config.json":
                content = read_json(file, infinite=True)
                found[file.name] = {key: value for key, value in content.items() if key not in _WHENCE}
    return digest(found)


def _processors() -> int:
    """Of those that this process may use; more than 16 would only wait for the disk."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


def checkpoint_digest(path: Path, store: Store, pool: Executor | None = None) -> str:
    """reader.digest, remembered for as long as no file of the checkpoint changes its size or time."""
    files = [(p.relative_to(path), p.stat()) for p in reader.parts(path)]
    listing = [[name.as_posix(), found.st_size, found.st_mtime_ns] for name, found in files]
    key = {"path": str(path.resolve()), "files": listing, "version": 2}  # 1 did not look at .txt and .jinja
    return store.compute("digest", key, lambda: reader.digest(path, pool))[0]
