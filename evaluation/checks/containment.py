"""Which layer holds generated programs on this machine: `python -m experiments check sandbox`."""

from __future__ import annotations

import argparse
import sys
import textwrap

from evaluation.sandbox.layers import LAYERS, Layer, filtered
from evaluation.sandbox.trial import ATTEMPTS, best, tried


def main(arguments: list[str]) -> int:
    """Try the layers and print what each stops; 1 without namespaces for programs, or where --layer does not work."""
    wanted = _parser().parse_args(arguments).layer
    chosen = best()
    for layer in LAYERS:
        if wanted in (None, layer.name):
            sys.stdout.write(_lines(layer, used=layer is chosen))
    if wanted:
        return int(next(tried(layer).fault for layer in LAYERS if layer.name == wanted) is not None)
    if not filtered():
        sys.stdout.write("No filter of system calls: this machine or its kernel has none.\n")
    if not chosen.isolates:
        sys.stdout.write(
            f"Programs run in the layer {chosen.name}, which has no namespaces. `apt-get install bubblewrap`, "
            "and allow user namespaces (in containers: a seccomp and AppArmor profile that lets them be made).\n"
        )
    return int(not chosen.isolates)


def _lines(layer: Layer, *, used: bool) -> str:
    trial = tried(layer)
    state = "not here" if trial.fault else "used" if used else "works"
    stopped = [what for name, what in ATTEMPTS.items() if name not in trial.through]
    said = [trial.fault] if trial.fault else [f"stops: {', '.join(stopped)}"]
    if trial.through:
        said.append(f"does not stop: {', '.join(ATTEMPTS[one] for one in trial.through)}")
    body = "".join(f"{textwrap.fill(text, 100, initial_indent='    ', subsequent_indent='      ')}\n" for text in said)
    return f"{layer.name:<11} {state:<9} {layer.what}\n{body}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments check sandbox",
        description=(__doc__ or "").partition(":")[0] + ". Each layer is tried, without the audit hook, in a second.",
        epilog="example: python -m experiments check sandbox --layer bubblewrap",
    )
    names = [layer.name for layer in LAYERS]
    parser.add_argument("--layer", choices=names, help="only this one; the exit status says whether it works here")
    return parser
