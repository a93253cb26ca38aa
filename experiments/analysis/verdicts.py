"""What a difference amounts to, in words: better, worse, or undecided and what could have been seen."""

from __future__ import annotations

import math

from experiments.analysis.comparisons import Difference

UNDECIDED = "undecided"
ONE_FAMILY = "one family"


def verdict(found: Difference, *, higher: bool) -> str:
    """higher: whether more is better.

    >>> from dataclasses import replace
    >>> seen = Difference(0.05, 0.01, 0.03, 0.07, 400, 8, 0.001, 0.01, "families", families=8)
    >>> verdict(seen, higher=True), verdict(seen, higher=False)
    ('better', 'worse')
    >>> verdict(replace(seen, p_holm=0.2), higher=True), verdict(replace(seen, families=1), higher=True)
    ('undecided', 'one family')
    """
    if found.families == 1:
        return ONE_FAMILY
    if not found.significant:
        return UNDECIDED
    return "better" if (found.score > 0) == higher else "worse"


def cell(found: Difference, *, higher: bool, percent: bool) -> str:
    """The verdict and, in brackets, the smallest difference that could have been seen.

    >>> cell(Difference(0.05, 0.01, 0.0, 0.1, 400, 8, 0.04, 0.9, "families", 8, 0.1, 0.132), higher=True, percent=True)
    'undecided (13.2)'
    """
    said = verdict(found, higher=higher)
    return said if math.isnan(found.detectable) else f"{said} ({amount(found.detectable, percent=percent)})"


def sentence(found: Difference, *, higher: bool, percent: bool) -> str:
    """
    >>> one = Difference(0.05, 0.01, 0.0, 0.1, 400, 8, 0.04, 0.9, "families", 8, 0.1, 0.132)
    >>> sentence(one, higher=True, percent=True)
    'undecided, detectable from 13.2 on'
    """
    said = verdict(found, higher=higher)
    if said == ONE_FAMILY:
        said = "undecided: one family says nothing of other experts"
    if math.isnan(found.detectable):
        return said
    return f"{said}, detectable from {amount(found.detectable, percent=percent)} on"


def amount(value: float, *, percent: bool) -> str:
    """A difference without its sign, as tables show it; accuracies do not differ by more than 100 points."""
    if percent and abs(value) > 1:
        return "> 100"
    return f"{abs(value) * 100:.1f}" if percent else f"{abs(value):.3f}"
