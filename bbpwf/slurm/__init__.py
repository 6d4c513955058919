"""Slurm commands as pure functions: argument lists out, text in; and a thin client over a transport."""
