"""``/consent``: the offline login that somebody leaves here, so that their long runs can go on acting for them.

It is given by a client that has an offline token (``bbpwf login --offline``) or by a browser (``/auth/offline``). Runs
of theirs that were parked for want of it go on at once.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.concurrency import run_in_threadpool

from bbpwf.cluster.consents import Consents
from bbpwf.cluster.runs import RunStore
from bbpwf.cluster.tokens import PARKED
from bbpwf.errors import BbpwfError, InvalidInput, NotAuthorized
from bbpwf.platform.login import Login
from bbpwf.states import RunState
from service.access import Authority, Caller, caller

_log = logging.getLogger(__name__)

_LONGEST = 16_384


class OfflineLogin(BaseModel):
    """An offline token, as the identity provider answers it to a login with the scope ``offline_access``."""

    model_config = ConfigDict(extra="forbid")

    refresh_token: SecretStr = Field(min_length=1, max_length=_LONGEST)


class OfflineLogins:
    """Takes, shows and forgets offline logins. Calls block: use a worker thread.

    Args:
        consents: where they are kept.
        store: the runs, some of them parked.
        authority: says whose an access token is.
        login: the flows of a client, by its id.
        clients: the clients whose offline tokens are taken.
        resume: lets a run go on.
    """

    def __init__(
        self,
        consents: Consents,
        store: RunStore,
        authority: Authority,
        login: Callable[[str], Login],
        clients: frozenset[str],
        resume: Callable[[str, Caller], object],
    ) -> None:
        self._consents = consents
        self._store = store
        self._authority = authority
        self._login = login
        self._clients = clients
        self._resume = resume

    @property
    def possible(self) -> bool:
        """Whether this instance takes any."""
        return self._consents.possible

    def give(self, who: Caller, token: SecretStr) -> list[str]:
        """Keep somebody's offline token, proved by its use; answers which of their runs go on now.

        Raises:
            InvalidInput: it is no offline token of a client that is known here.
            NotAuthenticated: the identity provider does not take it.
            NotAuthorized: it is somebody else's.
            Conflict: this instance keeps none.
        """
        claims = _claims(token)
        client = claims.get("azp")
        if claims.get("typ") != "Offline" or not isinstance(client, str) or client not in self._clients:
            raise InvalidInput(
                "this is no offline token of a client that is known here",
                hint="Log in with the scope offline_access: bbpwf login --offline.",
            )
        renewed = self._login(client).refresh(token)
        if self._authority.check(renewed.access.get_secret_value()).sub != who.sub:
            raise NotAuthorized("this offline token is somebody else's")
        self._consents.keep(who.sub, who.username, client, renewed.refresh or token)
        return self._go_on(who)

    def show(self, who: Caller) -> dict[str, Any]:
        """How it stands with somebody's offline login, and which of their runs wait for one."""
        kept = self._consents.of(who.sub)
        state = "none" if kept is None else "lost" if kept.token is None else "given"
        return {
            "state": state,
            "possible": self.possible,
            "given_at": kept.given_at if kept else None,
            "lost_at": kept.lost_at if kept else None,
            "reason": kept.reason if kept else "",
            "parked_runs": self._parked(who),
        }

    def withdraw(self, who: Caller) -> None:
        """Forget somebody's offline token, and end it at the identity provider too if that answers."""
        kept = self._consents.withdraw(who.sub)
        if kept is not None and kept.token is not None:
            try:
                self._login(kept.client_id).log_out(kept.token)
            except BbpwfError as error:
                _log.warning("an offline login was forgotten here, and not ended at the identity provider: %s", error)

    def _parked(self, who: Caller) -> list[str]:
        return [
            run.run_id
            for run in self._store.unfinished()
            if run.state is RunState.PAUSED and run.owner.sub == who.sub and run.reason.startswith(PARKED)
        ]

    def _go_on(self, who: Caller) -> list[str]:
        found = self._parked(who)
        for run_id in found:
            try:
                self._resume(run_id, who)
            except BbpwfError as error:  # canceled this very moment, say: the login is kept all the same
                _log.info("run %s does not go on: %s", run_id, error)
        return found


def router(logins: OfflineLogins) -> APIRouter:
    """The routes: each about the caller's own and nobody else's."""
    routes = APIRouter(tags=["offline login"])

    @routes.get("/consent")
    def show(who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Whether the caller left an offline login here, and which of their runs are parked for want of one."""
        return logins.show(who)

    @routes.put("/consent")
    async def give(login: OfflineLogin, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Leave an offline login: long runs go on acting for the caller, and parked ones are resumed."""
        return {"resumed": await run_in_threadpool(logins.give, who, login.refresh_token)}

    @routes.delete("/consent", status_code=204)
    def withdraw(who: Annotated[Caller, Depends(caller)]) -> None:
        """Withdraw it. Runs that need it are parked when they do."""
        logins.withdraw(who)

    return routes


def _claims(token: SecretStr) -> dict[str, object]:
    """What a token says of itself, unverified: refresh tokens are signed with a key of the realm's own."""
    parts = token.get_secret_value().split(".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, IndexError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
