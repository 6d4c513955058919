"""``python -m sandbox.nexus``: serve the double until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
from pathlib import Path

from sandbox.double import serve
from sandbox.nexus.app import create_app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.nexus", description="A double of Nexus Delta.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder for everything that must last")
    parser.add_argument("--issuer", required=True, help="URL of the realm whose tokens are good")
    parser.add_argument("--s3-endpoint", default="", help="S3; without it there are only disk storages")
    parser.add_argument("--bucket", action="append", default=[], help="bucket with a storage; may be repeated")
    parser.add_argument("--org", default="bbp")
    parser.add_argument("--project", default="sandbox")
    asked = parser.parse_args()
    app = create_app(
        f"http://127.0.0.1:{asked.port}/v1",
        asked.state,
        asked.issuer.rstrip("/"),
        s3_endpoint=asked.s3_endpoint,
        buckets=asked.bucket,
        org=asked.org,
        project=asked.project,
    )
    serve(app, asked.port)


if __name__ == "__main__":
    main()
