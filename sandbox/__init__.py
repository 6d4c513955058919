"""A whole platform on one machine, for the demo and the tests.

Real where a real one can be had (Slurm, sshd, Secrets Manager and S3 by moto's server), faithful doubles where
not (OIDC issuer, provisioner, Nexus Delta, ``lfs``). Nothing here is imported by bbpwf itself.
"""
