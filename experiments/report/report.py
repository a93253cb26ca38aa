"""Table, figures and provenance of one study: python -m experiments report --study quickstart.

Reads what finished runs left on disk and nothing else; the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import command_line
from experiments.analysis import records
from experiments.report import figure_list, latex, markdown, tables
from experiments.run.record import Record

PACK = "records.tar.xz"  # what `report archive` writes beside a report


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    given = _parser().parse_args(arguments)
    pack = given.out / given.study / PACK
    try:
        text = report(given.study, given.runs, given.out, by=given.by, figures=not given.no_figures)
    except (ValueError, FileNotFoundError) as error:
        if not pack.is_file():
            raise
        again = f"python -m experiments report archive rebuild --study {given.study}"
        raise ValueError(f"{error}; {pack} has the study's records, of which `{again}` makes its report") from None
    sys.stdout.write(text)
    return 0


def report(study: str, runs: Path, out: Path, *, by: Sequence[str] = (), figures: bool = True) -> str:
    """Write table (.md, .tex, .csv), table_compact (.md, .tex), registered.tex where the study registered comparisons,
    and figures/ below `out`/`study`; the terminal's text.

    by: paths of the identity whose values get rows of their own, besides the settings that vary within a method.
    FileNotFoundError if `runs` does not exist, ValueError if the study has no complete run or its runs do not belong in
    one table.
    """
    found = tables.read(study, runs, by)
    commands = commands_of(found, study)
    directory = out / study
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown.document(study, found, commands)
    (directory / "table.md").write_text(text, encoding="utf-8")
    (directory / "table.tex").write_text(latex.document(study, found, commands), encoding="utf-8")
    (directory / "table_compact.tex").write_text(latex.compact(study, found, commands), encoding="utf-8")
    if answers := latex.registered(study, found):
        (directory / "registered.tex").write_text(answers, encoding="utf-8")
    (directory / "table_compact.md").write_text(markdown.compact(study, found, commands), encoding="utf-8")
    (directory / "table.csv").write_text(as_csv(found), encoding="utf-8")
    written, left_out = figure_list.write(found, directory / "figures") if figures else ([], [])
    return text + "\n" + _whereabouts(study, found, commands[-1], runs, directory, written, left_out)


def as_csv(found: Sequence[tables.Table]) -> str:
    """A line per row of every table, in raw units: accuracies in 0..1. An empty field: no such number.

    *_n: what its standard error is over, items or, where models > 1, models, of which shuffles of one seed count once.
    Limits of intervals and p values are random in their last digits: limits are rounded to six decimals, p values to
    six digits. *_low, *_high of a benchmark: Wilson's interval. kept_*: `Row.kept`. distance: `Row.distance`, where any
    row has one.
    """
    names = list(dict.fromkeys(benchmark.name for table in found for benchmark in table.benchmarks))
    means = list(dict.fromkeys(mean.name for table in found for mean in table.means))
    ranked = any(table.ranked for table in found)
    keeps = any(table.keeps for table in found)
    shares = [name for name in names if any(name in row.intervals for table in found for row in table.rows)]
    measured = any(table.measured for table in found)
    generated = [name for name in names if any(name in table.generated for table in found)]
    lines = [
        {
            "model": table.model,
            "suite": table.suite,
            **_line(row, names, means, ranked=ranked, keeps=keeps),
            **_lengths(row, generated),
            **_intervals(row, shares),
            **({"distance": row.distance} if measured else {}),
        }
        for table in found
        for row in table.rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(
    row: tables.Row, names: Sequence[str], means: Sequence[str], *, ranked: bool, keeps: bool
) -> dict[str, object]:
    line: dict[str, object] = {"merger": row.merger, "scaling": row.scaling}
    line |= {"seeds": len(row.records), "models": row.models}
    scores = {
        **{name: row.scores.get(name) for name in names},
        **{f"mean_{name}": row.means.get(name) for name in means},
    }
    for name, metric in scores.items():
        line |= {name: metric and metric.score, f"{name}_stderr": metric and metric.stderr}
        line |= {f"{name}_n": metric and metric.n}
    for name in means:
        kept = dataclasses.asdict(row.differences[name]) if name in row.differences else {}
        column = f"difference_{name}"
        line |= {column: kept.get("score"), f"{column}_stderr": kept.get("stderr")}
        line |= {f"{column}_{part}": round(kept[part], 6) if kept else None for part in ("low", "high")}
        line |= {f"{column}_{part}": float(f"{kept[part]:.6g}") if kept else None for part in ("p", "p_holm")}
        line |= {f"{column}_{part}": kept.get(part) for part in ("test", "items", "seeds", "families")}
        line |= {f"{column}_{part}": _digits(kept.get(part)) for part in ("exact", "detectable")}
        if ranked:
            place = row.ranks.get(name)
            line |= {f"rank_{name}": place and place.place, f"rank_{name}_of": place and place.of}
        if keeps:
            line |= {f"kept_{name}": row.kept[name].share if name in row.kept else None}
    low, high = row.weights or (None, None)
    return line | {"ksigma_min": low, "ksigma_max": high, "runs": " ".join(record.id for record in row.records)}


def _intervals(row: tables.Row, names: Sequence[str]) -> dict[str, object]:
    ends = {name: row.intervals.get(name, (None, None)) for name in names}
    return {f"{name}_{end}": _digits(ends[name][at]) for name in names for at, end in enumerate(("low", "high"))}


def _digits(value: float | None) -> float | None:
    """Six; None of what there is not."""
    return None if value is None or math.isnan(value) else float(f"{value:.6g}")


def _lengths(row: tables.Row, names: Sequence[str]) -> dict[str, object]:
    return {f"{name}_tokens": row.lengths.get(name) for name in names}


def commands_of(found: Sequence[tables.Table], study: str) -> list[str]:
    """The run.py commands that make the study's merges: for each of its experiments, the overrides its runs were given,
    apart where some were given settings that others were not.

    Where a run writes and whether it is tracked are left out, as they move no number. Where every run was there before,
    the experiment alone: records hold the overrides of what first asked for them, not of what joined later.
    """
    merges = [record for table in found for row in table.merges for record in row.records]
    given: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for record in (record for record in merges if record.study == study):
        overrides = [override.partition("=") for override in record.overrides]
        experiment = next((value for key, _, value in overrides if key.lstrip("+") == "experiment"), "")
        own = tuple(sorted(key for key, _, _ in overrides if key.startswith("scaling.")))
        values = given.setdefault((experiment, own), {})
        for key, _, value in overrides:
            if key.split(".")[0].lstrip("+~") not in ("output", "tracking", "launcher", "hydra", "experiment"):
                seen = values.setdefault(key, [])
                seen += [value] if value not in seen else []
    if not any(experiment or values for (experiment, _), values in given.items()):
        return [_command(next(filter(None, (record.asked_by(study) for record in merges)), [f"experiment={study}"]))]
    ordered = sorted(given.items(), key=lambda item: (item[0][0] == study, item[0]))
    parts = Counter(experiment for experiment, _ in given)
    return [_command(_words(experiment, values, whole=parts[experiment] == 1)) for (experiment, _), values in ordered]


def _words(experiment: str, values: Mapping[str, Sequence[str]], *, whole: bool) -> list[str]:
    chosen = {key: ",".join(value) for key, value in values.items()}
    if experiment and not whole:
        chosen = {"experiment": experiment, **chosen}
    elif experiment:  # it says itself which mergers and scalings it sweeps
        kept = {key: value for key, value in chosen.items() if key not in ("merger", "scaling")}
        chosen = {"experiment": experiment, **kept}
    return [f"{key}={value}" for key, value in chosen.items()]


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python", "run.py", "-m", *words])


def _whereabouts(
    study: str,
    found: Sequence[tables.Table],
    command: str,
    runs: Path,
    directory: Path,
    written: Sequence[Path],
    left_out: Sequence[str],
) -> str:
    """Where everything lies, and what one would want to look at next."""
    everything = {record.directory: record for table in found for record in table.records}
    merges = [record for record in everything.values() if record.member is None]
    shown = max(merges or list(everything.values()), key=lambda record: record.score)
    benchmark = next(iter(shown.results))
    lines = [("table", f"{directory / 'table.md'}, .tex, .csv")]
    if written:
        stems = sorted({path.stem for path in written})
        lines.append(("figures", f"{directory / 'figures'}: {', '.join(stems)} (.png, .pdf)"))
    if left_out:
        lines.append(("not drawn", "; ".join(left_out)))
    kinds = f"{len(merges)} merges, {len(everything) - len(merges)} references"
    lines += [("records", f"{runs}/*/record.json ({kinds})"), ("W&B", _wandb(list(everything.values())))]
    if unfinished := records.incomplete(runs):
        many = f"{len(unfinished)} runs" if len(unfinished) > 1 else "1 run"
        lines.append(("unfinished", f"{many} of any study, such as {unfinished[0]} (see run.log, error.txt)"))
    plain = _without(command, "scaling", "scaling.temperature", "study")
    lines += [
        ("", ""),
        ("one run, item by item", f"python -m json.tool {shown.directory / shown.results[benchmark].outcomes}"),
        ("another setting", f"{plain} scaling=sens scaling.temperature=1 study={study}_T1"),
        ("its table", f"python -m experiments report --study {study}_T1"),
    ]
    width = max(len(label) for label, _ in lines) + 2
    return "".join(f"{label:{width}}{text}".rstrip() + "\n" for label, text in lines)


def _without(command: str, *keys: str) -> str:
    return shlex.join(word for word in shlex.split(command) if word.partition("=")[0] not in keys)


def _wandb(everything: Sequence[Record]) -> str:
    settings = [record.config.get("tracking") or {} for record in everything]
    used = [tracking for tracking in settings if tracking.get("mode", "disabled") != "disabled"]
    if not used:
        return "not used (tracking=wandb turns it on)"
    named = used[0].get("project") or "sensmerge (or what WANDB_PROJECT said)"  # tracking/settings.py
    project = "/".join(filter(None, [used[0].get("entity"), named]))
    offline = next((d for d in sorted(_wandb_directories(used)) if any(d.glob("offline-run-*"))), None)
    where = f"; offline runs: wandb sync {offline}/offline-run-*" if offline else ""
    return f"project {project}, runs named by their record's id{where}"


def _wandb_directories(used: Sequence[dict]) -> set[Path]:
    return {Path(tracking["directory"]) / "wandb" for tracking in used if tracking.get("directory")}


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("report", __doc__, "--study quickstart; beside it: report page, best, archive")
    parser.add_argument("--study", required=True, help="name of the study: what its experiment's yaml says")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the report goes to <out>/<study>")
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="PATH", help="more settings that get rows of their own: evaluation.dtype"
    )
    parser.add_argument("--no-figures", action="store_true", help="tables only; matplotlib is not needed then")
    return parser
