"""Table, figures and provenance of one study: python -m experiments.report --study quickstart.

Reads what finished runs left on disk and nothing else; the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import markdown, records, tables
from experiments.records import Record


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 1 after saying on stderr why there is no report."""
    given = _parser().parse_args(arguments)
    try:
        text = report(given.study, given.runs, given.out, by=given.by, figures=not given.no_figures)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def report(study: str, runs: Path, out: Path, *, by: Sequence[str] = (), figures: bool = True) -> str:
    """Write table.md, table.csv and figures/ below `out`/`study`; the text for the terminal.

    by: paths of the identity whose values get rows of their own. FileNotFoundError if `runs` does not exist, ValueError
    if the study has no complete run or its runs do not belong in one table.
    """
    found = [tables.build(group, by) for group in records.of_study(records.load(runs), study)]
    command = command_of(found, study)
    directory = out / study
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown.document(study, found, command)
    (directory / "table.md").write_text(text, encoding="utf-8")
    (directory / "table.csv").write_text(as_csv(found), encoding="utf-8")
    written: list[Path] = []
    if figures:
        from experiments import figures as drawing

        written = drawing.write(found, directory / "figures")
    return text + "\n" + _whereabouts(study, found, command, runs, directory, written)


def as_csv(found: Sequence[tables.Table]) -> str:
    """A line per row of every table, unrounded and in raw units: accuracies in 0..1. An empty field: no such number."""
    names = list(dict.fromkeys(benchmark.name for table in found for benchmark in table.benchmarks))
    lines = []
    for table in found:
        for row in table.rows:
            line: dict[str, object] = {"model": table.model, "suite": table.suite, "merger": row.merger}
            line |= {"scaling": row.scaling, "seeds": len(row.records)}
            columns = {**{name: row.scores.get(name) for name in names}, "mean": row.mean, "difference": row.difference}
            for name, metric in columns.items():
                line |= {name: metric and metric.score, f"{name}_stderr": metric and metric.stderr}
                line |= {f"{name}_n": metric and metric.n}
            low, high = row.weights or (None, None)
            line |= {"ksigma_min": low, "ksigma_max": high, "runs": " ".join(r.id for r in row.records)}
            lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def command_of(found: Sequence[tables.Table], study: str) -> str:
    """The run.py command that makes the study's merges: its experiment, or the overrides its runs were given.

    Where a run writes and whether it is tracked are left out, as they move no number.
    """
    merges = [r for table in found for row in table.merges for r in row.records if r.study == study]
    values: dict[str, list[str]] = {}
    for record in merges:
        for override in record.data.get("overrides", ()):
            key, _, value = override.partition("=")
            if key.split(".")[0].lstrip("+~") not in ("output", "tracking", "launcher", "hydra"):
                seen = values.setdefault(key, [])
                seen += [value] if value not in seen else []
    experiment = values.pop("experiment", values.pop("+experiment", None))
    if experiment or not values:  # the experiment itself says which mergers and scalings it sweeps
        chosen = {"experiment": experiment or [study]}
        values = chosen | {key: value for key, value in values.items() if key not in ("merger", "scaling")}
    return shlex.join(["python", "run.py", "-m", *(f"{key}={','.join(value)}" for key, value in values.items())])


def _whereabouts(
    study: str, found: Sequence[tables.Table], command: str, runs: Path, directory: Path, written: Sequence[Path]
) -> str:
    """Where everything lies, and what one would want to look at next."""
    everything = {record.directory: record for table in found for record in table.records}
    merges = [record for record in everything.values() if record.member is None]
    shown = max(merges or list(everything.values()), key=lambda record: record.data["score"])
    benchmark = next(iter(shown.results))
    lines = [("table", f"{directory / 'table.md'}, {directory / 'table.csv'}")]
    if written:
        stems = sorted({path.stem for path in written})
        lines.append(("figures", f"{directory / 'figures'}: {', '.join(stems)} (.png, .pdf)"))
    kinds = f"{len(merges)} merges, {len(everything) - len(merges)} references"
    lines += [("records", f"{runs}/*/record.json ({kinds})"), ("W&B", _wandb(list(everything.values())))]
    if unfinished := records.incomplete(runs):
        many = f"{len(unfinished)} runs" if len(unfinished) > 1 else "1 run"
        lines.append(("unfinished", f"{many} of any study, such as {unfinished[0]} (see run.log, error.txt)"))
    lines += [
        ("", ""),
        ("one run, item by item", f"python -m json.tool {shown.directory / shown.results[benchmark]['outcomes']}"),
        (
            "another setting",
            f"{_without(command, 'scaling', 'study')} scaling=sens scaling.temperature=1 study={study}_T1",
        ),
        ("its table", f"python -m experiments.report --study {study}_T1"),
    ]
    width = max(len(label) for label, _ in lines) + 2
    return "".join(f"{label:{width}}{text}".rstrip() + "\n" for label, text in lines)


def _without(command: str, *keys: str) -> str:
    return shlex.join(word for word in shlex.split(command) if word.partition("=")[0] not in keys)


def _wandb(everything: Sequence[Record]) -> str:
    chosen = [record.data.get("config", {}).get("tracking") or {} for record in everything]
    used = [tracking for tracking in chosen if tracking.get("mode", "disabled") != "disabled"]
    if not used:
        return "not used (tracking=wandb turns it on)"
    project = "/".join(filter(None, [used[0].get("entity"), used[0].get("project")]))
    offline = next((d for d in sorted(_wandb_directories(used)) if any(d.glob("offline-run-*"))), None)
    where = f"; offline runs: wandb sync {offline}/offline-run-*" if offline else ""
    return f"project {project}, runs named by their record's id{where}"


def _wandb_directories(used: Sequence[dict]) -> set[Path]:
    return {Path(tracking["directory"]) / "wandb" for tracking in used if tracking.get("directory")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--study", required=True, help="name of the study: what its experiment's yaml says")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the report goes to <out>/<study>")
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="PATH", help="settings that get rows of their own: scaling.temperature"
    )
    parser.add_argument("--no-figures", action="store_true", help="tables only; matplotlib is not needed then")
    return parser


if __name__ == "__main__":
    sys.exit(main())
