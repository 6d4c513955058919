"""Bringing results home: Nexus, Lustre HSM, S3."""
