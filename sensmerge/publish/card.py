"""The model card of a written checkpoint: what it is made of, how it did if that is known, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensmerge.coefficients import Table
from sensmerge.publish.versions import LIBRARIES, versions
from sensmerge.store import digest


def card(
    title: str,
    recipe: Mapping[str, Any],
    *,
    sources: Mapping[str, str],
    rule: Mapping[str, Any] | None = None,
    scores: Mapping[str, str] | None = None,
    moved: str | None = None,
) -> str:
    """README.md of a checkpoint, with the Hub's metadata on top.

    recipe: of `recipes.made_of`. sources: hub ids with commits, of the members that have one ("base" or task); paths
    do not belong here, for a card is published. rule: the description of what made the coefficients. scores: benchmark
    -> its score as text. moved: what was done to rows for tokens.
    """
    table = Table.from_json(recipe["coefficients"])
    span = table.summary()
    return "\n".join(
        [
            *_metadata(sources),
            f"# {title}",
            "",
            f"A merge of {len(table.tasks)} fine-tuned models ({', '.join(table.tasks)}), made by sensmerge.",
            "",
            f"- merger: `{recipe['merger']}`" + (f", seed {recipe['seed']}" if recipe["seed"] is not None else ""),
            f"- coefficients: {'`' + str(dict(rule)) + '`' if rule else 'given as a table'}; over experts and blocks "
            f"{span['min']:.3f} to {span['max']:.3f}, mean {span['mean']:.3f}, spread {span['sd']:.3f} "
            f"with {span['first_block']:.0%} of it in the first block (1 is the uniform weight)",
            *([f"- vocabulary: {moved}"] if moved else []),
            f"- recipe: sha256 {digest(recipe)}; its text, every coefficient in it, is merge.json",
            "",
            "| part | model | sha256 of its files |",
            "|---|---|---|",
            *_parts(recipe, sources),
            "",
            "## Evaluation",
            "",
            *(
                [f"- {name}: {score}" for name, score in scores.items()]
                if scores
                else ["Not evaluated when this was written."]
            ),
            "",
            "## How to make it again",
            "",
            "    python -m sensmerge merge merge.json --out DIR" + _places(table.tasks, sources),
            "",
            "The command refuses models whose digests are not those above. Versions when it was made: "
            f"{', '.join(f'{name} {version}' for name, version in versions(*LIBRARIES).items())}.",
            "",
            "## Licence",
            "",
            "No licence is given here: a merge is a derivative of its base and of every expert, and the terms of all "
            "of them hold. Look them up before you publish or use it.",
            "",
        ]
    )


def _metadata(sources: Mapping[str, str]) -> list[str]:
    models = [f"- {place.partition('@')[0]}" for place in sources.values()]
    return [
        "---",
        *(["base_model:", *dict.fromkeys(models), "base_model_relation: merge"] if models else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- merge",
        "- sensmerge",
        "---",
    ]


def _parts(recipe: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    digests = {"base": recipe["base"], **recipe["experts"]}
    return [f"| {part} | {sources.get(part, 'a local directory')} | {sha} |" for part, sha in digests.items()]


def _places(tasks: tuple[str, ...], sources: Mapping[str, str]) -> str:
    base = "" if "base" in sources else " --base DIR"
    return base + "".join(f" --expert {task}=DIR" for task in tasks if task not in sources)
