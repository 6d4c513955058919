"""What a token is worth here: verified by the platform layer, held against this project, remembered briefly."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from bbpwf.clock import Clock
from bbpwf.platform.membership import require_member
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.settings import ProjectSettings
from service.access import Caller

REMEMBER_S = 60.0
"""How long a decision is taken for granted; never longer than the token lives."""
_REMEMBERED = 4096


class ProjectAuthority:
    """See :class:`service.access.Authority`."""

    def __init__(self, verifier: TokenVerifier, project: ProjectSettings, clock: Clock) -> None:
        self._verifier = verifier
        self._project = project
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    def known(self, token: str) -> Caller | None:
        """The caller, if this token was checked within the last minute and has not expired."""
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            found = self._known.get(digest)
        return found[0] if found is not None and self._clock.now() < found[1] else None

    def check(self, token: str) -> Caller:
        """The caller behind the token. Raises NotAuthenticated, NotAuthorized or IdentityUnavailable."""
        identity = self._verifier.verify(token)
        role = require_member(identity, self._project)
        caller = Caller(identity.sub, identity.username, identity.token, identity.expires_at, role)
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            self._known[digest] = caller, min(self._clock.now() + REMEMBER_S, identity.expires_at)
            self._known.move_to_end(digest)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return caller
