"""Keys of W&B's history and summary: letters, digits, _ and / only, which is what its tables can sort and filter by."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FILTERS = {"none": "", "strict-match": "strict", "flexible-extract": "flexible"}  # lm-eval's names


def key(name: str) -> str:
    """A name as part of a key.

    >>> key("acc,none"), key("exact_match,strict-match"), key("exact_match,flexible-extract"), key("pass@1")
    ('acc', 'exact_match_strict', 'exact_match_flexible', 'pass_at_1')
    >>> key("K*sigma"), key("high_school_us history"), key("3-shot")
    ('K_sigma', 'high_school_us_history', '_3_shot')
    """
    metric, _, chosen = name.partition(",")
    text = "_".join(filter(None, [metric, _FILTERS.get(chosen, chosen)])).replace("@", "_at_")
    text = re.sub(r"[^A-Za-z0-9_]+", "_", text)
    return f"_{text}" if text[:1].isdigit() or not text else text


def keys(names: Iterable[str]) -> dict[str, str]:
    """Name -> its key; of names that would share one, the later get a number.

    >>> keys(["acc,none", "acc", "f1"])
    {'acc,none': 'acc', 'acc': 'acc_2', 'f1': 'f1'}
    """
    found: dict[str, str] = {}
    for name in names:
        wanted, number = key(name), 1
        while (numbered := wanted if number == 1 else f"{wanted}_{number}") in found.values():
            number += 1
        found[name] = numbered
    return found
