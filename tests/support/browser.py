"""A real browser, driven over Chromium's debugging pipe: no driver program, no port."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PLACE = """\
import os, sys
orders, answers = (os.dup(int(each)) for each in sys.argv[1:3])
high = os.dup2(orders, 100), os.dup2(answers, 101)
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium expects its orders on descriptor 3 and gives its answers on 4."""


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: io.FileIO) -> None:
        self._process = process
        self._to = to
        self._back = back
        self._rest = b""
        self._ids = 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Begin to load a page."""
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; ``None`` while a page is being replaced by another."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer.get("result", {}).get("value")

    def wait_for(self, script: str, *, within: float = 30.0) -> Any:
        """The first true value of an expression."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            found = self.evaluate(script)
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(
            f"not within {within} s: {script}; the page says: {self.evaluate('document.body.innerText')}"
        )

    def cookies(self) -> list[dict[str, Any]]:
        """All cookies that the browser holds."""
        return list(self._ask("Network.getAllCookies")["cookies"])

    def screenshot(self, path: Path) -> None:
        """What is to be seen, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self._call(method, session=self._session, **params)

    def _call(self, method: str, *, session: str = "", **params: Any) -> dict[str, Any]:
        self._ids += 1
        message: dict[str, Any] = {"id": self._ids, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._ids:
                if "error" in answer and "context" not in answer["error"]["message"]:
                    raise AssertionError(f"{method}: {answer['error']}")
                return dict(answer.get("result", {}))

    def _next(self) -> bytes:
        while b"\0" not in self._rest:
            chunk = self._back.read(65536)
            if not chunk:
                raise AssertionError(f"the browser ended with code {self._process.wait(10)}")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return message


@contextmanager
def browser(folder: Path, *, program: str = "/usr/bin/chromium") -> Iterator[Browser]:
    """A fresh browser with its profile in ``folder``; it is gone when the block is left."""
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()

    argv = [
        *(sys.executable, "-c", _PLACE, str(read_there), str(write_there)),
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--window-size=1400,900",
        f"--user-data-dir={folder / 'profile'}",
        "--remote-debugging-pipe",
    ]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(read_there, write_there),
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )
    os.close(read_there)
    os.close(write_there)
    try:
        with os.fdopen(read_here, "rb", buffering=0) as answers:
            yield Browser(process, write_here, answers)
    finally:
        os.close(write_here)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
