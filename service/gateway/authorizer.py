"""Whose token is this, and for which project may it be used?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bbpwf.errors import InvalidInput, NotAuthenticated, NotAuthorized
from bbpwf.platform.membership import require_member
from bbpwf.platform.tokens import Identity, TokenVerifier
from bbpwf.settings import ProjectSettings
from service.gateway.passes import PassMaker

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}\Z")
_MEMBERSHIP = re.compile(r"/proj/([^/]+)/([^/]+)/(?:admin|member)\Z")
_WHICH = "Name the project with the headers virtual-lab-id and project-id."


@dataclass(frozen=True)
class Project:
    """A project, by ids that are safe in names of containers, volumes and tags."""

    virtual_lab_id: str
    project_id: str

    @property
    def key(self) -> str:
        """Both ids as one, for tables and tags."""
        return f"{self.virtual_lab_id}/{self.project_id}"

    @property
    def name(self) -> str:
        """Both ids as one, for names that hold no slash."""
        return f"{self.virtual_lab_id}-{self.project_id}"


@dataclass(frozen=True)
class Admission:
    """Somebody may use a project."""

    project: Project
    sub: str
    username: str
    gate_pass: str
    """For the instance; see :mod:`service.gateway.passes`."""


class Authorizer:
    """Decides with the realm's keys and the token's groups; asks nobody but Keycloak."""

    def __init__(self, verifier: TokenVerifier, passes: PassMaker) -> None:
        self._verifier = verifier
        self._passes = passes

    def admit(self, authorization: str, *, virtual_lab_id: str = "", project_id: str = "") -> Admission:
        """Verify the token of an ``Authorization`` header and decide the project.

        A request that names no project means the only one that its caller is a member of; one that names just the
        project id (as clients do that do not know the virtual lab) means that one of the caller's projects.

        Raises:
            NotAuthenticated: there is no valid token.
            NotAuthorized: its owner is not a member of the project.
            InvalidInput: the headers make no project, or it is not clear which is meant.
            IdentityUnavailable: Keycloak cannot be asked now.
        """
        token = bearer(authorization)
        identity = self._verifier.verify(token)
        project = choose(identity, virtual_lab_id.strip(), project_id.strip())
        wanted = ProjectSettings(virtual_lab_id=project.virtual_lab_id, project_id=project.project_id)
        require_member(identity, wanted)
        gate_pass = self._passes.make(
            token,
            virtual_lab_id=project.virtual_lab_id,
            project_id=project.project_id,
            sub=identity.sub,
            username=identity.username,
            until=identity.expires_at,
        )
        return Admission(project, identity.sub, identity.username, gate_pass)


def bearer(authorization: str) -> str:
    """The token in an ``Authorization`` header.

    Raises:
        NotAuthenticated: there is none.
    """
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("this needs a token", hint="Send it as 'Authorization: Bearer <access token>'.")
    return token


def choose(identity: Identity, virtual_lab_id: str, project_id: str) -> Project:
    """The project that a request means; see :meth:`Authorizer.admit`."""
    for name, value in (("virtual-lab-id", virtual_lab_id), ("project-id", project_id)):
        if value and not _ID.match(value):
            raise InvalidInput(f"the header {name} is not an id")
    if virtual_lab_id and project_id:
        return Project(virtual_lab_id, project_id)
    found = {match.groups() for group in identity.groups if (match := _MEMBERSHIP.match(group))}
    fitting = {
        Project(vlab, proj)
        for vlab, proj in found
        if _ID.match(vlab) and _ID.match(proj) and virtual_lab_id in {"", vlab} and project_id in {"", proj}
    }
    if not fitting:
        raise NotAuthorized(
            f"{identity.username[:80]!r} is a member of no such project", hint="Ask an administrator of the project."
        )
    if len(fitting) > 1:
        raise InvalidInput(f"you are a member of {len(fitting)} projects that this could mean", hint=_WHICH)
    return fitting.pop()
