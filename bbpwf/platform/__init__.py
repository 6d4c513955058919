"""Services of the platform: provisioner, Secrets Manager, identity provider."""
