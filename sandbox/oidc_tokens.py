"""What the realm knows and what it grants: clients, sessions, codes, and the tokens made from them.

Shapes and words of errors as ``contracts.md`` §3.1 and §3.2 give them, for a Keycloak realm named SBO.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from bbpwf.clock import Clock
from sandbox.double import Knobs, Panel, save
from sandbox.oidc_keys import RealmKeys
from sandbox.tenants import CLI_CLIENT, PEOPLE, SERVICE_CLIENT, Person

CODE_LIFESPAN_S = 60
SESSION_LIFESPAN_S = 10 * 3600
_SCOPES = ("openid", "profile", "email", "groups", "offline_access")
_DEFAULT_SCOPES = ("profile", "email", "groups")


class OidcFaults(Knobs):
    """What can be wrong with the issuer. ``rotate_keys`` and ``end_sessions`` are deeds: they read False afterwards."""

    down: bool = False
    """Answer 503 to everything."""
    rotate_keys: bool = False
    """Sign with a new key (new ``kid``) from now on."""
    drop_old_keys: bool = False
    """A rotation also withdraws the earlier keys from the JWKS."""
    end_sessions: bool = False
    """Log everybody out: refresh tokens get ``invalid_grant``, "Session not active"."""
    groups_in_userinfo_only: bool = False
    """Access tokens carry no ``groups``; userinfo does, which is what the platform's services read."""
    access_lifespan_s: int = Field(300, ge=1)
    """Lifetime of access tokens from now on."""
    refresh_lifespan_s: int = Field(1800, ge=1)
    """Lifetime of refresh tokens from now on."""
    device_interval_s: int = Field(1, ge=0)
    """Seconds between two polls of the device flow; quicker ones get ``slow_down``."""
    device_lifespan_s: int = Field(600, ge=1)
    """Lifetime of device codes from now on."""


class GrantRefused(Exception):
    """An OAuth error answer."""

    def __init__(self, error: str, description: str = "", status: int = 400) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, **({"error_description": description} if description else {})}


@dataclass(frozen=True)
class Client:
    """A registered client; a public one has no secret."""

    client_id: str
    secret: str = ""
    direct_grant: bool = False
    device: bool = False
    service_account: Person | None = None


@dataclass
class Session:
    """One login of one person. Offline sessions outlive the single-sign-on one."""

    sid: str
    username: str
    started: float
    clients: list[str]
    offline: bool = False


@dataclass(frozen=True)
class Code:
    """An authorization code's memory."""

    client_id: str
    redirect_uri: str
    scope: str
    nonce: str
    challenge: str
    sid: str
    expires: float


@dataclass
class Device:
    """A device flow under way; ``sid`` is empty until somebody agrees."""

    client_id: str
    scope: str
    user_code: str
    expires: float
    interval: int
    polled: float = 0.0
    sid: str = ""
    denied: bool = False


class Realm:
    """Grants and checks tokens. Keys and sessions are kept in ``folder``, so that a restart forgets nobody."""

    def __init__(self, issuer: str, folder: Path, service_secret: str, panel: Panel[OidcFaults], clock: Clock) -> None:
        self.issuer = issuer
        self.keys = RealmKeys(folder)
        self.panel = panel
        self.clock = clock
        self.people = {person.username: person for person in PEOPLE}
        robot = Person(
            f"service-account-{SERVICE_CLIENT}",
            "",
            "5e41ce00-0000-4000-8000-000000000005",
            (f"/service/{SERVICE_CLIENT}/admin",),
        )
        self.clients = {
            SERVICE_CLIENT: Client(SERVICE_CLIENT, service_secret, service_account=robot),
            CLI_CLIENT: Client(CLI_CLIENT, direct_grant=True, device=True),
        }
        self._accounts = {**self.people, robot.username: robot}
        self._lock = threading.RLock()
        self._file = folder / "sessions.json"
        stored = json.loads(self._file.read_text()) if self._file.exists() else []
        self._sessions = {entry["sid"]: Session(**entry) for entry in stored}
        self._codes: dict[str, Code] = {}
        self._devices: dict[str, Device] = {}

    # -- people and sessions

    def log_in(self, username: str, password: str) -> Session:
        """A new session. Everybody's password is their username."""
        person = self.people.get(username)
        if person is None or not secrets.compare_digest(password.encode(), username.encode()):
            raise GrantRefused("invalid_grant", "Invalid user credentials", 401)
        return self._start(person, [])

    def session(self, sid: str) -> Session | None:
        """A session that still lives."""
        with self._lock:
            return self._sessions.get(sid)

    def log_out(self, sid: str) -> None:
        """End one session."""
        with self._lock:
            if self._sessions.pop(sid, None):
                self._keep()

    def log_everybody_out(self) -> None:
        """End all sessions."""
        with self._lock:
            self._sessions.clear()
            self._keep()

    def _start(self, person: Person, clients: list[str]) -> Session:
        with self._lock:
            session = Session(str(uuid.uuid4()), person.username, self.clock.now(), clients)
            oldest = session.started - SESSION_LIFESPAN_S
            self._sessions = {s.sid: s for s in self._sessions.values() if s.offline or s.started > oldest}
            self._sessions[session.sid] = session
            self._keep()
            return session

    def _join(self, session: Session, client: Client, *, offline: bool) -> None:
        with self._lock:
            if client.client_id not in session.clients or (offline and not session.offline):
                session.clients.append(client.client_id)
                session.offline = session.offline or offline
                self._keep()

    def _keep(self) -> None:
        save(self._file, json.dumps([asdict(session) for session in self._sessions.values()]))

    # -- clients and grants

    def client(self, client_id: str, secret: str) -> Client:
        """The client that says it is ``client_id``, its secret checked."""
        client = self.clients.get(client_id)
        if client is None or not secrets.compare_digest(client.secret.encode(), secret.encode()):
            raise GrantRefused("unauthorized_client", "Invalid client or Invalid client credentials", 401)
        return client

    def by_password(self, client: Client, username: str, password: str, scope: str) -> dict[str, Any]:
        """Direct grant."""
        if not client.direct_grant:
            raise GrantRefused("unauthorized_client", "Client not allowed for direct access grants", 401)
        return self._grant(client, self.log_in(username, password), self.scope(scope))

    def by_client(self, client: Client, scope: str) -> dict[str, Any]:
        """Client credentials: the service account's own token, without a refresh token."""
        if client.service_account is None:
            raise GrantRefused("unauthorized_client", "Client not enabled to retrieve service account", 401)
        session = self._start(client.service_account, [client.client_id])
        return self._grant(client, session, self.scope(scope), refreshable=False)

    def by_refresh_token(self, client: Client, token: str) -> dict[str, Any]:
        """A new pair for a refresh or offline token."""
        claims = self.keys.opened(token)
        if claims is None or claims.get("iss") != self.issuer or claims.get("typ") not in {"Refresh", "Offline"}:
            raise GrantRefused("invalid_grant", "Invalid refresh token")
        if claims["azp"] != client.client_id:
            raise GrantRefused("invalid_grant", "Session doesn't have required client")
        if claims.get("exp", float("inf")) <= self.clock.now():
            raise GrantRefused("invalid_grant", "Token is not active")
        session = self.session(claims["sid"])
        if session is None:
            offline = claims["typ"] == "Offline"
            raise GrantRefused("invalid_grant", "Offline user session not found" if offline else "Session not active")
        return self._grant(client, session, claims["scope"])

    def issue_code(
        self, client: Client, session: Session, *, redirect_uri: str, scope: str, nonce: str, challenge: str
    ) -> str:
        """An authorization code, good once and for a minute."""
        code = f"{uuid.uuid4()}.{session.sid}.{uuid.uuid4()}"
        expires = self.clock.now() + CODE_LIFESPAN_S
        with self._lock:
            self._codes[code] = Code(client.client_id, redirect_uri, scope, nonce, challenge, session.sid, expires)
        return code

    def by_code(self, client: Client, code: str, redirect_uri: str, verifier: str) -> dict[str, Any]:
        """Tokens for an authorization code. A code that is shown twice ends its session."""
        with self._lock:
            memory = self._codes.pop(code, None)
        if memory is None:
            parts = code.split(".")
            if len(parts) == 3:
                self.log_out(parts[1])
            raise GrantRefused("invalid_grant", "Code not valid")
        session = self.session(memory.sid)
        if memory.client_id != client.client_id or session is None or memory.expires <= self.clock.now():
            raise GrantRefused("invalid_grant", "Code not valid")
        if memory.redirect_uri != redirect_uri:
            raise GrantRefused("invalid_grant", "Incorrect redirect_uri")
        if memory.challenge:
            digest = hashlib.sha256(verifier.encode()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != memory.challenge:
                raise GrantRefused("invalid_grant", "PKCE verification failed")
        return self._grant(client, session, memory.scope, nonce=memory.nonce)

    def start_device(self, client: Client, scope: str) -> tuple[str, Device]:
        """Begin a device flow: the device code, and what to show."""
        if not client.device:
            raise GrantRefused("unauthorized_client", "Client is not allowed to initiate device flow", 401)
        letters = "BCDFGHJKLMNPQRSTVWXZ"
        user_code = "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(2))
        knobs = self.panel.now
        expires = self.clock.now() + knobs.device_lifespan_s
        device = Device(client.client_id, self.scope(scope), user_code, expires, knobs.device_interval_s)
        device_code = secrets.token_urlsafe(32)
        with self._lock:
            self._devices[device_code] = device
        return device_code, device

    def answer_device(self, user_code: str, session: Session | None) -> bool:
        """Somebody entered the code on the verification page; no session means that they said no."""
        with self._lock:
            for device in self._devices.values():
                waiting = not device.sid and not device.denied and device.expires > self.clock.now()
                if waiting and device.user_code == user_code.strip().upper():
                    device.sid, device.denied = (session.sid, False) if session else ("", True)
                    return True
        return False

    def by_device(self, client: Client, device_code: str) -> dict[str, Any]:
        """Tokens for a device code, once somebody agreed."""
        with self._lock:
            device = self._devices.get(device_code)
            if device is None or device.client_id != client.client_id:
                raise GrantRefused("invalid_grant", "Device code not valid")
            now = self.clock.now()
            if device.expires <= now:
                raise GrantRefused("expired_token", "Device code is expired")
            if device.denied:
                del self._devices[device_code]
                raise GrantRefused("access_denied", "The end user denied the authorization request")
            too_soon, device.polled = now - device.polled < device.interval, now
            if too_soon:
                raise GrantRefused("slow_down", "Slow down")
            if not device.sid:
                raise GrantRefused("authorization_pending", "The authorization request is still pending")
            del self._devices[device_code]
            session = self._sessions.get(device.sid)
        if session is None:
            raise GrantRefused("invalid_grant", "Session not active")
        return self._grant(client, session, device.scope)

    # -- tokens

    @staticmethod
    def scope(asked: str) -> str:
        """The scopes granted for those asked: defaults are always there, unknown ones are an error."""
        wanted = asked.split()
        if unknown := [name for name in wanted if name not in _SCOPES]:
            raise GrantRefused("invalid_scope", f"Invalid scopes: {' '.join(unknown)}")
        return " ".join(name for name in _SCOPES if name in wanted or name in _DEFAULT_SCOPES)

    def claims(self, session: Session) -> dict[str, Any]:
        """Who somebody is, as userinfo tells it."""
        person = self._accounts[session.username]
        claims: dict[str, Any] = {
            "sub": person.sub,
            "email_verified": True,
            "preferred_username": person.username,
            "groups": list(person.groups),
        }
        if person.name:
            given, _, family = person.name.partition(" ")
            claims |= {"name": person.name, "given_name": given, "family_name": family}
            claims["email"] = f"{person.username}@example.org"
        return claims

    def bearer(self, token: str) -> tuple[dict[str, Any], Session] | None:
        """A live access token's claims and session; ``None`` for anything else."""
        claims = self.keys.verified(token)
        if claims is None or claims.get("typ") != "Bearer" or claims["exp"] <= self.clock.now():
            return None
        session = self.session(str(claims.get("sid", "")))
        return (claims, session) if session else None

    def _grant(
        self, client: Client, session: Session, scope: str, *, nonce: str = "", refreshable: bool = True
    ) -> dict[str, Any]:
        offline = "offline_access" in scope.split()
        self._join(session, client, offline=offline)
        now = int(self.clock.now())
        knobs = self.panel.now
        who = self.claims(session)
        common = {
            "iat": now,
            "iss": self.issuer,
            "sub": who["sub"],
            "azp": client.client_id,
            "sid": session.sid,
            "session_state": session.sid,
        }
        access = {
            **common,
            "jti": str(uuid.uuid4()),
            "typ": "Bearer",
            "exp": now + knobs.access_lifespan_s,
            "acr": "1",
            "scope": scope,
            **{k: v for k, v in who.items() if k != "groups" or not knobs.groups_in_userinfo_only},
        }
        answer: dict[str, Any] = {
            "access_token": self.keys.sign(access),
            "expires_in": knobs.access_lifespan_s,
            "refresh_expires_in": 0 if offline or not refreshable else knobs.refresh_lifespan_s,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": scope,
        }
        if refreshable:
            refresh = {**common, "jti": str(uuid.uuid4()), "typ": "Refresh", "aud": self.issuer, "scope": scope}
            if offline:
                refresh["typ"] = "Offline"
            else:
                refresh["exp"] = now + knobs.refresh_lifespan_s
            answer |= {"refresh_token": self.keys.seal(refresh), "session_state": session.sid}
        if "openid" in scope.split():
            half = hashlib.sha256(answer["access_token"].encode()).digest()[:16]
            identity = {
                **common,
                **who,
                "jti": str(uuid.uuid4()),
                "typ": "ID",
                "aud": client.client_id,
                "auth_time": int(session.started),
                "exp": access["exp"],
                "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
                **({"nonce": nonce} if nonce else {}),
            }
            answer["id_token"] = self.keys.sign(identity)
        return answer
