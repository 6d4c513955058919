"""Writes the pages that come from the code itself: the settings reference and the REST reference.

``python docs/generate.py`` writes them; ``--check`` only says (by its exit code) whether they are up to date.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bbpwf.settings import OidcSettings, Settings

HERE = Path(__file__).parent


def settings_page() -> str:
    """Every setting, its environment variable, type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "<!-- written by docs/generate.py from bbpwf/settings.py -->",
        "",
        "Settings come from environment variables, then from the TOML file that `BBPWF_CONFIG_FILE` names (sections",
        "are tables, names are keys), then from these defaults. Unknown names are refused.",
    ]
    top = [(name, info) for name, info in Settings.model_fields.items() if _section(info) is None]
    lines += ["", "## General", "", *_table("BBPWF_", top)]
    for name, info in Settings.model_fields.items():
        section = _section(info)
        if section is not None:
            about = (section.__doc__ or "").strip()
            rows = list(section.model_fields.items())
            lines += ["", f"## {name}", "", about, "", *_table(f"BBPWF_{name.upper()}__", rows)]
    return "\n".join(lines) + "\n"


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(prefix: str, fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    yield "| variable | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, info in fields:
        yield f"| `{prefix}{name.upper()}` | {_type(info)} | {_default(info)} | {info.description or ''} |"


def _type(info: FieldInfo) -> str:
    text = str(info.annotation) if not isinstance(info.annotation, type) else info.annotation.__name__
    for noise in ("typing.", "pathlib.", "pydantic.networks.", "pydantic.types."):
        text = text.replace(noise, "")
    return text.replace("|", "or")


def _default(info: FieldInfo) -> str:
    if info.default_factory is not None:
        return "number of CPUs" if info.alias is None else ""
    if info.default is PydanticUndefined:
        return "required"
    return "" if info.default in ("", None, ()) else f"`{info.default}`"


def rest_page() -> str:
    """Every route of the project instance, from its OpenAPI document."""
    from service.app import create_app

    with tempfile.TemporaryDirectory() as state:
        settings = Settings(
            state_dir=Path(state), oidc=OidcSettings(issuer="https://identity.example/auth/realms/example")
        )
        document = create_app(settings).openapi()
    lines = [
        "# REST reference",
        "",
        "<!-- written by docs/generate.py from the service's OpenAPI document -->",
        "",
        "All routes but `/healthz` need `Authorization: Bearer <token>` of a member of the instance's project",
        "(browsers: the session cookie of a login at `/auth/login`). `virtual-lab-id` and `project-id`, when sent,",
        "must be the instance's own.",
        'Errors under `/ga4gh` are `{"msg", "status_code"}`, elsewhere RFC 9457 problem details.',
        "The document itself is served at `/openapi.json`, a page to try it out at `/docs`.",
        "",
        "| method | path | what |",
        "|---|---|---|",
    ]
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            lines.append(f"| {method.upper()} | `{path}` | {_sentence(operation)} |")
    return "\n".join(lines) + "\n"


def _sentence(operation: dict[str, Any]) -> str:
    text = str(operation.get("description") or operation.get("summary") or "")
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "rest.md": rest_page}


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    arguments = parser.parse_args()
    stale = []
    for name, make in PAGES.items():
        page, text = HERE / name, make()
        if not page.exists() or page.read_text() != text:
            stale.append(name)
            if not arguments.check:
                page.write_text(text)
    if stale:
        sys.stdout.write(f"{'out of date' if arguments.check else 'written'}: {', '.join(stale)}\n")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
