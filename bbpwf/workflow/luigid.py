"""``python -m bbpwf.workflow.luigid``: Luigi's central scheduler and dashboard, with our scheduler inside.

Command line, configuration, RPC and pages are those of ``luigid``. With a key in its environment, every call needs a
pass (:mod:`bbpwf.workflow.guarded`).
"""

from __future__ import annotations

import json
import os
from typing import Any

from luigi import scheduler, server
from luigi.cmdline import luigid
from luigi.server import RPCHandler

from bbpwf.workflow import guarded
from bbpwf.workflow.flat import FlatScheduler


def guard(handler: Any, key: str) -> None:
    """Let Luigi's RPC ``handler`` answer only calls whose pass, made with ``key``, allows them."""
    answer = handler.get

    def get(self: RPCHandler, method: str) -> None:
        name = guarded.bearer(self.request.headers.get("Authorization", ""), key)
        if name is None:
            self.send_error(401)
            return
        try:
            arguments = json.loads(self.get_argument("data", default="{}"))
            fine = isinstance(arguments, dict) and guarded.allowed(name, method, arguments)
        except (ValueError, TypeError, RecursionError):
            fine = False
        if not fine:
            self.send_error(403)
            return
        answer(self, method)

    handler.get = handler.post = get  # in place: the class names itself by its module's name


def main() -> None:
    """Serve until told to end."""
    made_by: Any = server  # ``server.run`` makes its scheduler by this name
    made_by.Scheduler = FlatScheduler
    scheduler.RPC_METHODS["add_tasks"] = FlatScheduler.add_tasks  # what may be called by its name
    if key := os.environ.pop(guarded.KEY, ""):
        guard(server.RPCHandler, key)
    luigid()


if __name__ == "__main__":
    main()
