"""Records that do not belong in one table, and so are refused: other versions, other weights, two settings in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from experiments.analysis.records import differing, is_seed
from experiments.run.record import Record

_SCORING = ("lm-eval", "torch", "transformers")  # another version of these may score the same model otherwise


def check_versions(records: Sequence[Record]) -> None:
    """ValueError if the packages that score are of several versions."""
    for package in _SCORING:
        _check_same(
            records,
            lambda record, package=package: str(record.versions.get(package)),
            f"{package} differs between runs, so their scores do not compare; rerun with one version the runs of the "
            "others (remove their directories first)",
        )


def check_weights(records: Sequence[Record]) -> None:
    """ValueError if one model was made of several weights."""

    def weights(model: str, record: Record) -> str | None:
        if record.same("model") != model:
            return None
        members = {"base": record.digests.base, **record.digests.experts}
        return ", ".join(f"{name} {value[:8]}" for name, value in members.items())

    for model in {record.same("model") for record in records}:
        _check_same(
            records,
            partial(weights, model),
            "the same model was made of different weights; rerun with one set of checkpoints the runs of the others",
        )


def check_settings(row: str, records: Sequence[Record]) -> None:
    """ValueError unless the records of a row repeat one setting over seeds."""
    odd = differing(records)
    if odd:
        lines = [
            f"  {path}: "
            + ", ".join(f"{value!r} ({r.directory.name})" for value, r in zip(values, records, strict=True))
            for path, values in odd.items()
        ]
        overrides = _differing_overrides(records)
        raise ValueError(
            "\n".join(
                [
                    f"{row}: {len(records)} runs with different settings would share one row:",
                    *lines,
                    f"  overrides that differ: {', '.join(overrides) or 'none (the yamls themselves changed)'}",
                    f"give each setting a row with --by {' '.join(odd)}, or a study of its own (study=... in run.py)",
                ]
            )
        )


def _check_same(records: Sequence[Record], key: Callable[[Record], str | None], what: str) -> None:
    """ValueError, `what` and who is on which side, unless every record that has a key has the same one."""
    sides: dict[str, list[str]] = {}
    for record in records:
        if (value := key(record)) is not None:
            sides.setdefault(value, []).append(record.directory.name)
    if len(sides) > 1:
        lines = [f"  {value}: {', '.join(sorted(names))}" for value, names in sorted(sides.items())]
        raise ValueError("\n".join([f"{what}:", *lines]))


def _differing_overrides(records: Sequence[Record]) -> list[str]:
    overrides = [set(record.overrides) for record in records]
    shared = set.intersection(*overrides)
    return sorted(o for o in set.union(*overrides) - shared if not is_seed(o.split("=")[0].lstrip("+")))
