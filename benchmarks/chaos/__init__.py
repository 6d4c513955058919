"""A storm of faults over a real Slurm, sshd and agent, and a checker that reads what really happened."""
