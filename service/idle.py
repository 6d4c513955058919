"""An instance that nobody needs ends itself, as if it had been told to. The gateway starts it again when asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from bbpwf.clock import Clock
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.notices import NoticeStore
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import BbpwfError
from bbpwf.states import RunState
from service.access import LIVENESS

_log = logging.getLogger(__name__)

LONGEST_LOOK_S = 60.0
_UNNOTED = LIVENESS | {"/metrics"}
"""Who asks for these asks whether it is there, not for anything that it does."""
_AT_REST = frozenset({"none", "ready", "failed"})
_WAITING_FOR_PEOPLE = RunState.PAUSED


class Use:
    """Who uses the instance now, and when somebody last did. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._open = 0
        self._last = clock.monotonic()
        self._ever = False

    def began(self) -> None:
        """A request came."""
        with self._guard:
            self._open += 1
            self._ever = True

    def ended(self) -> None:
        """It was answered in full."""
        with self._guard:
            self._open -= 1
            self._last = self._clock.monotonic()

    def within(self, seconds: float) -> bool:
        """Whether somebody has used it in the last ``seconds``."""
        return self._ever and self.quiet_s() < seconds

    def quiet_s(self) -> float:
        """For how long nobody has used it; 0 while somebody does."""
        with self._guard:
            return 0.0 if self._open else self._clock.monotonic() - self._last


class Noted:
    """ASGI middleware that notes requests in ``use``: streams for as long as they are open."""

    def __init__(self, app: ASGIApp, *, use: Use) -> None:
        self._app = app
        self._use = use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http" or scope["path"] in _UNNOTED:
            await self._app(scope, receive, send)
            return
        self._use.began()
        try:
            await self._app(scope, receive, send)
        finally:
            self._use.ended()


class IdleStop:
    """Calls ``stop`` once nobody has used the instance for ``after_s`` and nothing is under way.

    Under way are: a run that is unfinished and does not wait for a person, a job that has not ended (those of a paused
    run too), a cluster that is being made or reached, an archiving, and a notice that is not told yet. What cannot be
    found out counts as under way.
    """

    def __init__(
        self,
        after_s: float,
        use: Use,
        store: RunStore,
        notices: NoticeStore,
        control: AgentControl,
        stop: Callable[[], None],
    ) -> None:
        self._after_s = after_s
        self._use = use
        self._store = store
        self._notices = notices
        self._control = control
        self._stop = stop
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="idle", daemon=True)

    def start(self) -> None:
        """Begin to look, if it is wanted at all."""
        if self._after_s > 0:
            self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def _loop(self) -> None:
        while not self._ending.wait(min(LONGEST_LOOK_S, self._after_s / 4)):
            if self._use.quiet_s() < self._after_s:
                continue
            if busy := self.under_way():
                _log.debug("nobody uses the instance, but %s", busy)
                continue
            _log.info("nobody has used the instance for %.0f s and nothing is under way: it stops", self._use.quiet_s())
            self._stop()
            return

    def under_way(self) -> str:
        """What keeps the instance from stopping; empty if nothing does."""
        try:
            counts = self._store.counts()
            unfinished = sum(
                count for state, count in counts.items() if not state.terminal and state is not _WAITING_FOR_PEOPLE
            )
            if unfinished:
                return f"{unfinished} runs are unfinished"
            if live := self._store.live_jobs():
                return f"{live} jobs have not ended"
            if waiting := self._notices.waiting():
                return f"{waiting} notices are not told"
            meters = self._control.meters()
        except BbpwfError as error:
            return f"it is not known what is under way: {error}"
        if meters.archives:
            return f"{meters.archives} archivings are under way"
        made = [name for name, cluster in meters.clusters.items() if cluster.state not in _AT_REST]
        return f"the cluster {made[0]} is being made" if made else ""
