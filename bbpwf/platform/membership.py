"""Who may do what in a project: the platform's rule, ``contracts.md`` §3.2."""

from __future__ import annotations

from typing import Literal

from bbpwf.errors import NotAuthorized
from bbpwf.platform.tokens import Identity
from bbpwf.settings import ProjectSettings

Role = Literal["admin", "member"]
_ROLES: tuple[Role, ...] = ("admin", "member")


def membership(identity: Identity, virtual_lab_id: str, project_id: str) -> Role | None:
    """Somebody's role in a project, the higher if there are two; ``None`` if there is none.

    The group is ``/proj/<virtual lab>/<project>/<role>``, compared exactly. Administering the virtual lab gives no
    role in its projects.
    """
    if not virtual_lab_id or not project_id or "/" in virtual_lab_id + project_id:
        return None
    for role in _ROLES:
        if f"/proj/{virtual_lab_id}/{project_id}/{role}" in identity.groups:
            return role
    return None


def require_member(identity: Identity, project: ProjectSettings) -> Role:
    """The role of somebody who may use the project.

    Raises:
        NotAuthorized: they have none.
    """
    role = membership(identity, project.virtual_lab_id, project.project_id)
    if role is None:
        raise NotAuthorized(
            f"{identity.username[:80]!r} is no member of project {project.project_id} "
            f"of virtual lab {project.virtual_lab_id}",
            hint="Ask an administrator of the project; membership counts from the next login.",
        )
    return role
