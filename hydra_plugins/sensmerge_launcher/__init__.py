"""How Hydra starts a sweep's jobs: here, side by side, on SLURM."""
