"""Evidence of two experts and two blocks, small enough to work every rule out by hand."""

from __future__ import annotations

import math

from sensmerge.coefficients import Evidence

NAMES = ["model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.weight"]
EVIDENCE = Evidence(
    tasks=["code", "math"],
    names=NAMES,
    sensitivities={
        "code": {
            "model.layers.0.w": 3.0,
            "model.layers.1.w": 4.0,
            "model.embed_tokens.weight": 12.0,
            "model.norm.weight": 0.0,
        },
        "math": {
            "model.layers.0.w": 8.0,
            "model.layers.1.w": 6.0,
            "model.embed_tokens.weight": 0.0,
            "model.norm.weight": 0.0,
        },
    },
    distances={m: [[0.0, 2.0], [6.0, 0.0]] for m in ("l2", "l2_centred", "l2sq", "kl", "cosine")},
    fisher={
        "code": {"model.layers.0.w": 3.0, "model.layers.1.w": 4.0, "model.embed_tokens.weight": 7.0},
        "math": {"model.layers.0.w": 1.0, "model.layers.1.w": 12.0, "model.embed_tokens.weight": 0.0},
    },
    information={
        task: {bins: [math.log(3), 0.0] if task == "code" else [0.0, math.log(2)] for bins in ("16", "32", "64", "128")}
        for task in ("code", "math")
    },
    fitted={"blocks": [[0.6, 1.7], [1.4, 0.3]], "default": [1.0, 1.0]},
    magnitudes={
        "code": {"model.layers.0.w": 1.0, "model.layers.1.w": 1.5, "model.embed_tokens.weight": 0.5},
        "math": {"model.layers.0.w": 0.5, "model.layers.1.w": 0.0, "model.embed_tokens.weight": 0.5},
    },
)
