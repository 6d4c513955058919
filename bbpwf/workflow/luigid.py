"""``python -m bbpwf.workflow.luigid``: Luigi's central scheduler and dashboard, with our scheduler inside.

Command line, configuration, RPC and pages are those of ``luigid``.
"""

from __future__ import annotations

from typing import Any

from luigi import server
from luigi.cmdline import luigid

from bbpwf.workflow.flat import FlatScheduler


def main() -> None:
    """Serve until told to end."""
    made_by: Any = server  # ``server.run`` makes its scheduler by this name
    made_by.Scheduler = FlatScheduler
    luigid()


if __name__ == "__main__":
    main()
