"""Offline logins: what people leave with an instance so that their long runs can go on acting for them.

One offline token a person, encrypted in the database with a key that is not in it (``oidc.offline_keys``). Whoever can
read or write the database alone learns no token, and cannot make one person's pass for another's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.cluster.database import Database
from bbpwf.cluster.schema import consents
from bbpwf.errors import Conflict, InvalidConfig


@dataclass(frozen=True)
class Consent:
    """A person's offline login. ``token`` is ``None`` once it was lost, and ``reason`` says why."""

    sub: str
    username: str
    client_id: str
    given_at: float
    lost_at: float | None = None
    reason: str = ""
    token: SecretStr | None = field(default=None, repr=False)


class Consents:
    """The offline logins of an instance. Thread-safe.

    Args:
        database: where they are kept.
        keys: Fernet keys, the newest first; none means that no offline login is taken.
        clock: dates them.

    Raises:
        InvalidConfig: a key is none.
    """

    def __init__(self, database: Database, keys: Sequence[SecretStr], clock: Clock) -> None:
        self._db = database
        self._clock = clock
        try:
            self._seal = MultiFernet([Fernet(key.get_secret_value()) for key in keys]) if keys else None
        except ValueError:
            raise InvalidConfig(
                "a key for offline logins is no Fernet key",
                hint="BBPWF_OIDC__OFFLINE_KEYS is a list of texts, each 32 random bytes in URL-safe base64.",
            ) from None

    @property
    def possible(self) -> bool:
        """Whether this instance can keep offline logins."""
        return self._seal is not None

    def keep(self, sub: str, username: str, client_id: str, token: SecretStr) -> None:
        """Keep this person's offline token, which was given to ``client_id``, instead of any other.

        Raises:
            Conflict: this instance keeps none.
        """
        if self._seal is None:
            raise Conflict(
                "this instance keeps no offline logins", hint="Its operator has to set BBPWF_OIDC__OFFLINE_KEYS."
            )
        # the person is inside as well: a row copied to another person's name opens for nobody
        content = json.dumps({"sub": sub, "token": token.get_secret_value()})
        values = {
            "username": username,
            "client_id": client_id,
            "sealed": self._seal.encrypt(content.encode()).decode(),
            "given_at": self._clock.now(),
            "lost_at": None,
            "reason": "",
        }
        with self._db.begin() as db:
            changed = db.execute(consents.update().where(consents.c.sub == sub).values(**values))
            if changed.rowcount == 0:
                db.execute(consents.insert().values(sub=sub, **values))

    def of(self, sub: str) -> Consent | None:
        """This person's; ``None`` if they never gave one."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            row = db.execute(sa.select(consents).where(consents.c.sub == sub)).first()
        if row is None:
            return None
        token, reason = self._opened(row.sub, row.sealed)
        return Consent(row.sub, row.username, row.client_id, row.given_at, row.lost_at, row.reason or reason, token)

    def lose(self, sub: str, token: SecretStr, reason: str) -> None:
        """The identity provider takes ``token`` no more: forget it, unless it was replaced meanwhile."""
        with self._db.begin() as db:
            row = db.execute(sa.select(consents).where(consents.c.sub == sub)).first()
            if row is None or self._opened(sub, row.sealed)[0] != token:
                return
            values = {"sealed": "", "lost_at": self._clock.now(), "reason": reason}
            db.execute(consents.update().where(consents.c.sub == sub).values(**values))

    def withdraw(self, sub: str) -> Consent | None:
        """Forget this person's offline token, because they say so; answers what was kept."""
        kept = self.of(sub)
        values = {"sealed": "", "lost_at": self._clock.now(), "reason": "it was withdrawn"}
        with self._db.begin() as db:
            db.execute(consents.update().where(consents.c.sub == sub).values(**values))
        return kept

    def _opened(self, sub: str, sealed: str) -> tuple[SecretStr | None, str]:
        if not sealed:
            return None, ""
        try:
            if self._seal is None:
                raise InvalidToken
            content = json.loads(self._seal.decrypt(sealed.encode()))
        except (InvalidToken, ValueError):
            return None, "it was encrypted with a key that this instance does not have"
        if content.get("sub") != sub:
            return None, "it is somebody else's"
        return SecretStr(content["token"]), ""
