"""Reaching a machine: run commands, move small files, follow a growing one. SSH and local, one protocol."""
