"""Sens-Merging for programs of your own: open a family, compute its coefficients, merge to disk or into memory.

What a run does is made of the same functions, so the same models and settings give the same bytes. `import sensmerge`
has all of it by name (docs/library.md).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sensmerge import merge, models
from sensmerge.adapters import joined, peft_format
from sensmerge.adapters.factors import FactorMerger
from sensmerge.calibrate import Bar, Calibrated, Pairs, calibrate, draw_samples, no_bar, read_pairs
from sensmerge.calibration import Calibration
from sensmerge.checkpoints import hub, onebit, staging
from sensmerge.checkpoints.open import is_adapter, on_base
from sensmerge.checkpoints.vocabulary import Policy
from sensmerge.coefficients import Evidence, Rule, Sens, Table, Uniform
from sensmerge.covariances import family as seen
from sensmerge.distances.survey import survey
from sensmerge.engine.engine import Engine
from sensmerge.family import fit
from sensmerge.family.family import Family, ready
from sensmerge.family.members import Models, line_up, opened
from sensmerge.mergers import Merger
from sensmerge.publish import mergekit, recipes
from sensmerge.publish.card import card
from sensmerge.store import describe, nearest


def open_family(
    base: str | Path,
    experts: Mapping[str, str | Path],
    *,
    vocabulary: Policy = "base",
    cache: str | Path = ".cache",
) -> Family:
    """A base and its experts, found, compared and digested; the first time that reads every file once.

    base, experts (by task): directories, or owner/name[@revision] of the Hugging Face hub, which are fetched. Weights
    may be safetensors or .bin; experts may be LoRA adapters on the base. vocabulary: what becomes of tokens that an
    expert keeps elsewhere than the base (docs/engine.md). cache: where digests are remembered.

    Raises FileNotFoundError listing every model that is not there, ValueError for experts that do not fit the base.
    """
    if not experts or "base" in experts:
        raise ValueError(f"experts are one at least, by task, and none is called base; got {sorted(experts)}")
    problems = {member: hub.problem_of(place) for member, place in {"base": base, **experts}.items()}
    if found := [f"{member}: {why}" for member, why in problems.items() if why]:
        raise FileNotFoundError("these models are not there: " + "; ".join(found))
    places = {task: hub.locate(place) for task, place in sorted(experts.items())}
    family = ready(Models(hub.locate(base), places, vocabulary), Path(cache))
    with ExitStack() as stack:
        ours, theirs = family.readers(stack)
        fit.check_compatible(ours, theirs)
        fit.check_architectures(family.shells, {"base": ours, **theirs})
    return family


def compute_coefficients(
    family: Family,
    calibration: Mapping[str, Pairs | str | Path],
    *,
    rule: Rule | None = None,
    settings: Calibration | None = None,
    seed: int = 0,
    device: str = "auto",
    stream: bool | None = None,
    progress: Bar = no_bar,
) -> Calibrated:
    """Coefficients of the family's experts by block; `.table` merges, `.to_json()` is for keeping.

    calibration: task -> pairs of prompt and answer, or a .jsonl file of {"prompt", "answer"} lines. rule: default
    `Sens()`. settings: how many samples, which loss, which dtype; default `Calibration()`, 100 samples a task.
    stream: hold one block of a model at a time; None: where the model does not fit the memory that is free. progress:
    label -> what wraps an iterable, for a bar.

    Raises ValueError for tasks without pairs, and whatever drawing samples, the passes and the rule raise.
    """
    pairs = {
        task: read_pairs(Path(given)) if isinstance(given, (str, Path)) else given
        for task, given in calibration.items()
    }
    rule, settings = rule or Sens(), settings or Calibration()
    rule.check(family.tasks)
    samples = {}
    if rule.needs:
        if missing := [task for task in family.tasks if task not in pairs]:
            raise ValueError(
                f"this rule looks at data, and tasks {missing} have no calibration pairs (given: {sorted(pairs)}); "
                "give prompts with answers for each, under the experts' names"
            )
        samples = draw_samples({task: pairs[task] for task in family.tasks}, family.shells["base"], settings)
    return calibrate(family, samples, rule, settings, seed=seed, device=device, stream=stream, progress=progress)


def uniform(family: Family) -> Table:
    """Weight 1 for every expert in every tensor: the merger as its own paper has it."""
    with ExitStack() as stack:
        return Uniform().table(Evidence(family.tasks, family.opened(stack)["base"].names))


def write_merged(
    family: Family,
    out: str | Path,
    merger: Merger,
    table: Table,
    *,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    title: str | None = None,
    rule: Rule | None = None,
    dtype: str | None = None,
    covariances: Mapping[str, Path] | None = None,
    progress: merge.Progress = iter,
) -> Path:
    """Merge into a new Hugging Face checkpoint at `out`: weights, tokenizer, configuration, merge.json, model card.

    `out` appears when all of it is complete; what a killed call left is taken up by the same call. seed: of a merger
    that draws. rule: what made the table, for the card. dtype: "float32", "float16" or "bfloat16", of what is written;
    None is the base's. covariances: task -> what `sensmerge.covariances.family` made, for mergers that look at
    inputs of layers (`covariance`, `regmean`); "base" -> the base's `activity`, for `aim`.

    Raises FileExistsError where `out` holds something, OSError where there is no room, ValueError for coefficients of
    other tasks and for results that are not finite.
    """
    out = Path(out)
    recipe = recipes.made_of(family, merger, table, seed, dtype=dtype)
    if covariances and {"grams", "activity"} & merger.told:
        recipe["covariances"] = {task: Path(place).name for task, place in sorted(covariances.items())}
    stored = getattr(torch, dtype) if dtype else None
    kept = recipes.published(family, recipe)
    described = describe(rule) if rule else None
    moved = "; ".join(family.layout.said()) if family.layout else None
    text = card(title or out.resolve().name, recipe, sources=kept["sources"], rule=described, moved=moved)
    with ExitStack() as stack:
        merged = _merge(stack, family, merger, table, seed, device, threads, covariances)
        output = merge.Output(out, merged, text, kept, family.shells["base"], stored)
        needed, free = sum(entry.nbytes for entry in output.entries), shutil.disk_usage(nearest(out)).free
        if free < needed:
            raise OSError(f"{out} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
        merge.write_all([output], progress)
    return out


def write_adapter(
    family: Family, out: str | Path, merger: Merger, table: Table, *, seed: int = 0, dtype: str | None = None
) -> Path:
    """Merge LoRA experts into a new adapter at `out`, in PEFT's format, with merge.json beside it.

    merger: one of sensmerge/adapters, without a rank. dtype: of what is written; None is float32.

    Raises FileExistsError where `out` holds something, ValueError for another merger, for experts that are no adapters
    or whose factors do not fit together.
    """
    out = Path(out)
    staging.check_output(out)
    if not isinstance(merger, FactorMerger) or merger.rank is not None:
        raise ValueError(
            f"{type(merger).__name__} makes whole weights: an adapter is written by mergers of factors (robustmerge, "
            "lora_average, lora_ties, lora_dare) with rank=null"
        )
    kept = recipes.published(family, recipes.made_of(family, merger, table, seed, dtype=dtype))
    place, _, _ = recipes.whereabouts(family.members, paths=False).get("base", "").partition("@")

    part = staging.staging_of(out.resolve())
    with ExitStack() as stack:
        made = joined.adapter(merger, *family.readers(stack), table, seed)
    part.mkdir(parents=True, exist_ok=True)
    try:
        peft_format.write(part, made, base=place or None, dtype=getattr(torch, dtype or "float32"))
        (part / "merge.json").write_text(json.dumps(kept, indent=2, sort_keys=True), encoding="utf-8")
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part)
        raise
    return out


def write_onebit(family: Family, out: str | Path) -> dict[str, tuple[int, int]]:
    """Store each expert as signs and scales, in `out`/<task>/onebit.safetensors, which is an expert wherever one is
    asked for; task -> bytes of its file, and of the same tensors' task vectors in bf16.

    Raises FileExistsError where `out` is, ValueError for experts whose rows for tokens are not the base's.
    """
    out = Path(out)
    staging.check_output(out)
    if family.layout:
        raise ValueError(f"experts have other tokens than the base ({'; '.join(family.layout.said())}): resize them")
    part = staging.staging_of(out.resolve())
    sizes = {}
    try:
        with ExitStack() as stack:
            base, experts = family.readers(stack)
            for task, expert in experts.items():
                (part / task).mkdir(parents=True)
                size = onebit.write(part / task, base, expert)
                with onebit.OneBit(part / task, base) as made:
                    sizes[task] = (size, 2 * sum(math.prod(base.entries[name].shape) for name in made.changed))
        if out.is_dir():
            out.rmdir()
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return sizes


def load_merged(
    family: Family,
    merger: Merger,
    table: Table,
    *,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    covariances: Mapping[str, Path] | None = None,
) -> tuple[Any, Any]:
    """The merged model and its tokenizer, transformers' own, in memory; nothing is written.

    dtype: "auto" is the base's. What is merged is rounded to the base's dtype in any case, as a checkpoint would be.
    Within `across_points()` several merges on a GPU read base and experts once, where they fit beside the model.
    """
    place = models.resolve_device(device)
    model = family.to_fill(dtype=dtype, device=place)
    with ExitStack() as stack:
        merge.load_into(model, _merge(stack, family, merger, table, seed, device, threads, covariances))
    return model, models.load_tokenizer(family.shells["base"])


def export_mergekit(
    members: Models, merger: Merger, table: Table | Rule | None = None, *, approximate: bool = False
) -> mergekit.Exported:
    """The merge as mergekit's configuration; see `sensmerge.publish.mergekit.export` for what it can say, and refuses.

    members: of an open family its `.members`. table: or a rule that needs no data; None: uniform. Reads
    headers and tokenizers, no weights.
    """
    layout = line_up(members)
    known = recipes.whereabouts(members, paths=True)
    if coarse := [task for task, path in members.experts.items() if on_base(path) and not is_adapter(path)]:
        raise ValueError(f"experts {coarse} are one-bit task vectors, which mergekit does not read: export whole ones")
    adapters = {task for task, path in members.experts.items() if is_adapter(path)}
    experts = {task: f"{known['base']}+{known[task]}" if task in adapters else known[task] for task in members.experts}
    with ExitStack() as stack:
        base = opened(members, layout, stack)["base"]
        if not isinstance(table, Table):
            table = (table or Uniform()).table(Evidence(sorted(experts), base.names))
        return mergekit.export(
            merger,
            table,
            base.entries,
            base=known["base"],
            experts=experts,
            approximate=approximate,
            moved=sorted(layout.moved) if layout else (),
            model_type=models.model_type(members.base),
        )


def _merge(
    stack: ExitStack,
    family: Family,
    merger: Merger,
    table: Table,
    seed: int,
    device: str,
    threads: int | None,
    covariances: Mapping[str, Path] | None,
) -> merge.Merge:
    place = models.resolve_device(device)
    base, own = family.readers(stack)
    tell: dict[str, Callable[[str], Any]] = seen.readers(covariances or {}, family.tasks)
    if "interference" in merger.told:
        found = survey(base, own)
        tell["interference"] = lambda name: found.of(base.entries[name])
    experts, merger, table = joined.as_one_expert(merger, base, own, table, seed)
    if experts is own:
        base, experts = family.staying(base, own, place)
    engine = stack.enter_context(Engine(place, threads))
    return merge.Merge(base, experts, merger, table, engine, seed, tell=tell)
