"""1bit-Merging: experts kept as one bit a number, one of them restored in full for each prompt, and its router."""

from sensmerge.mergers import Merger
from sensmerge.onebit.merger import OneBitMerge

__all__ = ["VARIANTS", "OneBitMerge"]

VARIANTS: dict[str, Merger] = {"onebit": OneBitMerge()}
