"""A study's records in one file that can be committed: from it alone its report is made again, byte for byte.

    python -m experiments report archive write --study tiny_seeds  # from results/runs
    python -m experiments report archive rebuild                   # tables and figures of every pack below results/

A pack holds record.json, every item's outcome and the prompts that were kept, of the runs that the study's numbers rest
on, its controls among them, without what depends on the machine's directories; and how the report is to be made.
Nothing else is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import command_line
from experiments.analysis import records, registered
from experiments.report import best, page, report
from experiments.run.events import PROMPTS_JSON
from experiments.run.record import RECORD_JSON

NAME = report.PACK
_HOW = "report.json"


@dataclass(frozen=True)
class How:
    """What the report was asked for besides the study: see report.py."""

    by: tuple[str, ...] = ()
    best: int | None = None


def write(study: str, runs: Path, path: Path, how: How = How()) -> int:
    """Pack the study's runs, and those they are compared with, into `path`; their number.

    The same records give the same bytes, with one version of liblzma. Raises what `records.load` and `records.of_study`
    raise.
    """
    groups = records.of_study(records.load(runs), study)
    packed = {record.directory.name: record for group in groups for record in group}
    content = {_HOW: _json(asdict(how))}
    if (asked := registered.place(study, runs)) is not None:
        content[registered.in_pack(study, Path()).as_posix()] = asked.read_bytes()
    for name, record in sorted(packed.items()):
        content[f"{name}/{RECORD_JSON}"] = _json(record.without_places().to_json())
        if study in record.studies:
            content[f"{name}/studies/{study}"] = " ".join(record.asked_by(study)).encode()
        for result in record.results.values():
            content[f"{name}/{result.outcomes}"] = (record.directory / result.outcomes).read_bytes()
        if (prompts := record.directory / PROMPTS_JSON).is_file():
            content[f"{name}/{PROMPTS_JSON}"] = prompts.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with lzma.open(partial, "wb", preset=9) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)  # of nobody, from 1970
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    partial.replace(path)
    return len(packed)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Path, How]]:
    """A directory of runs as `records.load` reads it, for as long as the context lasts, and how to report them.

    ValueError if `path` is no pack.
    """
    with tempfile.TemporaryDirectory(prefix="records-") as folder:
        try:
            with tarfile.open(path, "r:xz") as tar:
                tar.extractall(folder, filter="data")
            how = json.loads((Path(folder) / _HOW).read_text())
        except (tarfile.TarError, lzma.LZMAError, EOFError, FileNotFoundError) as error:
            raise ValueError(
                f"{path} is no pack of records ({error}): write it again with "
                "`python -m experiments report archive write`"
            ) from error
        yield Path(folder), How(tuple(how["by"]), how["best"])


def regenerate(results: Path, out: Path, *, figures: bool = True, study: str = "*") -> list[str]:
    """Make the report of every pack below `results` into `out`/<study>, and the page of all into `out`/report (unless
    without figures, or only one study is asked for); the studies. FileNotFoundError without any."""
    found = sorted(results.glob(f"{study}/{NAME}"))
    if not found:
        raise FileNotFoundError(
            f"no {study}/{NAME} below {results}: `python -m experiments report archive write --study S` makes one"
        )
    with ExitStack() as stack:
        shown = []
        for path in found:
            name = path.parent.name
            runs, how = stack.enter_context(opened(path))
            report.report(name, runs, out, by=how.by, figures=figures)
            if how.best is not None:
                best.choose(name, runs, out, how.best, by=how.by)
            if figures and study == "*":
                shown.append(page.study(name, runs, how.by))
        if shown:
            page.write(shown, out / "report", _lab_book(results))
    return [path.parent.name for path in found]


def _lab_book(results: Path) -> str:
    path = results / "LOG.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def main(arguments: list[str]) -> int:
    """The command line; 0."""
    given = _parser().parse_args(arguments)
    if given.verb == "write":
        path = given.results / given.study / NAME
        count = write(given.study, given.runs, path, How(tuple(given.by), given.best))
        sys.stdout.write(f"{path}: {count} runs, {path.stat().st_size / 1e6:.2f} MB\n")
    else:
        out = given.out or given.results
        for study in regenerate(given.results, out, figures=not given.no_figures, study=given.study):
            sys.stdout.write(f"{out / study}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("report archive", __doc__, "write --study tiny_seeds")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where studies' reports and packs lie")
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing = verbs.add_parser("write", help="pack a study's records")
    writing.add_argument("--study", required=True)
    writing.add_argument("--runs", type=Path, default=Path("results/runs"), help="directory of run directories")
    writing.add_argument("--by", nargs="+", default=[], metavar="PATH", help="as its report takes it")
    writing.add_argument("--best", type=int, metavar="N", help="its report includes best.json, of N rules a merger")
    reporting = verbs.add_parser("rebuild", help="make the report of every pack again")
    reporting.add_argument("--study", default="*", help="only this one's (default: all, and the page of all)")
    reporting.add_argument("--out", type=Path, help="not into results but here, to compare")
    reporting.add_argument("--no-figures", action="store_true", help="tables only")
    return parser
