"""Every route of the service, so that tests of who may do what forget none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from starlette.routing import Mount, Route

from bbpwf.settings import OidcSettings, ProjectSettings, ServiceSettings, Settings
from sandbox.tenants import PROJECT, VIRTUAL_LAB
from service.app import create_app


def templates(state: Path) -> list[tuple[str, str]]:
    """Method and path template of every route, mounted applications included. ``state`` is a folder for the service."""
    settings = Settings(
        state_dir=state,
        project=ProjectSettings(virtual_lab_id=VIRTUAL_LAB, project_id=PROJECT),
        oidc=OidcSettings(issuer="http://127.0.0.1:9/auth/realms/SBO", client_secret=SecretStr("x" * 12)),
        service=ServiceSettings(scheduler_port=1),
    )
    app = create_app(settings)
    found = sorted(set(_walk(app.routes)))
    app.state.instance.database.close()
    return found


def _walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        included = getattr(route, "original_router", None)  # how FastAPI keeps an included router
        nested = included.routes if included is not None else getattr(route, "routes", None)
        if nested is not None:
            assert nested, f"{route} holds routes that cannot be seen"
            yield from _walk(nested, prefix + getattr(route, "path", ""))
        else:
            assert isinstance(route, Route), f"an unknown kind of route: {route!r}"
            for method in sorted(route.methods or {"GET"}):
                yield method, prefix + route.path
        if isinstance(route, Mount):
            yield "GET", f"{prefix}{route.path}/anything"
