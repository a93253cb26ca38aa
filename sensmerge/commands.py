"""What each verb of `python -m sensmerge` does: arguments in, the text to print out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from tqdm import tqdm

from sensmerge import api, models, seeds
from sensmerge.calibrate import read_pairs
from sensmerge.calibration import Calibration
from sensmerge.checkpoints import hub
from sensmerge.checkpoints.staging import check_output
from sensmerge.checkpoints.vocabulary import Policy
from sensmerge.coefficients import Rule, Table, Uniform
from sensmerge.distances import geometry as task_vectors
from sensmerge.engine.engine import check_threads
from sensmerge.family.family import Family
from sensmerge.family.members import Models
from sensmerge.mergers import Merger
from sensmerge.onebit import OneBitMerge
from sensmerge.publish import recipe_file, recipes, strict
from sensmerge.publish.classes import build, named, options, replaced
from sensmerge.publish.recipes import Recipe
from sensmerge.publish.versions import LIBRARIES, versions
from sensmerge.store import describe, write_json

T = TypeVar("T", Merger, Rule)


def coefficients(given: Namespace) -> str:
    """Compute a table and write it, with what it was made of."""
    _absent(given.out)
    files = {task: Path(file) for task, file in _named(given.calibration, "--calibration").items()}
    if lost := [str(file) for file in files.values() if not file.is_file()]:
        raise FileNotFoundError(f"--calibration: no such file: {', '.join(lost)}")
    models.resolve_device(given.device)
    seeds.check(given.seed)
    rule = _with(named(given.rule, Rule), given.fields, Rule)
    if given.expert:
        rule.check(sorted(_named(given.expert, "--expert")))
    told = {
        "samples": given.samples, "max_length": given.max_length, "loss": given.loss, "overlong": given.overlong,
        "seed": given.sample_seed, "dtype": given.dtype,
    }  # fmt: skip
    settings = strict.parse(Calibration, told, "calibration")
    pairs = {task: read_pairs(file) for task, file in files.items()}
    family = _family(given, Recipe())
    if odd := sorted(files.keys() - set(family.tasks)):
        raise ValueError(f"--calibration names {odd}, the experts are {family.tasks}")
    stream = {"auto": None, "on": True, "off": False}[given.stream]
    found = api.compute_coefficients(
        family, pairs, rule=rule, settings=settings, seed=given.seed, device=given.device, stream=stream, progress=_bar
    )
    told = found.to_json()
    write_json(
        given.out,
        {
            "base": family.base_digest,
            "experts": family.expert_digests,
            "sources": recipes.whereabouts(family.members, paths=True),
            "vocabulary": family.members.vocabulary,
            "rule": describe(rule),
            "rule_seed": given.seed,
            "calibration": describe(settings) if rule.needs else None,
            "samples": found.samples,
            "coefficients": told.pop("table"),
            **told,
            "versions": versions(*LIBRARIES),
        },
    )
    return f"{_table(found.table)}\n{given.out}\n"


def merge(given: Namespace) -> str:
    """Write a checkpoint."""
    check_output(given.out)
    models.resolve_device(given.device)
    check_threads(given.threads)
    seeds.check(given.seed or 0)
    if given.title is not None and not given.title.isprintable():
        raise ValueError(f"--title {given.title!r}: it is one line of text")
    recipe = _recipe(given)
    merger = _chosen(given, recipe)
    if recipe.differences and not given.approximate:
        raise ValueError(
            f"{given.recipe}: mergekit means another merge: {'; '.join(recipe.differences)}; --approximate makes ours"
        )
    if isinstance(merger, OneBitMerge) and merger.routed:
        raise ValueError(
            "OneBitMerge with a router is a model for each task and no one checkpoint: add --set chosen=NUMBER (of the "
            "task whose expert is restored, by name, from 0), or --set router=none (none is)"
        )
    family = _family(given, recipe)
    recipe.check(family)
    merger.check(len(family.tasks))
    seed = recipe.seed if given.seed is None else given.seed
    if given.adapter:
        table = recipe.table or _computed(family, recipe, seed, given.device)
        return f"{api.write_adapter(family, given.out, merger, table, seed=seed, dtype=given.dtype or recipe.dtype)}\n"
    api.write_merged(
        family, given.out, merger, recipe.table or _computed(family, recipe, seed, given.device),
        seed=seed, device=given.device, threads=given.threads, title=given.title, rule=recipe.rule,
        dtype=given.dtype or recipe.dtype, progress=_bar("merge"),
    )  # fmt: skip
    return f"{given.out}\n"


def _computed(family: Family, recipe: Recipe, seed: int, device: str) -> Table:
    if recipe.conditions:
        with ExitStack() as stack:
            return recipe.conditions.table(family.tasks, family.opened(stack)["base"].names)
    rule = recipe.rule or Uniform()
    return api.compute_coefficients(
        family, recipe.calibration, rule=rule, settings=recipe.settings, seed=seed, device=device, progress=_bar
    ).table


def export(given: Namespace) -> str:
    """Write mergekit's configuration. Reads headers and tokenizers only, so digests are not compared."""
    _absent(given.out)
    recipe = _recipe(given)
    merger = _chosen(given, recipe)
    base, experts, policy = _places(given, recipe)
    members = Models(hub.locate(base), {t: hub.locate(at) for t, at in experts.items()}, policy)
    if recipe.conditions:
        raise ValueError(f"{given.recipe} is mergekit's already")
    if recipe.table is None and recipe.rule and (recipe.rule.needs or recipe.rule.weighs):
        raise ValueError(
            f"{given.recipe}: scaling: its coefficients take a pass over data or weights; compute them by `python -m "
            "sensmerge coefficients`, or merge and export the checkpoint's merge.json"
        )
    made = api.export_mergekit(members, merger, recipe.table or recipe.rule, approximate=given.approximate)
    if recipe.dtype:
        made = replace(made, config={**made.config, "out_dtype": recipe.dtype})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(made.to_yaml(), encoding="utf-8")
    return f"{given.out}\n"


def onebit(given: Namespace) -> str:
    """Write each expert's one-bit task vector; a line each with its size."""
    _absent(given.out)
    sizes = api.write_onebit(_family(given, Recipe()), given.out)
    rows = [f"{task:<16}{size:>16,}{whole:>16,}{whole / size:>8.2f}" for task, (size, whole) in sizes.items()]
    size, whole = (sum(parts) for parts in zip(*sizes.values(), strict=True))
    head = f"{'expert':<16}{'bytes':>16}{'in bf16':>16}{'ratio':>8}"
    return "\n".join([head, *rows, f"{'all':<16}{size:>16,}{whole:>16,}{whole / size:>8.2f}", str(given.out)]) + "\n"


def inspect(given: Namespace) -> str:
    """A recipe as text."""
    recipe = recipe_file.read(given.recipe)
    members = ["base", *sorted({*recipe.experts, *recipe.sources} - {"base"})]
    digests = {"base": recipe.base, **recipe.experts}
    lines = [f"{m:<12} {digests.get(m) or 'no digest'}  {recipe.sources.get(m, 'place not told')}" for m in members]
    lines += [f"merger       {describe(recipe.merger) if recipe.merger else 'not told'}", ""]
    made = describe(recipe.rule or (recipe.conditions and recipe.conditions.weights))
    return "\n".join(lines) + (_table(recipe.table) if recipe.table else f"coefficients {made}") + "\n"


def geometry(given: Namespace) -> str:
    """How the task vectors lie."""
    with ExitStack() as stack:
        base, experts = _family(given, Recipe()).readers(stack)
        return task_vectors.text(task_vectors.geometry(base, experts, _bar("geometry")))


def push(given: Namespace) -> str:
    """Upload a checkpoint, or show what that would be."""
    files = hub.listing(given.checkpoint)
    rows = [f"{size:>16,}  {name}" for name, size in files.items()]
    head = f"{sum(files.values()):>16,}  bytes in {len(files)} files"
    kind = "public" if given.public else "private"
    if given.dry_run:
        return "\n".join([*rows, head, f"would go to {given.repo} ({kind} if it is new); nothing was sent"]) + "\n"
    return "\n".join([*rows, head, hub.push(given.checkpoint, given.repo, private=not given.public)]) + "\n"


VERBS: dict[str, Callable[[Namespace], str]] = {
    "coefficients": coefficients,
    "merge": merge,
    "export": export,
    "onebit": onebit,
    "inspect": inspect,
    "geometry": geometry,
    "push": push,
}


def _bar(label: str) -> Callable[[Any], Any]:
    """A progress bar that appears only where work turns out to be long."""
    return lambda items: tqdm(items, desc=label, leave=False, delay=2)


def _absent(out: Path) -> None:
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it, or choose another --out")


def _named(words: Sequence[str], option: str) -> dict[str, str]:
    """TASK=VALUE words as a mapping."""
    found: dict[str, str] = {}
    for word in words:
        task, equals, value = word.partition("=")
        if not (task and equals and value):
            raise ValueError(f"{option} {word!r}: write TASK=PLACE, such as {option} math=path/to/it")
        if task in found:
            raise ValueError(f"{option} names {task!r} twice")
        found[task] = value
    return found


def _recipe(given: Namespace) -> Recipe:
    return recipe_file.read(given.recipe) if given.recipe else Recipe()


def _places(given: Namespace, recipe: Recipe) -> tuple[str, dict[str, str], Policy]:
    """Where base and experts are: the command line's words before the recipe's."""
    told = dict(recipe.sources)
    base = given.base or told.pop("base", None)
    experts = {task: place for task, place in told.items() if task != "base"} | _named(given.expert, "--expert")
    tasks = recipe.table.tasks if recipe.table else tuple(experts)
    missing = [f"--expert {task}=PLACE" for task in tasks if task not in experts]
    if base is None or missing or not experts:
        wanted = [] if base else ["--base PLACE"]
        raise ValueError(
            f"where the models are is not told: add {' '.join([*wanted, *missing] or ['--expert TASK=PLACE'])}"
        )
    policy = given.vocabulary or recipe.vocabulary or "base"
    return base, experts, cast(Policy, policy)


def _family(given: Namespace, recipe: Recipe) -> Family:
    base, experts, policy = _places(given, recipe)
    return api.open_family(base, experts, vocabulary=policy, cache=given.cache)


def _chosen(given: Namespace, recipe: Recipe) -> Merger:
    if given.merger:
        return _with(named(given.merger, Merger), given.fields, Merger)
    if recipe.merger is None:
        raise ValueError("no merger is told: add --merger ties, say (python -m sensmerge merge --help lists them)")
    return _with(recipe.merger, given.fields, Merger)


def _with(made: T, fields: Sequence[str], kind: type[T]) -> T:
    """`made` with FIELD=VALUE words applied; a dot leads into an inner one."""
    import yaml

    if not fields:
        return made
    description, told = describe(made), set[tuple[str, ...]]()
    for word in fields:
        path, equals, value = word.partition("=")
        *outer, last = path.split(".")
        place: dict[str, Any] = description
        for step in outer:
            inner = place.get(step)
            place = inner if isinstance(inner, dict) else {}
        allowed = options(place, kind)
        if not equals or last not in allowed:
            raise ValueError(
                f"--set {word!r}: {type(made).__name__} takes FIELD=VALUE with {', '.join(allowed) or 'none'}"
            )
        if (*outer, last) in told:
            raise ValueError(f"--set names {path} twice")
        place |= {other: None for other in replaced(place, [last], kind) if (*outer, other) not in told}
        place[last] = yaml.safe_load(value)
        told.add((*outer, last))
    return build(description, kind)


def _table(table: Table) -> str:
    """K * sigma: a line for each block, a column for each expert; then what is outside the blocks."""
    head = "block".ljust(24) + "".join(f"{task:>12}" for task in table.tasks)
    rows = {str(block): column for block, column in enumerate(table.blocks.T.tolist())}
    rows |= {name: row.tolist() for name, row in table.outside.items()}
    rows["all else"] = table.default.tolist()
    lines = [label.ljust(24) + "".join(f"{value:12.4f}" for value in row) for label, row in rows.items()]
    span = table.summary()
    return "\n".join(
        [
            head,
            *lines,
            f"blocks: {span['min']:.4f} to {span['max']:.4f}, mean {span['mean']:.4f}, spread {span['sd']:.4f}; "
            f"{span['first_block']:.0%} of it in block 0",
        ]
    )
