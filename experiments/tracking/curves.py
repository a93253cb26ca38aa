"""Events of a run as rows of W&B's history, in the order they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.tracking import content, names
from experiments.tracking.content import Media


@dataclass(frozen=True)
class Row:
    """step: the event's. time: seconds since 1970. values: key -> number or text."""

    step: int
    time: float
    values: dict[str, Any]
    media: Media = field(default_factory=Media)


class Curves:
    """What was seen so far of a run: its last segment's start, how that ended, how many segments there are."""

    def __init__(self) -> None:
        self.segments = 0
        self.step = -1
        self.run: Mapping[str, Any] | None = None
        self.end: Mapping[str, Any] | None = None  # of the last segment
        self.coefficients = False
        self._began = 0.0

    def row(self, event: Mapping[str, Any]) -> Row:
        """The event as a row, which is empty where there is no number in it."""
        self.step = event["step"]
        media = Media()
        kind = event["kind"]
        values: dict[str, Any] = {}
        if kind == "start":
            self.segments, self.run, self.end, self._began = event["segment"], event["run"], None, event["time"]
        elif kind == "progress":
            values = _progress(event)
        elif kind == "stage":
            values = {f"seconds/{names.key(event['name'])}": event["seconds"]}
        elif kind == "score":
            values = content.scores(event["benchmark"], event["metrics"])
        elif kind == "coefficients":
            self.coefficients, values, media = True, content.range_of(event), content.coefficient_media(event)
        elif kind == "end":
            self.end = event
        clock = {"run/segment": self.segments, "run/seconds": round(event["time"] - self._began, 3)}
        return Row(event["step"], event["time"], {**clock, **values}, media)

    @property
    def state(self) -> str:
        """finished, failed or killed; a segment that has no end was killed before it could say so."""
        return self.end["state"] if self.end else "killed"

    @property
    def error(self) -> str | None:
        return self.end["error"] if self.end else None


def _progress(event: Mapping[str, Any]) -> dict[str, Any]:
    done, total, seconds = event["done"], event["total"], event["seconds"]
    values: dict[str, Any] = {"progress/stage": event["stage"], "progress/done": done}
    if total:
        values |= {"progress/total": total, "progress/fraction": done / total}
    if done and seconds > 0:
        values["progress/items_per_second"] = done / seconds
        if event.get("tokens"):
            values["progress/tokens_per_second"] = event["tokens"] / seconds
    return values | {f"memory/{name}": event[name] for name in ("host_mb", "device_mb") if name in event}
