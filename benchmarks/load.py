"""Requests from many connections at once, by ``wrk``: it costs little of the two cores it shares with the service."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LUA = """\
local tokens, paths = {%(tokens)s}, {%(paths)s}
local body, kind, sent = %(body)s, %(kind)s, 0
request = function()
  sent = sent + 1
  local headers = {["Authorization"] = "Bearer " .. tokens[sent %% #tokens + 1]}
  if body then
    headers["Content-Type"] = kind
    return wrk.format("POST", paths[sent %% #paths + 1], headers, (body:gsub("NUMBER", sent)))
  end
  return wrk.format("GET", paths[sent %% #paths + 1], headers)
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %%d, "seconds": %%f, "p99": %%f, "errors": %%d}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(99) / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of it. ``p99`` is in seconds; ``errors`` counts refused, broken, late and non-2xx answers."""

    requests: int
    seconds: float
    p99: float
    errors: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def load(
    origin: str,
    paths: Sequence[str],
    tokens: Sequence[str],
    *,
    connections: int,
    seconds: int,
    form: dict[str, str] | None = None,
) -> Load:
    """Ask for ``paths`` in turn, or send ``form`` to them, in which ``NUMBER`` becomes another number each time.

    Raises:
        RuntimeError: wrk failed.
    """
    boundary = "form-of-a-launch"
    body = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in (form or {}).items()
    )
    script = _LUA % {
        "tokens": ", ".join(map(_quoted, tokens)),
        "paths": ", ".join(map(_quoted, paths)),
        "body": _quoted(f"{body}--{boundary}--\r\n") if form else "nil",
        "kind": _quoted(f"multipart/form-data; boundary={boundary}"),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.lua"
        file.write_text(script)
        options = ("-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(file))
        ran = subprocess.run(
            ["wrk", *options, origin], capture_output=True, text=True, timeout=seconds + 60, check=False
        )
    if ran.returncode != 0:
        raise RuntimeError(f"wrk failed: {ran.stdout}{ran.stderr}")
    return Load(**json.loads(ran.stdout.strip().rpartition("\n")[2]))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n") + '"'
