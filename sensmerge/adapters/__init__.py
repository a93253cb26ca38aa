"""LoRA experts merged factor by factor: RobustMerge, other mergers on the factors, the result in PEFT's format."""

from sensmerge.adapters.factors import FactorMerger, Factors
from sensmerge.adapters.on_factors import OnFactors
from sensmerge.adapters.robustmerge import RobustMerge
from sensmerge.mergers import Average, Dare, Merger, Ties

__all__ = ["VARIANTS", "FactorMerger", "Factors", "OnFactors", "RobustMerge"]

# What command lines and recipes call by a name that is no class's own.
VARIANTS: dict[str, Merger] = {
    "robustmerge": RobustMerge(),
    "lora_average": OnFactors(inner=Average()),
    "lora_ties": OnFactors(inner=Ties(scope="tensor")),
    "lora_dare": OnFactors(inner=Dare()),
}
