"""The sandbox's issuer under an origin of one's own: ``issuer.py ORIGIN PORT FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from bbpwf.clock import SystemClock
from sandbox.double import serve
from sandbox.oidc import PATH, create_app

if __name__ == "__main__":
    origin, port, folder = sys.argv[1:]
    secret = (Path(folder) / "secret").read_text()
    serve(create_app(origin + PATH, Path(folder) / "state", secret, SystemClock()), int(port))
