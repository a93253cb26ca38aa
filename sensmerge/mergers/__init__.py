"""Base mergers: how K task vectors of one tensor become one. A family of methods a file."""

from sensmerge.mergers.arithmetic import Average, TaskArithmetic
from sensmerge.mergers.base import Merger, Steps
from sensmerge.mergers.breadcrumbs import Breadcrumbs
from sensmerge.mergers.covariance import Covariance
from sensmerge.mergers.dare import Dare
from sensmerge.mergers.della import Della
from sensmerge.mergers.pcb import Pcb
from sensmerge.mergers.slerp import Slerp
from sensmerge.mergers.ties import Ties

__all__ = [
    "VARIANTS",
    "Average",
    "Breadcrumbs",
    "Dare",
    "Della",
    "Merger",
    "Pcb",
    "Slerp",
    "Steps",
    "TaskArithmetic",
    "Ties",
]

# What both command lines call by a name that is no class's own; those are their names in small letters.
VARIANTS: dict[str, Merger] = {
    "dare_ties": Dare(inner=Ties(density=1.0, scope="tensor")),
    "regmean": Covariance(diagonal=0.1),
    "wudi_closed": Covariance(source="task_vectors"),
}
