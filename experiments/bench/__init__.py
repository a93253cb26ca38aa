"""Time and memory of merges, sweeps and evaluations, beside mergekit's and lm-eval's."""
