"""Sensitivities and predictions of models larger than memory, one decoder block at a time."""
