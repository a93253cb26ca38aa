"""Base mergers: how K task vectors of one tensor become one. A family of methods a file."""

from sensmerge.mergers.arithmetic import Average, TaskArithmetic
from sensmerge.mergers.base import Merger, Steps
from sensmerge.mergers.breadcrumbs import Breadcrumbs
from sensmerge.mergers.dare import Dare
from sensmerge.mergers.della import Della
from sensmerge.mergers.slerp import Slerp
from sensmerge.mergers.ties import Ties

__all__ = ["Average", "Breadcrumbs", "Dare", "Della", "Merger", "Slerp", "Steps", "TaskArithmetic", "Ties"]
