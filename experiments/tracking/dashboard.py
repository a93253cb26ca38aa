"""A W&B workspace for the runs of this project: python -m experiments track dashboard --entity E --project P.

Needs the extra `dashboard` (the package wandb-workspaces). Building it asks no server; saving it needs a W&B login.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import command_line
from experiments.analysis import records
from experiments.tracking.upload import logged_in

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "sensmerge"
_METHOD = (
    "model_name",
    "merger_name",
    "scaling_name",
)  # keys of the runs' configuration, as experiments/tracking/content.py has
_MOST = 100  # bars a chart


def missing() -> bool:
    """Whether the package that this needs is not installed."""
    return importlib.util.find_spec("wandb_workspaces") is None


def main(arguments: list[str]) -> int:
    """The command line; 0, or 1 after saying on stderr why nothing was built or saved."""
    given = _parser().parse_args(arguments)
    if missing():
        mend = "pip install -c constraints.txt -e '.[framework,dashboard]'"
        sys.stderr.write(f"wandb-workspaces is not installed: {mend}\n")
        return 1
    try:
        workspace = build(given.entity, given.project, headlines(given.runs))
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(definition(workspace), indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{given.out}\n")
        elif not logged_in():
            raise ValueError("saving needs a W&B login: run `wandb login`, or write the definition: --out FILE.json")
        else:
            sys.stdout.write(f"{workspace.save().url}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def headlines(runs: Path) -> dict[str, bool]:
    """Summary key of each benchmark's headline metric in the finished runs below `runs` -> whether higher is better."""
    finished = records.load(runs) if runs.is_dir() else []
    return {
        f"{benchmark}/{result.primary}": result.higher_is_better
        for record in finished
        for benchmark, result in sorted(record.results.items())
    }


def build(entity: str, project: str, metrics: dict[str, bool]) -> Workspace:
    """The workspace, not saved. Runs table: grouped by model, merger and scaling, best mean score first.

    metrics: as `headlines`; each gets a bar chart. Sections: ablation, coefficients, samples, cost. ImportError without
    wandb-workspaces.
    """
    from wandb_workspaces import expr, workspaces

    table = workspaces.RunsetSettings(
        groupby=[expr.Config(name) for name in _METHOD],
        order=[expr.Ordering(expr.Summary("score"), ascending=False)],
        pinned_columns=[
            "run:displayName",
            *(f"config:{name}.value" for name in (*_METHOD, "suite_name", "seed", "study")),
            *(f"summary:{name}" for name in ("score", *metrics, "K*sigma/min", "K*sigma/max")),
        ],
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=_sections(metrics),
        settings=workspaces.WorkspaceSettings(max_runs=_MOST),
        runset_settings=table,
    )


def definition(workspace: Workspace) -> dict[str, Any]:
    """The workspace as the JSON data that W&B is sent when it is saved."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def _sections(metrics: dict[str, bool]) -> list[Any]:
    from wandb_workspaces.reports.v2 import MediaBrowser, WeavePanelSummaryTable
    from wandb_workspaces.workspaces import Section

    ablation = [
        _bars("mean score", ["score"]),
        _bars("mean score by scaling", ["score"], "scaling_name"),
        _bars("mean score by merger", ["score"], "merger_name"),
        *(_bars(f"{name} ({'higher' if higher else 'lower'} is better)", [name]) for name, higher in metrics.items()),
    ]
    heatmaps = [
        MediaBrowser(title="alpha and K*sigma", media_keys=["coefficients_heatmap"], num_columns=2),
        MediaBrowser(title="distance between the experts", media_keys=["alignment_heatmap"], num_columns=2),
        _bars("range of K*sigma by scaling", ["K*sigma/min", "K*sigma/max"], "scaling_name"),
        WeavePanelSummaryTable(table_name="coefficients"),
        WeavePanelSummaryTable(table_name="alignment"),
    ]
    stages = [f"seconds/{stage}" for stage in ("calibrate", "evaluate", "write")]
    cost = [
        _bars("seconds by stage", stages, "merger_name"),
        _bars("peak memory (MB)", ["peak_memory_mb"], "model_name"),
    ]
    return [
        Section(name="Ablation", panels=ablation, is_open=True),
        Section(name="Coefficients", panels=heatmaps, is_open=True),
        Section(name="Samples", panels=[WeavePanelSummaryTable(table_name="samples")], is_open=True),
        Section(name="Cost", panels=cost),
    ]


def _bars(title: str, metrics: list[Any], by: str | None = None) -> Any:
    """Means over the runs that share a value of the configuration's `by`, with the standard error over those runs.

    by None: a bar for each group of the runs table, so for each model, merger and scaling.
    """
    from wandb_workspaces.reports.v2 import BarPlot, Config

    return BarPlot(
        title=title,
        metrics=metrics,
        groupby=None if by is None else Config(by),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=_MOST,
        max_bars_to_show=_MOST,
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("track dashboard", __doc__, "--entity E --project sensmerge")
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project, as tracking.project")
    parser.add_argument("--out", type=Path, help="write the definition here as JSON, and save nothing")
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="the benchmarks of these runs get charts of their own"
    )
    return parser
