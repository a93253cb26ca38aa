"""Many jobs: local or SLURM, frozen configurations, SIGTERM and preemption, `status`."""
