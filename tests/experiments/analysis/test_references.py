"""Comparisons benchmark by benchmark."""

from __future__ import annotations

from pathlib import Path

from report_fixtures import write_run

from experiments.analysis import records, references
from experiments.statistics.stats import holm


def test_each_benchmark_with_its_uniform_control(tmp_path: Path) -> None:
    """Five of five better on math, one of one worse on code; Holm's correction over both."""
    scores = {"uniform": ([0.0] * 6, [1.0, 1.0]), "sens": ([1.0] * 5 + [0.0], [1.0, 0.0])}
    for scaling, (math, code) in scores.items():
        write_run(tmp_path, "ties", scaling, {"math": math, "code": code})
    write_run(tmp_path, "dare", "sens", {"math": [1.0] * 6, "code": [1.0, 1.0]})
    found = records.load(tmp_path)
    rows = [[one] for one in found]
    parts = dict(zip((one.title for one in found), references.by_benchmark(rows, found, ["math", "code"]), strict=True))
    assert parts["tiny-dare-sens-s0"] == parts["tiny-ties-uniform-s0"] == {}, "no control, and the control itself"
    ours = parts["tiny-ties-sens-s0"]
    assert (round(ours["math"].score, 9), ours["code"].score) == (round(5 / 6, 9), -0.5)
    p = [ours[name].p for name in ("math", "code")]
    assert [ours[name].p_holm for name in ("math", "code")] == holm(p) != p
