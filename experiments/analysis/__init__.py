"""Which runs are compared, families as the random effect, Holm's correction, registered comparisons."""
