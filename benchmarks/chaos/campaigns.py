"""Campaigns of small jobs, launched through the REST API as a client does it: patiently, with an Idempotency-Key.

Their tasks write the same tally as other jobs do, under names that the campaign gives them: ``<campaign>.<number>``.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import requests

from benchmarks.chaos.workload import BEGIN

Kind = Literal["well", "badly", "mended", "cancelled", "paused", "alone"]
TURNS: tuple[Kind, ...] = ("mended", "well", "cancelled", "mended", "paused", "badly")
ALONE_EVERY_S = 3.0
"""Between the campaigns without jobs: no cluster's misery keeps these from their end."""

_DOOMS = 2

MODULE = '''
import sys
import time
from pathlib import Path

import luigi

from bbpwf import faults
from bbpwf.workflow import RemoteTarget, SbatchTask

FOLDER = Path({folder!r})
TALLY = FOLDER / "tally"
BEGIN = {begin!r}


class Piece(SbatchTask):
    """One small job of a campaign."""

    campaign = luigi.Parameter()
    number = luigi.IntParameter()
    of = luigi.IntParameter()
    seconds = luigi.FloatParameter(significant=False)
    kind = luigi.Parameter()

    def requires(self):
        if self.number + 1 < self.of:
            return []
        return [self.clone(number=number) for number in range(self.of - 1)]

    def command(self):
        name = f"{{self.campaign}}.{{self.number}}"
        code = "0"
        if self.number == 0 and self.kind == "badly":
            code = "7"
        if self.number == 0 and self.kind == "mended":
            code = f"$(mkdir {{FOLDER}}/firsts/{{name}} && echo 7 || echo 0)"
        seconds = 1800 if self.kind == "cancelled" and self.number > 0 else self.seconds
        return BEGIN.format(name=name, tally=TALLY) + f"""
code={{code}}
tell B
sleep {{seconds}} || exit $?
if [ "$code" = 0 ]; then until echo done >{{self.output().path}}; do sleep 0.5; done; fi
tell E "$code"
exit "$code"
"""

    def output(self):
        return RemoteTarget(f"{{self.campaign}}-{{self.number}}")


class Alone(luigi.Task):
    """Has no jobs, and fails the first time."""

    campaign = luigi.Parameter()

    def complete(self):
        return (FOLDER / "firsts" / f"{{self.campaign}}.done").exists()

    def run(self):
        first = FOLDER / "firsts" / self.campaign
        if self._made(first):
            raise ValueError("the first time")
        self._made(first.with_suffix(".done"))

    def _made(self, folder):
        while True:
            try:
                folder.mkdir()
            except FileExistsError:
                return False
            except OSError:  # the disk is full
                time.sleep(0.5)
            else:
                return True


class Campaign(luigi.WrapperTask):
    """All of them; the last waits for the others."""

    name = luigi.Parameter()
    size = luigi.IntParameter()
    seconds = luigi.FloatParameter()
    kind = luigi.Parameter()

    def requires(self):
        if self.kind == "alone":
            return Alone(campaign=self.name)
        return Piece(campaign=self.name, number=self.size - 1, of=self.size, seconds=self.seconds, kind=self.kind)


def doom():
    """Take an order to die, if there is one; a head that dies too often is rightly given up."""
    if len(list(Path().glob("doom.*"))) == {dooms}:
        return
    for order in sorted((FOLDER / "orders").iterdir()):
        try:
            armed = order.rename(FOLDER / "taken" / order.name).read_text()
        except OSError:
            continue
        Path(f"doom.{{order.name}}").touch()
        faults.arm(armed)
        return


spec = sys.modules["__main__"].__spec__
if spec is not None and spec.name == "bbpwf.workflow.head":
    doom()
'''
"""The task module; a head that loads it may be told to die at a point of its own."""


@dataclass
class Campaign:
    """What was asked for, and what the service answered."""

    name: str
    kind: Kind
    size: int
    run_id: str = ""
    unanswered: str = ""


@dataclass
class Client:
    """Somebody with a token, who asks again as long as nobody answers. ``until`` bounds that, monotonic seconds."""

    url: str
    token: Callable[[], str]
    until: float = field(default=float("inf"))

    def ask(self, method: str, path: str, *, fine: tuple[int, ...] = (200,), **request: Any) -> dict[str, Any]:
        """The answer, once there is one.

        Raises:
            TimeoutError: there was none in time.
            ValueError: the service refused.
        """
        last = "nothing"
        while time.monotonic() < self.until:
            try:
                headers = {"Authorization": f"Bearer {self.token()}", **request.get("headers", {})}
                answer = requests.request(method, self.url + path, timeout=30, **(request | {"headers": headers}))
            except requests.RequestException as error:
                last = type(error).__name__
            else:
                if answer.status_code in fine:
                    return dict(answer.json())
                last = f"{answer.status_code}: {answer.text[:300]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    raise ValueError(f"{method} {path} was answered with {last}")
            time.sleep(0.2)
        raise TimeoutError(f"{method} {path} was not answered in time, last with {last}")


class Campaigns:
    """Keeps ``most`` campaigns under way, whose kinds take turns, and one without jobs."""

    def __init__(self, client: Client, chance: random.Random, folder: Path, *, most: int) -> None:
        self.all: list[Campaign] = []
        self.folder = folder
        self._client = client
        self._chance = chance
        self._most = most
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(most + 1, thread_name_prefix="campaign")

    @property
    def tally(self) -> Path:
        """Where the jobs write."""
        return self.folder / "tally"

    def start(self, workflows: Path) -> None:
        """Write the task module and begin."""
        for name in ("firsts", "orders", "taken"):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name).chmod(0o777)  # heads may have another user's rights
        text = MODULE.format(folder=str(self.folder), begin=BEGIN, dooms=_DOOMS)
        (workflows / "stormy.py").write_text(text)
        turns = cycle(TURNS)
        for _ in range(self._most):
            self._pool.submit(self._loop, turns)
        self._pool.submit(self._loop, cycle(["alone"]), pause_s=ALONE_EVERY_S)

    def stop(self, within: float) -> None:
        """No new campaigns; waits until all have ended, or for so many seconds."""
        self._client.until = time.monotonic() + within
        self._stopping.set()
        self._pool.shutdown(wait=True)

    def doom(self, armed: str) -> None:
        """Let a head that starts soon die at a point."""
        draft = self.folder / "order"
        draft.write_text(armed)
        draft.rename(self.folder / "orders" / f"{time.monotonic_ns()}")

    def _loop(self, kinds: Iterator[Kind], pause_s: float = 0.0) -> None:
        while not self._stopping.wait(pause_s):
            with self._guard:
                kind = next(kinds)
                size = 0 if kind == "alone" else self._chance.choice([2, 3, 5])
                campaign = Campaign(f"c{len(self.all)}", kind, size)
                self.all.append(campaign)
            try:
                self._one(campaign)
            except (TimeoutError, ValueError) as error:
                campaign.unanswered = str(error)

    def _one(self, campaign: Campaign) -> None:
        params = {
            "name": campaign.name,
            "size": campaign.size,
            "seconds": round(self._chance.uniform(0.1, 2.0), 2),
            "kind": campaign.kind,
        }
        parts = {
            "workflow_type": (None, "LUIGI"),
            "workflow_type_version": (None, "3.8"),
            "workflow_url": (None, "stormy:Campaign"),
            "workflow_params": (None, json.dumps(params)),
        }
        key = {"Idempotency-Key": campaign.name}
        campaign.run_id = self._client.ask("POST", "/ga4gh/wes/v1/runs", files=parts, headers=key)["run_id"]
        path = f"/runs/{campaign.run_id}"
        if campaign.kind == "cancelled":
            self._stopping.wait(self._chance.uniform(0.0, 12.0))
            self._client.ask("POST", f"/ga4gh/wes/v1{path}/cancel")
        elif campaign.kind == "paused":
            self._stopping.wait(self._chance.uniform(0.0, 8.0))
            self._client.ask("POST", f"{path}/pause", fine=(200, 409))  # it may have ended already
            self._stopping.wait(self._chance.uniform(0.0, 3.0))
            self._client.ask("POST", f"{path}/resume", fine=(200, 409))
        elif campaign.kind in {"mended", "alone"}:
            self._ended(path)
            self._client.ask("POST", f"{path}/resume", fine=(200, 409))  # 409: an answer that was lost
        self._ended(path)

    def _ended(self, path: str) -> None:
        while not self._client.ask("GET", path)["ended_at"]:
            time.sleep(0.3)
