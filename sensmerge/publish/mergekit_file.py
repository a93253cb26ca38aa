"""mergekit's own configuration as a merge of ours, for the methods that both have; the way back of `mergekit.export`.

What a file asks for is put into one of our mergers, and that back into mergekit's words: where the two disagree, or
where `mergekit.method_of` knows a difference, it is said. Nothing here imports mergekit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from sensmerge.coefficients import Table
from sensmerge.mergers import Average, Breadcrumbs, Dare, Della, Merger, Slerp, TaskArithmetic, Ties
from sensmerge.publish import strict
from sensmerge.publish.mergekit import RATIOS, method_of
from sensmerge.tensor_names import block_of

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties",
           "della_linear", "della", "slerp")  # fmt: skip
_ABSENT = {
    "slices": "models are merged whole here; list them under models",
    "modules": "models are merged whole here; list them under models",
    "tokenizer": "only tokenizer_source: base is the same here",
    "chat_template": "the result has the base's",
}
_NORMALIZE = {"linear", "ties", "della"}  # mergekit's defaults
_RESCALE = {"dare_linear", "dare_ties", "della_linear", "della"}
Conditional = Sequence[tuple[str, float]]  # part of a tensor's name, or "" for any; the first that fits decides


@dataclass(frozen=True)
class Conditions:
    """weights: task -> by which tensors. share: weigh each expert by its share of the sum, times their number, as
    `linear` does; of that sum, `idle` is the base's own part."""

    weights: Mapping[str, Conditional]
    share: bool = False
    idle: Conditional = (("", 0.0),)

    def table(self, tasks: Sequence[str], names: Sequence[str]) -> Table:
        """Raise ValueError where a tensor has no weight, or tensors of one block have several."""
        rows = {name: self._row(tasks, name) for name in names}
        blocks: dict[int, str] = {}
        for name in names:
            first = blocks.setdefault(block, name) if (block := block_of(name)) is not None else name
            if rows[name] != rows[first]:
                raise ValueError(
                    f"weights {rows[first]} of {first} and {rows[name]} of {name} differ: a block has one for each "
                    "expert here"
                )
        columns = [rows[blocks[block]] for block in sorted(blocks)]
        outside = {name: torch.tensor(rows[name], dtype=torch.float64) for name in names if block_of(name) is None}
        ones = torch.ones(len(tasks), dtype=torch.float64)
        return Table(tuple(tasks), torch.tensor(columns, dtype=torch.float64).T.contiguous(), ones, outside)

    def _row(self, tasks: Sequence[str], name: str) -> list[float]:
        row = [_value(self.weights[task], name, f"weight of {task}") for task in tasks]
        if not self.share:
            return row
        total = sum(row) + _value(self.idle, name, "weight of the base")
        if abs(total) < 1e-8:
            raise ValueError(f"weights of {name} sum to {total}, and their shares are wanted")
        return [weight * len(row) / total for weight in row]


def _value(conditions: Conditional, name: str, what: str) -> float:
    for part, value in conditions:
        if part in name:
            return value
    raise ValueError(f"{what}: no filter fits {name}, and there is no value without a filter")


@dataclass(frozen=True)
class Read:
    """A file of mergekit's in our terms. sources: "base" or task -> place. differences: what it means otherwise there,
    rounding apart; empty: nothing."""

    merger: Merger
    conditions: Conditions
    sources: dict[str, str]
    vocabulary: str | None
    dtype: str | None
    differences: tuple[str, ...]


@validated(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class _Config:
    merge_method: str
    models: list[Any]
    base_model: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    tokenizer_source: str | None = None


def read(content: Mapping[str, Any]) -> Read:
    """Raises ValueError, which begins with the key, for what no merger of ours can express."""
    for key, why in _ABSENT.items():
        if key in content:
            raise ValueError(f"{key}: {why}")
    given = strict.parse(_Config, content, "")
    if given.merge_method not in METHODS:
        near = strict.did_you_mean(given.merge_method, METHODS)
        raise ValueError(f"merge_method: {given.merge_method!r} is not one that both have{near}")
    if given.base_model is None:
        raise ValueError("base_model: it is missing; weights here are of differences from a base")
    if given.tokenizer_source not in (None, "base"):
        raise ValueError(f"tokenizer_source: only base is the same here, got {given.tokenizer_source!r}")
    each_may, all_may = _parameters(given.merge_method)
    strict.mapping(given.parameters, "parameters", [*each_may, *all_may])
    sources, each = {"base": given.base_model}, {}
    base_weight: Any = 0.0
    for at, content in enumerate(given.models):
        where = f"models.{at}"
        model = strict.mapping(content, where, ["model", "parameters"])
        place = strict.parse(str, model.get("model"), f"{where}.model")
        told = strict.mapping(model.get("parameters") or {}, f"{where}.parameters", each_may)
        if place == given.base_model:
            base_weight = told.get("weight", given.parameters.get("weight", 0.0))
            continue
        base, _, adapter = place.partition("+")
        if adapter and base != given.base_model:
            raise ValueError(f"{where}.model: {place} is an adapter on another model than base_model")
        name = (adapter or base).partition("@")[0].rstrip("/").rpartition("/")[2]
        task = name if name not in sources else f"{name}-{at}"
        sources[task] = adapter or base
        each[task] = {key: (value, f"{where}.parameters.{key}") for key, value in told.items()}
    if not each:
        raise ValueError("models: there is none beside the base")
    merger, conditions, differences = _merge(given, each, base_weight)
    dtype = given.out_dtype or given.dtype
    return Read(merger, conditions, sources, given.tokenizer_source, dtype, tuple(differences))


def _parameters(method: str) -> tuple[list[str], list[str]]:
    """What each model of a method may have, and what the file may have for all beside that."""
    if method == "slerp":
        return [], ["t"]
    if method == "linear":
        return ["weight"], ["normalize"]
    own = {"breadcrumbs": ["gamma"], "della": ["epsilon"]}.get(method.partition("_")[0], [])
    density = [] if method == "task_arithmetic" else ["density"]
    return ["weight", *density, *own, "lambda"], ["normalize", "rescale", "int8_mask"]


Each = Mapping[str, Mapping[str, tuple[Any, str]]]  # task -> parameter -> its value, and where that stands


def _merge(given: _Config, each: Each, base_weight: Any) -> tuple[Merger, Conditions, list[str]]:
    method, parameters = given.merge_method, given.parameters
    if method == "slerp":
        if len(each) != 1:
            raise ValueError(f"models: slerp joins base_model and one other, got {len(each)} others")
        t = strict.parse(float, parameters.get("t"), "parameters.t: slerp has one for all tensors here")
        return Slerp(t=t), Conditions({task: [("", 1.0)] for task in each}), []
    weights = {task: _conditions(*_find(each[task], parameters, "weight", None)) for task in each}
    normalize = strict.parse(bool, parameters.get("normalize", method in _NORMALIZE), "parameters.normalize")
    if method == "linear":
        if not normalize:
            raise ValueError("parameters.normalize: false scales the base too; linear is read with true only")
        idle = _conditions(base_weight, "weight of base_model")
        return Average(), Conditions(weights, share=True, idle=idle), []
    merger = _merger(method, each, parameters)
    words = method_of(merger, len(each))
    rescale = strict.parse(bool, parameters.get("rescale", method in _RESCALE), "parameters.rescale")
    if normalize != words.normalize:
        raise ValueError(f"parameters.normalize: {method} is read with {str(words.normalize).lower()} only, which is "
                         f"what {type(merger).__name__} does; here it is {str(normalize).lower()}")  # fmt: skip
    if words.rescale is not None and rescale != words.rescale:
        raise ValueError(f"parameters.rescale: {method} is read with {str(words.rescale).lower()} only: true scales "
                         "to the L1 norm there, not by the density")  # fmt: skip
    differences = list(words.differences)
    if words.elects and any(value != 1 for conditions in weights.values() for _, value in conditions):
        differences.append(RATIOS)
    return merger, Conditions(weights), differences


def _merger(method: str, each: Each, parameters: Mapping[str, Any]) -> Merger:
    def one(key: str, default: float) -> float:
        found = {}
        for task in each:
            value, where = _find(each[task], parameters, key, default)
            found[strict.parse(float, value, where)] = where
        if len(found) > 1:
            raise ValueError(f"{[*found.values()][1]}: every expert has the same {key} here, got {sorted(found)}")
        return next(iter(found))

    scale, density = one("lambda", 1.0), one("density", 1.0)
    elects = method in ("ties", "dare_ties", "breadcrumbs_ties", "della")
    around = scale * density if method.startswith("dare") else scale  # DARE divides by the density itself
    inner = Ties(density=1.0, scale=around, scope="tensor") if elects else TaskArithmetic(scale=around)
    if method.startswith("dare"):
        return Dare(drop=1 - density, inner=inner)
    if method.startswith("breadcrumbs"):
        return Breadcrumbs(density=density, gamma=one("gamma", 0.01), inner=inner)
    if method.startswith("della"):
        return Della(density=density, epsilon=one("epsilon", 0.15), inner=inner)
    return Ties(density=density, scale=scale, scope="tensor") if elects else inner


def _find(
    told: Mapping[str, tuple[Any, str]], parameters: Mapping[str, Any], key: str, default: float | None
) -> tuple[Any, str]:
    if key in told:
        return told[key]
    if key not in parameters and default is None:
        raise ValueError(f"parameters.{key}: it is missing, for a model or for all")
    return parameters.get(key, default), f"parameters.{key}"


def _conditions(value: Any, where: str) -> Conditional:
    if not isinstance(value, list):
        return [("", strict.parse(float, value, where))]
    found = []
    for at, content in enumerate(value):
        place = f"{where}.{at}"
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: a gradient over the layers is not read; give a value for each filter")
        words = strict.mapping(content, place, ["filter", "value"])
        part = strict.parse(str, words.get("filter") or "", f"{place}.filter")
        found.append(("" if part == "*" else part, strict.parse(float, words.get("value"), f"{place}.value")))
    return found
