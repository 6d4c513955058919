"""``bbpwf login``: by browser on any machine (device flow), or by name and password."""

from __future__ import annotations

import getpass
import sys

from pydantic import SecretStr

from bbpwf import settings
from bbpwf.cli import show
from bbpwf.cli.client import ServiceClient
from bbpwf.cli.credentials import Credentials
from bbpwf.clock import SystemClock
from bbpwf.errors import BbpwfError, InvalidInput, NotAuthenticated
from bbpwf.platform.login import OFFLINE_SCOPE, SCOPE, DevicePrompt
from bbpwf.platform.membership import membership
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.redact import Redactor

_LONGEST_PASSWORD = 4096


def log_in(username: str, *, password_stdin: bool, json_output: bool, offline: bool = False) -> None:
    """Log in, keep the tokens, and say as whom. ``offline``: leave a login with the service too, for long runs."""
    configured, clock, redactor = settings.load(), SystemClock(), Redactor()
    credentials = Credentials(configured, clock, redactor)
    flows = credentials.login()
    service = ServiceClient(configured, credentials.access_token) if offline else None
    scope = OFFLINE_SCOPE if offline else SCOPE
    if password_stdin and not username:
        raise InvalidInput("--password-stdin needs --username")
    if username:
        tokens = flows.password_login(username, _password(username, from_stdin=password_stdin), scope=scope)
    else:
        found = flows.device_login(_prompt, scope=scope)
        if found is None:
            raise NotAuthenticated("the login was given up")
        tokens = found
    identity = TokenVerifier(configured.oidc, clock).verify(tokens.access.get_secret_value())
    credentials.store(tokens)
    resumed = service.leave_login(tokens.refresh) if service is not None and tokens.refresh is not None else []
    project = configured.project
    role = membership(identity, project.virtual_lab_id, project.project_id)
    if json_output:
        show.print_json(
            {"username": identity.username, "sub": identity.sub, "project": project.project_id, "role": role}
            | ({"resumed": resumed} if offline else {})
        )
        return
    standing = f"{role} of project {project.project_id}" if role else f"no member of project {project.project_id}"
    show.console().print(f"logged in as {identity.username}, {standing}", soft_wrap=True, markup=False)
    if offline:
        show.console().print("your runs act for you beyond the end of this login, until bbpwf logout --offline")
    for run_id in resumed:
        show.console().print(f"run {run_id} goes on", markup=False)


def log_out(*, offline: bool = False) -> None:
    """Forget the tokens, and end the session at the identity provider if it answers.

    ``offline``: withdraw the login that was left with the service as well.
    """
    configured = settings.load()
    credentials = Credentials(configured, SystemClock(), Redactor())
    if offline:
        ServiceClient(configured, credentials.access_token).withdraw_login()
    refresh = credentials.forget()
    if refresh is not None:
        try:
            credentials.login().log_out(refresh)
        except BbpwfError as error:
            show.console(err=True).print(f"forgotten here; the session there ends by itself ({error})", markup=False)
            return
    show.console().print("logged out")


def _password(username: str, *, from_stdin: bool) -> SecretStr:
    if from_stdin:
        return SecretStr(sys.stdin.readline(_LONGEST_PASSWORD).rstrip("\r\n"))
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask for the password on", hint="Use --password-stdin.")
    return SecretStr(getpass.getpass(f"Password of {username}: "))


def _prompt(device: DevicePrompt) -> None:
    out = show.console(err=True)
    out.print(f"Open {device.complete_uri}", soft_wrap=True, markup=False)
    out.print(f"and confirm the code {device.user_code} (within {device.expires_in_s / 60:.0f} minutes).", markup=False)
