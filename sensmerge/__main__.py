"""Coefficients, merges and exports for models of your own: `sensmerge VERB --help`.

`python -m sensmerge` is the same command.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sensmerge import __version__

_MERGERS = (
    "average, task_arithmetic, ties, dare, dare_ties, breadcrumbs, della, pcb, slerp, model_stock, consensus, iso_c, "
    "tsv_m, wudi, wudi_closed, prism, onebit, of LoRA experts robustmerge, lora_average, lora_ties, lora_dare, or a "
    "class of yours (aim, covariance and regmean want data: run.py)"
)
_RULES = (
    "sens, task_specific, cross_task, uniform, random, sens_farther, cross_task_farther, sens_words, sens_rcp, "
    "sens_l2s, metagpt, lines, fisher, acm, fixed, or a class of yours (oracle wants validation items: run.py)"
)
_RECIPE = (
    "a recipe of yours or mergekit's, JSON or YAML (docs/library.md), a table of `coefficients`, a run's recipe.json, "
    "a checkpoint's merge.json, or the directory of one of the last two"
)


def parser() -> argparse.ArgumentParser:
    """All verbs. Nothing heavy is imported, so that --help answers at once."""
    top = argparse.ArgumentParser(prog="sensmerge", description=(__doc__ or "").partition(":")[0] + ".")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _coefficients(verbs.add_parser("coefficients", help="compute coefficients from calibration data, into a JSON file"))
    _merge(verbs.add_parser("merge", help="merge into a Hugging Face checkpoint, from a table, a recipe, or uniformly"))
    _export(verbs.add_parser("export", help="write the merge as a configuration of mergekit"))
    _onebit(verbs.add_parser("onebit", help="store experts as one bit a number and a scale a tensor"))
    show = verbs.add_parser("inspect", help="print a file's coefficients by block, and what it was made of")
    show.add_argument("recipe", type=Path, help=_RECIPE)
    _models(
        verbs.add_parser("geometry", help="print how task vectors lie: norms, blocks, cosines, conflicts of sign"),
        recipe=False,
    )
    _push(verbs.add_parser("push", help="upload a written checkpoint to the Hugging Face hub, private unless told"))
    return top


def _models(verb: argparse.ArgumentParser, *, recipe: bool) -> None:
    where = "directory, or owner/name[@revision] on the Hugging Face hub"
    told = "; default: as the recipe says" if recipe else ""
    verb.add_argument("--base", metavar="PLACE", help=f"the base: {where}{told}")
    verb.add_argument(
        "--expert", metavar="TASK=PLACE", action="append", default=[], help=f"an expert, once for each: {where}{told}"
    )
    verb.add_argument(
        "--vocabulary", choices=("base", "union", "error"),
        help="tokens of experts that are not the base's: drop them, add them, or refuse (default: base)",
    )  # fmt: skip
    verb.add_argument("--cache", type=Path, default=Path(".cache"), help="where digests are remembered (%(default)s)")


def _merger(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, nargs="?", help=_RECIPE + "; without: uniform coefficients")
    verb.add_argument("--merger", help=f"{_MERGERS}; default: the recipe's")
    verb.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], dest="fields",
        help="a parameter of the merger, such as density=0.3 or inner.scale=0.5",
    )  # fmt: skip


def _coefficients(verb: argparse.ArgumentParser) -> None:
    _models(verb, recipe=False)
    verb.add_argument(
        "--calibration", metavar="TASK=FILE", action="append", default=[],
        help='a .jsonl file for each expert, a line each {"prompt": "...", "answer": "..."}',
    )  # fmt: skip
    verb.add_argument("--rule", default="sens", help=f"{_RULES}; default: %(default)s")
    verb.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], dest="fields",
        help="an option of the rule, such as temperature=0.3",
    )  # fmt: skip
    verb.add_argument("--samples", type=int, default=100, help="of each task (default: %(default)s)")
    verb.add_argument("--max-length", type=int, default=512, help="tokens of prompt and answer (default: %(default)s)")
    verb.add_argument(
        "--overlong", choices=("error", "drop"), default="error", help="longer ones (default: %(default)s)"
    )
    verb.add_argument("--loss", choices=("answer", "full"), default="answer", help="over what (default: %(default)s)")
    verb.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32", help="of the experts")
    verb.add_argument("--sample-seed", type=int, default=0, help="draws the samples (default: %(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="of the rule `random` (default: %(default)s)")
    verb.add_argument("--device", default="auto", help="default: %(default)s")
    verb.add_argument(
        "--stream", nargs="?", choices=("auto", "on", "off"), const="on", default="auto",
        help="hold one block of a model at a time, slower and far smaller; auto: where the whole does not fit the "
        "memory that is free (default: %(default)s; --stream alone: on)",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, help="the JSON file to write; must not exist")


def _merge(verb: argparse.ArgumentParser) -> None:
    _merger(verb)
    _models(verb, recipe=True)
    verb.add_argument("--seed", type=int, help="of a merger that draws; default: the recipe's, or 0")
    verb.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of what is written; default: the recipe's, or the base's",
    )
    verb.add_argument(
        "--approximate", action="store_true", help="also a file of mergekit's that means something else there"
    )
    verb.add_argument("--device", default="auto", help="default: %(default)s")
    verb.add_argument("--threads", type=int, help="default: as many as torch uses")
    verb.add_argument(
        "--adapter", action="store_true", help="of LoRA experts: write the merged adapter, in PEFT's format, alone"
    )
    verb.add_argument("--title", help="of the model card; default: the name of the directory")
    verb.add_argument("--out", type=Path, required=True, help="the checkpoint's directory; must not exist, or be empty")


def _export(verb: argparse.ArgumentParser) -> None:
    _merger(verb)
    _models(verb, recipe=True)
    verb.add_argument(
        "--approximate", action="store_true", help="also what mergekit does otherwise, with that said in the file"
    )
    verb.add_argument("--out", type=Path, required=True, help="the YAML file to write; must not exist")


def _onebit(verb: argparse.ArgumentParser) -> None:
    _models(verb, recipe=False)
    verb.add_argument(
        "--out", type=Path, required=True, help="gets a directory for each task, which is an expert's place anywhere"
    )


def _push(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("checkpoint", type=Path, help="a directory that `merge` or a run with output=checkpoint wrote")
    verb.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made if it does not exist")
    verb.add_argument("--public", action="store_true", help="make a new repository public")
    verb.add_argument("--dry-run", action="store_true", help="only show what would be uploaded")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0, or 1 with one message where the input is at fault."""
    given = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("sensmerge").setLevel(logging.INFO)
    from sensmerge import commands

    try:
        sys.stdout.write(commands.VERBS[given.verb](given))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"sensmerge {given.verb}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
