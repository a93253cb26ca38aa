"""Rules from evidence (sensitivities, distances between predictions) to a weight for each expert and block."""

from sensmerge.coefficients.acm import Acm
from sensmerge.coefficients.controls import Fixed, Shuffled, Uniform
from sensmerge.coefficients.fisher import Fisher
from sensmerge.coefficients.lines import Lines
from sensmerge.coefficients.metagpt import Metagpt
from sensmerge.coefficients.oracle import Oracle
from sensmerge.coefficients.rule import Evidence, Rule
from sensmerge.coefficients.sens import Sens, cross_task_scale, profile
from sensmerge.coefficients.sens_l2s import SensL2s
from sensmerge.coefficients.table import Table

__all__ = [
    "VARIANTS", "Acm", "Evidence", "Fisher", "Fixed", "Lines", "Metagpt", "Oracle", "Rule", "Sens", "SensL2s",
    "Shuffled", "Table", "Uniform", "cross_task_scale", "profile",
]  # fmt: skip

# What both command lines call by a name that is no class's own; those are their names in small letters.
VARIANTS: dict[str, Rule] = {
    "task_specific": Sens(cross_task=False),
    "cross_task": Sens(task_specific=False),
    "cross_task_farther": Sens(task_specific=False, sign="farther"),
    "sens_farther": Sens(sign="farther"),
    "sens_words": Sens(normalise="sum1", temperature=1.0),
    "sens_rcp": Sens(sign="farther", normalise="sum1", temperature=1.0, outside="own", loss="full"),
    "random": Shuffled(),
}
