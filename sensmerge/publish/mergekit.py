"""A merge of ours as a configuration of mergekit 0.1.5: for people who merge with that, with our coefficients.

mergekit takes a weight for each model and tensor: the first of a list of conditions whose filter is a part of the
tensor's name decides. Its task_arithmetic is `base + lambda * sum_i weight_i (expert_i - base)`, computed in `dtype`
and stored in `out_dtype`, which is ours where `dtype` is float32. Nothing here imports mergekit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sensmerge.checkpoints.header import Entry
from sensmerge.coefficients import Table
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, TaskArithmetic, Ties
from sensmerge.tensor_names import block_of, block_tag

VERSION = "0.1.5"  # of mergekit, whose sources and results this was checked against
# TIES's mean has the count of agreeing experts below the line here, the sum of their weights there.
RATIOS = "where experts agree it divides by the sum of their weights, we by their count: only ratios survive"
# Models (config.json's model_type) whose tensors mergekit takes from a list of its own, which has no biases.
_WITHOUT_BIASES = {"llama", "mistral"}
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class NotExpressible(ValueError):
    """mergekit has no setting for this, or only one that means something else."""


@dataclass(frozen=True)
class Exported:
    """config: what mergekit reads. differences: what in it does not mean what ours does; empty: rounding apart, the
    same numbers."""

    config: dict[str, Any]
    differences: tuple[str, ...]

    def to_yaml(self) -> str:
        """The file for `mergekit-yaml`, its differences as comments on top."""
        import yaml

        notes = [
            f"Written by sensmerge for mergekit {VERSION}.",
            *(f"Not the same: {one}." for one in self.differences),
        ]
        head = "".join(f"# {note}\n" for note in notes)
        return head + yaml.safe_dump(self.config, sort_keys=False, width=1000)


@dataclass(frozen=True)
class Method:
    """A merger in mergekit's words. scale: its lambda. each: parameters of every model beside the weight."""

    name: str
    scale: float
    normalize: bool = False
    rescale: bool | None = None
    each: Mapping[str, float] | None = None
    differences: tuple[str, ...] = ()

    @property
    def elects(self) -> bool:
        return self.name in ("ties", "dare_ties", "breadcrumbs_ties", "della")


def export(
    merger: Merger,
    table: Table,
    entries: Mapping[str, Entry],
    *,
    base: str,
    experts: Mapping[str, str],
    approximate: bool = False,
    moved: Sequence[str] = (),
    model_type: str | None = None,
) -> Exported:
    """mergekit's configuration of this merge.

    entries: the base's tensors. base, experts: paths or hub ids as mergekit shall read them, `base+adapter` for a LoRA
    adapter. moved: members whose rows for tokens are not where the base has them. model_type: as in the base's
    config.json. approximate: also write what mergekit can only do differently, with the differences named in it.

    Raises NotExpressible for what mergekit cannot do, or, without `approximate`, does otherwise; ValueError for other
    tasks, or another model, than the table's.
    """
    table.check(sorted(experts), entries)
    merger.check(len(experts))
    method = method_of(merger, len(experts))
    dtype, more = _dtype(entries)
    differences = [*method.differences, *_of_coefficients(method, table, entries), *more, *_of_inputs(experts, moved)]
    differences += _of_names(model_type, entries)
    if differences and not approximate:
        raise NotExpressible(
            f"mergekit {VERSION} cannot repeat this merge: {'; '.join(differences)}. approximate (on the command line "
            "--approximate) writes what comes nearest, with this said in it"
        )
    models = [
        {"model": experts[task], "parameters": {"weight": _weight(table, at, entries), **(method.each or {})}}
        for at, task in enumerate(table.tasks)
    ]
    parameters: dict[str, Any] = {"normalize": method.normalize, "lambda": method.scale}
    if method.rescale is not None:
        parameters["rescale"] = method.rescale
    config = {
        "merge_method": method.name,
        "base_model": base,
        "models": models,
        "parameters": parameters,
        "dtype": "float32",
        "out_dtype": dtype,
    }
    return Exported(config, tuple(differences))


def _weight(table: Table, at: int, entries: Mapping[str, Entry]) -> Any:
    """The weight of expert number `at`: a number, or conditions in the order in which mergekit asks them."""
    wanted = {name: table.weights(name)[at].item() for name in entries}
    default = table.default.float()[at].item()
    if set(wanted.values()) <= {default}:
        return default
    tags = {block: block_tag(name) for name in entries if (block := block_of(name)) is not None}
    rules = [(name, wanted[name]) for name in table.outside if name in entries]
    rules += [(tag, table.blocks.float()[at, block].item()) for block, tag in sorted(tags.items())]
    for name, weight in wanted.items():
        found = next((value for part, value in rules if part in name), default)
        if found != weight:
            raise NotExpressible(
                f"{name} would get {found} instead of {weight}: mergekit's filters are parts of names, and one of "
                f"{[part for part, _ in rules if part in name]} belongs to another tensor"
            )
    return [*({"filter": part, "value": value} for part, value in rules), {"value": default}]


def method_of(merger: Merger, experts: int) -> Method:
    """Raises NotExpressible for a merger that mergekit has no word for."""
    if merger.survey(experts) is not None:
        what = type(merger).__name__
        raise NotExpressible(
            f"mergekit trims tensor by tensor, and {what} with scope=model looks at whole vectors: take scope=tensor"
        )
    match merger:
        case Average():
            return Method("task_arithmetic", 1 / experts)
        case TaskArithmetic(scale=scale):
            return Method("task_arithmetic", scale)
        case Ties():
            return _ties("ties", merger, merger.density)
        case Dare(drop=drop, inner=inner):
            masks = "masks are drawn from one random stream, which no seed of ours repeats"
            # Its own rescaling is to the L1 norm; a common factor behind the sum is DARE's 1 / (1 - drop).
            return _around("dare_linear", "dare_ties", inner, experts, 1 / (1 - drop), {"density": 1 - drop}, (masks,))
        case Breadcrumbs(density=density, gamma=gamma, inner=inner):
            counts = "counts of dropped and kept entries are cut to whole numbers, ours rounded"
            more = () if density < 1 else ("with density 1 it keeps outliers too",)
            each = {"density": density, "gamma": gamma}
            return _around("breadcrumbs", "breadcrumbs_ties", inner, experts, 1.0, each, (counts, *more))
        case Della(density=density, epsilon=epsilon, inner=inner):
            if density + epsilon >= 1:
                raise NotExpressible(f"mergekit's della asks for density + epsilon below 1, got {density} + {epsilon}")
            notes = ("masks are drawn from one random stream", "what is kept is rescaled to the tensor's L1 norm, by "
                     "us each entry by its own probability")  # fmt: skip
            each = {"density": density, "epsilon": epsilon}
            found = _around("della_linear", "della", inner, experts, 1.0, each, notes)
            return Method(found.name, found.scale, found.normalize, True, found.each, found.differences)
    raise NotExpressible(f"{type(merger).__name__} has no counterpart in mergekit that takes weights for each expert")


def _around(
    plain: str,
    elected: str,
    inner: Merger,
    experts: int,
    factor: float,
    each: Mapping[str, float],
    differences: tuple[str, ...],
) -> Method:
    """A sparsifier around a merger: `plain` where that is a sum, `elected` where it is TIES without a trim."""
    if isinstance(inner, Ties) and inner.density == 1:
        found = _ties(elected, inner, None)
    elif isinstance(inner, (Average, TaskArithmetic)):
        found = method_of(inner, experts)
        found = Method(plain, found.scale)
    else:
        raise NotExpressible(f"mergekit sparsifies once: its {plain} cannot have {inner} inside")
    return Method(
        found.name, found.scale * factor, found.normalize, False, dict(each), (*differences, *found.differences)
    )


def _ties(name: str, merger: Ties, density: float | None) -> Method:
    cancelled = f"entries whose votes cancel exactly count as positive there, here cancelled={merger.cancelled} decides"
    equals = "of equal magnitudes at the threshold it keeps arbitrary ones, and int(density n) in all"
    trims = density is not None and density < 1
    each = {"density": density} if density is not None else None
    return Method(name, merger.scale, True, None, each, (cancelled, *([equals] if trims else [])))


def _of_coefficients(method: Method, table: Table, entries: Mapping[str, Entry]) -> list[str]:
    return [RATIOS] if method.elects and any((table.weights(name) != 1).any() for name in entries) else []


def _of_inputs(experts: Mapping[str, str], moved: Sequence[str]) -> list[str]:
    found = [f"{task} is an adapter, which is folded and rounded first" for task, at in experts.items() if "+" in at]
    if moved:
        found.append(f"rows for tokens of {', '.join(sorted(moved))} are lined up here, and not by this configuration")
    return found


def _of_names(model_type: str | None, entries: Mapping[str, Entry]) -> list[str]:
    biases = [name for name in entries if name.endswith(".bias")] if model_type in _WITHOUT_BIASES else []
    if not biases:
        return []
    return [
        f"it leaves {len(biases)} biases such as {biases[0]} out of the result without a word, for its list of "
        f"{model_type}'s tensors has none"
    ]


def _dtype(entries: Mapping[str, Entry]) -> tuple[str, list[str]]:
    """What the most numbers of the base are stored in; mergekit stores all of a checkpoint alike."""
    sizes: dict[torch.dtype, int] = {}
    for entry in entries.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + torch.Size(entry.shape).numel()
    first = max(sizes, key=lambda dtype: sizes[dtype])
    if first not in _DTYPES:
        raise NotExpressible(f"the base is stored in {first}; export knows {sorted(_DTYPES.values())}")
    others = sorted(str(dtype) for dtype in sizes if dtype != first)
    return _DTYPES[first], [f"tensors of {', '.join(others)} are stored in {first}"] if others else []
