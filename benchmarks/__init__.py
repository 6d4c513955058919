"""Measures bbpwf beside raw Slurm, in one session on one machine: ``python -m benchmarks``."""
