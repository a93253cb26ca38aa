"""How far scores move weights: K softmax(score / T) over the experts, at a T that is given or solved for a spread."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

SPREAD = 0.10
_SATURATED = 800.0  # exp(-800) is 0 in fp64: beyond it the largest score alone has a weight
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@validated(frozen=True, config={"extra": "forbid"})
class Strength:
    """temperature: T; large T gives uniform weights, small T one expert per block.
    spread: the standard deviation of K sigma over experts and blocks, for which T is solved.

    Either is given; of neither, spread is SPREAD. T means another strength for every rule, number of blocks and
    normalisation of tau; rules of one spread differ in which expert they favour where, and not in how much.
    """

    INSTEAD: ClassVar[tuple[str, ...]] = ("temperature", "spread")  # options of which one takes the other's place
    temperature: _Positive | None = None
    spread: _Positive | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.temperature is not None and self.spread is not None:
            raise ValueError(
                f"temperature={self.temperature} and spread={self.spread} are both set, and each says how strong the "
                "coefficients are: set one of them to null"
            )
        if self.temperature is None and self.spread is None:
            object.__setattr__(self, "spread", SPREAD)

    def weights(self, scores: Tensor, n_blocks: int) -> Tensor:
        """K softmax(scores / T) over the experts: [K, L + others] -> the same shape, fp64.

        Spread is measured on the first `n_blocks` columns; others have the same T. One expert has weight 1.

        Raises ValueError for a spread that no T gives.
        """
        temperature = self.temperature or solve(scores[:, :n_blocks], self.spread or SPREAD)
        return softmax_weights(scores, temperature)


def softmax_weights(scores: Tensor, temperature: float) -> Tensor:
    """K softmax(scores / T) over the first dimension; its mean over it is 1."""
    return len(scores) * ((scores - scores.amax(0)) / temperature).softmax(0)


def spread_of(weights: Tensor) -> float:
    """Population standard deviation over all entries.

    >>> import torch
    >>> spread_of(torch.tensor([[0.5, 1.0], [1.5, 1.0]]))
    0.3535533845424652
    """
    return weights.std(correction=0).item()


def solve(scores: Tensor, spread: float) -> float:
    """T at which K softmax(scores / T) has this spread; scores [K, L] fp64.

    The spread falls from its limit at T = 0 to 0 as T grows: in each block, d sum sigma^2 / d(1/T) is twice the
    covariance of sigma and score under sigma, and sigma grows with the score. So one T is bracketed and halved upon.

    Raises ValueError where even the smallest T, one expert a block (shared where several have the largest score), gives
    less: experts whose profiles are equal have no spread at any T. One expert has weight 1 at any T; T is 1 then.
    """
    if len(scores) == 1:
        return 1.0
    below = scores.amax(0) - scores
    gaps = below[below > 0]
    coldest = max(gaps.min().item() / _SATURATED, 1e-300) if len(gaps) else 1.0
    if spread > (most := spread_of(softmax_weights(scores, coldest))):
        raise ValueError(
            f"spread={spread} cannot be reached: these coefficients spread by {most:.4g} at most (flat or equal "
            "profiles of the experts); give a smaller spread, or a temperature"
        )
    cold = warm = coldest
    while spread_of(softmax_weights(scores, warm)) >= spread:
        cold, warm = warm, warm * 4
    while warm / cold > 1 + 1e-14:
        middle = (cold * warm) ** 0.5 if cold > 1e-150 else cold * (warm / cold) ** 0.5
        if middle in (cold, warm):
            break
        cold, warm = (middle, warm) if spread_of(softmax_weights(scores, middle)) >= spread else (cold, middle)
    return cold
