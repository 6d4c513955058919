"""The Lambdas start without what is not in their bundle, and without what would slow them down."""

from __future__ import annotations

import subprocess
import sys

from container.bundle import NEEDLESS

_SCRIPT = """
import sys
from service.gateway import ecs, handlers, roster, wiring
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_handlers_import_nothing_that_their_bundle_leaves_out() -> None:
    made = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    imported = set(made.stdout.split())
    assert "fastapi" in imported
    of_the_runtime = {"boto3", "botocore", "s3transfer"}
    assert not imported & (set(NEEDLESS) - of_the_runtime)
    assert not imported & {"docker", "sqlalchemy", "alembic", "uvicorn", "httpx", "keycloak"}
