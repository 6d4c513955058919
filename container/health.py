"""Says by its exit code whether the service of this container answers."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

port = os.environ.get("BBPWF_SERVICE__PORT", "8100")
try:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=4) as answer:
        sys.exit(0 if answer.status < 300 else 1)
except (urllib.error.URLError, OSError):
    sys.exit(1)
