"""AWS on this machine: moto's server, for Secrets Manager and S3. What it holds lives in its memory alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sandbox.process import Process
from sandbox.state import SandboxError

REGION = "us-east-1"
NEXUS_BUCKET = "nexus-bucket"
SCRATCH_BUCKET = "scratch-bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIASANDBOXEXAMPLE00", "AWS_SECRET_ACCESS_KEY": "sandbox-dummy-secret-access-key"}
"""Any would do for moto; the provisioner double checks signatures against these."""


def process(port: int, env: Mapping[str, str], log: Path) -> Process:
    """moto's server on a loopback port."""
    return Process(
        name="moto",
        argv=(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)),
        env={**env, "NO_COLOR": "1"},
        log=log,
    )


def s3_client(endpoint: str) -> Any:
    """A client for the S3 at ``endpoint``, with limits."""
    session = boto3.Session(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], region_name=REGION)
    limits = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})
    return session.client("s3", endpoint_url=endpoint, config=limits)


def make_buckets(endpoint: str, names: Iterable[str] = (NEXUS_BUCKET, SCRATCH_BUCKET)) -> None:
    """Make the buckets of the platform; those that exist stay as they are.

    Raises:
        SandboxError: moto does not answer or refuses.
    """
    client = s3_client(endpoint)
    for name in names:
        try:
            client.create_bucket(Bucket=name)
        except (ClientError, BotoCoreError) as error:
            raise SandboxError(f"the bucket {name} cannot be made: {error}", where=endpoint) from error
