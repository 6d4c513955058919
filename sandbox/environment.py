"""The settings by which clients and the service find a sandbox; names as in :mod:`bbpwf.settings`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

from sandbox.layout import Layout
from sandbox.moto import CREDENTIALS, NEXUS_BUCKET, REGION, SCRATCH_BUCKET
from sandbox.nexus.storages import s3_storage_id
from sandbox.state import SandboxState
from sandbox.tenants import CLI_CLIENT, PROJECT, SERVICE_CLIENT, VIRTUAL_LAB

NEXUS_ORG = "bbp"
NEXUS_PROJECT = "sandbox"
ARCHIVE_PREFIX = f"{VIRTUAL_LAB}/{PROJECT}"
"""The project's part of the scratch bucket, as the provisioner's data repository association has it."""


def urls(ports: Mapping[str, int], *, service: bool) -> dict[str, str]:
    """Where each part answers."""
    found = {
        "aws": f"http://127.0.0.1:{ports['moto']}",
        "issuer": f"http://127.0.0.1:{ports['oidc']}/auth/realms/SBO",
        "provisioner": f"http://127.0.0.1:{ports['provisioner']}/production/hpc-provisioner",
        "nexus": f"http://127.0.0.1:{ports['nexus']}/v1",
    }
    if service:
        found["service"] = f"http://127.0.0.1:{ports['service']}"
        found["dashboard"] = f"{found['service']}/dashboard/"
    return found


def client_env(state: SandboxState) -> dict[str, str]:
    """Variables for commands that talk to the service, or that run without it against the same platform."""
    layout = Layout(state.short)
    slurm = state.backend == "slurm"
    env = {
        **CREDENTIALS,
        "AWS_DEFAULT_REGION": REGION,
        "BBPWF_SANDBOX_DIR": str(state.folder),
        "BBPWF_STATE_DIR": str(layout.client_state),
        "BBPWF_PROJECT__VIRTUAL_LAB_ID": VIRTUAL_LAB,
        "BBPWF_PROJECT__PROJECT_ID": PROJECT,
        "BBPWF_CLUSTER__KIND": "provisioned" if slurm else "local",
        "BBPWF_CLUSTER__DATA_ROOT": str(layout.data_root),
        "BBPWF_CLUSTER__SOFTWARE": str(layout.software),
        "BBPWF_AWS__REGION": REGION,
        "BBPWF_AWS__ENDPOINT_URL": state.urls["aws"],
        "BBPWF_OIDC__ISSUER": state.urls["issuer"],
        "BBPWF_OIDC__CLIENT_ID": SERVICE_CLIENT,
        "BBPWF_OIDC__CLI_CLIENT_ID": CLI_CLIENT,
        "BBPWF_NEXUS__URL": state.urls["nexus"],
        "BBPWF_NEXUS__ORG": NEXUS_ORG,
        "BBPWF_NEXUS__PROJECT": NEXUS_PROJECT,
        "BBPWF_NEXUS__STORAGE_ID": s3_storage_id(SCRATCH_BUCKET if slurm else NEXUS_BUCKET),
    }
    if slurm:
        env |= {
            "BBPWF_CLUSTER__PORT": str(state.ports["sshd"]),
            "BBPWF_PROVISIONER__URL": state.urls["provisioner"],
            "BBPWF_PROVISIONER__REGION": REGION,
            "BBPWF_PROVISIONER__TIER": "debug",
            "BBPWF_PROVISIONER__POLL_S": "0.5",
            "BBPWF_S3__BUCKET": SCRATCH_BUCKET,
            "BBPWF_S3__PREFIX": ARCHIVE_PREFIX,
            "BBPWF_S3__LUSTRE_PATH": str(layout.data_root),
        }
    if "service" in state.urls:
        env |= {
            "BBPWF_URL": state.urls["service"],
            "BBPWF_SCHEDULER_URL": f"http://127.0.0.1:{state.ports['scheduler']}",
        }
    return env


def service_env(state: SandboxState, client_secret: str) -> dict[str, str]:
    """What the service needs beyond that; holds a secret."""
    env = {
        **client_env(state),
        "BBPWF_STATE_DIR": str(Layout(state.short).service_state),
        "BBPWF_OIDC__CLIENT_SECRET": client_secret,
        # for a machine's own sandbox one secret is enough
        "BBPWF_OIDC__OFFLINE_KEYS": json.dumps([_key(client_secret)]),
        "BBPWF_SERVICE__HOST": "127.0.0.1",
        "BBPWF_SERVICE__PORT": str(state.ports["service"]),
        "BBPWF_SERVICE__SCHEDULER_PORT": str(state.ports["scheduler"]),
        "BBPWF_SERVICE__PUBLIC_URL": f"http://127.0.0.1:{state.ports['service']}",
        "BBPWF_SERVICE__SECURE_COOKIES": "false",
    }
    env.pop("BBPWF_SANDBOX_DIR")
    return env


def _key(secret: str) -> str:
    """A key to encrypt offline logins with."""
    return base64.urlsafe_b64encode(hashlib.sha256(f"offline logins: {secret}".encode()).digest()).decode()
