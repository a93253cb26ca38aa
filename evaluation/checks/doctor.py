"""What each benchmark needs, whether it is here, and the commands that fetch it: `python -m experiments check data`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from evaluation.benchmarks.lm_eval_task import StockTask
from evaluation.data import Rows, needed
from evaluation.suites import Benchmark, load

CONF = Path("conf/benchmark")
VARIABLES = {
    "SENSMERGE_DATA": "directory of local data sets; where it is not set, rows come from the Hugging Face hub",
    "HF_HUB_OFFLINE": "1: never ask the hub; without a network this saves waiting for retries",
    "HF_DATASETS_OFFLINE": "1: the package datasets uses what its cache holds, and nothing else",
    "HF_HOME": "where hub downloads are cached; must be the same online and offline",
}


def available(conf: Path = CONF) -> dict[str, Benchmark]:
    """Every benchmark of a directory of yamls, by name, but those that get theirs from a suite.

    FileNotFoundError if there is no yaml.
    """
    paths = sorted(conf.glob("*.yaml"))
    if not paths:
        raise FileNotFoundError(f"no benchmark yaml in {conf.resolve()}; run this from the repository, or pass --conf")
    return {path.stem: one for path in paths if (one := load(path)).name is not None}


def missing(benchmark: Benchmark, data_dir: Path | None) -> list[str]:
    """What keeps a benchmark from running on local files, each line with what to do about it.

    Without a directory every file is missing, and the commands make one called "data".
    """
    rows = list(dict.fromkeys(needed(benchmark)))
    if data_dir is None:
        absent, told = rows, {one.missing(None) for one in rows}
    else:
        absent = [one for one in rows if one.missing(data_dir)]
        told = {one.missing(data_dir) for one in absent}
    fetched = [f"{one.file}: {fetch(benchmark, one, data_dir or Path('data'))}" for one in absent]
    return fetched + [why for why in benchmark.problems(data_dir) if why not in told]


def fetch(benchmark: Benchmark, rows: Rows, data_dir: Path) -> str:
    """The shell command that writes these rows' file, on a machine with a network."""
    if rows.hub is None:
        return "not on the hub; it comes with the models it was made for, so pass the directory they were built with"
    name = [rows.hub] if rows.config is None else [rows.hub, rows.config]
    loaded = f"datasets.load_dataset({', '.join(json.dumps(word) for word in name)}, split={json.dumps(rows.split)})"
    imports = "import datasets, pathlib"
    if isinstance(benchmark, StockTask) and benchmark.processed:  # the file holds what lm-eval makes of a hub row
        module = ".".join(Path(benchmark.tasks).parent.parts)
        imports, loaded = f"{imports}; from lm_eval.tasks.{module}.utils import process_docs", f"process_docs({loaded})"
    out, packed = json.dumps(str(data_dir / rows.file)), ', compression="gzip"' if rows.file.endswith(".gz") else ""
    code = (
        f"{imports}; out = pathlib.Path({out}); out.parent.mkdir(parents=True, exist_ok=True); "
        f"{loaded}.to_json(out, force_ascii=False{packed})"
    )
    return shlex.join(["python", "-c", code])


def main(arguments: list[str]) -> int:
    """Print the state of every benchmark; 1 if one cannot run here."""
    given = _parser().parse_args(arguments)
    lines, commands, incomplete = [], dict[str, None](), 0
    benchmarks = available(given.conf)
    width = max(len(name) for name in benchmarks)
    for name, benchmark in benchmarks.items():
        found = list(dict.fromkeys(needed(benchmark)))
        if given.data is None:
            problems = benchmark.problems(None)
            source = ", ".join(dict.fromkeys(f"{rows.hub} ({rows.split})" for rows in found if rows.hub))
            state = "missing" if problems else "hub" if found else "present"
        else:
            problems = missing(benchmark, given.data)
            source = ", ".join(rows.file for rows in found)
            state = "missing" if problems else "present"
        incomplete += bool(problems)
        commands |= dict.fromkeys(problems)
        lines.append(f"{name:<{width}}  {state:<7}  {source or 'nothing but installed packages'}")
    sys.stdout.write("\n".join(lines) + "\n")
    if given.data is None:
        sys.stdout.write(
            "\nNo data directory: the hub was not asked whether it answers. Pass --data to look at files.\n"
        )
    if commands:
        sys.stdout.write("\nMissing, and what to do about it:\n" + "".join(f"  {line}\n" for line in commands))
    sys.stdout.write("\nVariables:\n")
    for variable, what in VARIABLES.items():
        value = os.environ.get(variable)
        sys.stdout.write(f"  {variable}={value or ''}{'' if value else '(not set)'}  {what}\n")
    return int(incomplete > 0)


def data_argument(parser: argparse.ArgumentParser) -> None:
    """The two options that all commands of this package share."""
    here = os.environ.get("SENSMERGE_DATA")
    parser.add_argument(
        "--data",
        type=_directory,
        default=Path(here) if here else None,
        help="directory of local data sets, see docs/data.md (default: the variable SENSMERGE_DATA)",
    )
    parser.add_argument("--conf", type=Path, default=CONF, help="directory of benchmark yamls (default: %(default)s)")


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no such directory: {path.resolve()}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments check data",
        description=(__doc__ or "").partition(":")[0],
        epilog="example: python -m experiments check data --data DIR",
    )
    data_argument(parser)
    return parser
