"""A real Keycloak with the realm of :mod:`sandbox.keycloak_realm`, as one process on loopback.

``sandbox/setup.sh keycloak`` puts the server into ``.keycloak``, builds it once for what is used here (H2, no
cluster), and leaves an empty database there. Each instance has a folder of its own that looks like the server's, with
its own ``data``: a copy of that database, and the realm.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from bbpwf.clock import SystemClock
from sandbox.double import save
from sandbox.keycloak_realm import REALM, realms
from sandbox.layout import REPOSITORY
from sandbox.process import Process

ADMIN = "admin"
"""The administrator of every instance; see :func:`admin_password`."""
_PARTS = ("lib", "conf", "providers", "themes", "version.txt")
_JAVA = (
    "-Xms64m",
    "-Xmx320m",
    "-XX:MaxMetaspaceSize=256m",
    # a short life on few cores: quick to start matters, the last tenth of speed does not
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.util.concurrent.ForkJoinPool.common.threadFactory="
    "io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--add-opens=java.base/java.security=ALL-UNNAMED",
)


def server() -> Path:
    """Where the set-up puts Keycloak."""
    return REPOSITORY / ".keycloak"


def missing() -> list[str]:
    """What this machine lacks for a real Keycloak."""
    lacking = [] if shutil.which("java") else ["java"]
    if not (server() / "data" / "h2").exists():
        lacking.append("keycloak (sandbox/setup.sh keycloak)")
    return lacking


def admin_password() -> str:
    """The password of :data:`ADMIN`, made by the set-up of this machine."""
    return (server() / "admin-password").read_text().strip()


def origin(port: int) -> str:
    """Scheme, host and port of an instance."""
    return f"http://127.0.0.1:{port}"


def issuer_url(port: int, realm: str = REALM) -> str:
    """A realm's URL, which is also the ``iss`` of its tokens."""
    return f"{origin(port)}/auth/realms/{realm}"


def process(folder: Path, port: int, *, client_secret: str, log: Path) -> Process:
    """An instance with its data in ``folder``; the realms are imported at its first start and kept from then on.

    Raises:
        OSError: the folder cannot be prepared.
    """
    _prepare(folder, client_secret)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "KC_HTTP_ENABLED": "true",
        "KC_HTTP_HOST": "127.0.0.1",
        "KC_HTTP_PORT": str(port),
        "KC_HOSTNAME": f"{origin(port)}/auth",
        "KC_CACHE": "local",
        "KC_LOG_LEVEL": "warn",
        "KC_HTTP_POOL_MAX_THREADS": "16",
        "KC_DB_POOL_MAX_SIZE": "20",
    }
    argv = (
        "java",
        *_JAVA,
        f"-Dkc.home.dir={folder}",
        "-cp",
        str(folder / "lib" / "quarkus-run.jar"),
        "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
        "start",
        "--optimized",
        "--import-realm",
    )
    return Process("keycloak", argv, env, log, lambda: _answers(port), ready_within=240.0, cwd=folder)


def _prepare(folder: Path, client_secret: str) -> None:
    imports, database = folder / "data" / "import", folder / "data" / "h2"
    imports.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not database.exists():
        shutil.copytree(server() / "data" / "h2", database)
    for name in _PARTS:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(server() / name)
    for realm in realms(client_secret, int(SystemClock().now())):
        save(imports / f"{realm['realm']}-realm.json", json.dumps(realm))


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(issuer_url(port), timeout=5) as answer:  # noqa: S310 our own loopback URL
            return bool(answer.status == 200)
    except (urllib.error.HTTPError, OSError):
        return False
