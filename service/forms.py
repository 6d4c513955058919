"""A launch as it arrives: the parts of a multipart form, with names and limits checked before anything is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile

from bbpwf.errors import InvalidInput

MAX_PARTS = 600
MAX_FIELD = 4 * 1024 * 1024
"""Bytes of one text part."""
MAX_JSON_DEPTH = 50
_LONGEST_TAG = 255


@dataclass
class LaunchForm:
    """Text parts by name, and files with the names they were sent under."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, BinaryIO]] = field(default_factory=list)


@asynccontextmanager
async def launch_form(request: Request, *, file_parts: frozenset[str] | None) -> AsyncIterator[LaunchForm]:
    """The form of a request; its temporary files live as long as the block.

    Args:
        request: not read yet.
        file_parts: names of the parts that are files; any other part is text, whether or not a file name came with it
            (``requests`` adds one unasked). With ``None``, every part with a file name is a file.

    Raises:
        InvalidInput: the body is no form, a part is sent twice, or text is not UTF-8.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise InvalidInput("the request body is not multipart/form-data")
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_FIELD) as parts:
        found = LaunchForm()
        for name, part in parts.multi_items():
            if isinstance(part, UploadFile) and (file_parts is None or name in file_parts):
                found.files.append((part.filename or name, part.file))
                continue
            if file_parts is not None and name in file_parts:
                raise InvalidInput(f"the part {name!r} has no file name")
            if name in found.fields:
                raise InvalidInput(f"the part {name[:80]!r} was sent twice")
            found.fields[name] = await _text(name, part)
        yield found


async def _text(name: str, part: str | UploadFile) -> str:
    if isinstance(part, str):
        return part
    content = await part.read(MAX_FIELD + 1)
    if len(content) > MAX_FIELD:
        raise InvalidInput(f"the part {name[:80]!r} is over {MAX_FIELD} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"the part {name[:80]!r} is not UTF-8 text") from None


def json_object(name: str, text: str) -> dict[str, Any]:
    """The JSON object in a text part; an empty part is an empty object.

    Raises:
        InvalidInput: it is no JSON object, or one that cannot be kept and given back as it is.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
        # what JSON cannot say (NaN, 1e999) or text cannot hold (half a surrogate pair) would fail on its way back
        plain = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{name} is not a JSON object")
    if "\\u0000" in plain:
        raise InvalidInput(f"{name} holds a NUL character")
    if _depth(value) > MAX_JSON_DEPTH:
        raise InvalidInput(f"{name} is nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def text_map(name: str, text: str) -> dict[str, str]:
    """The JSON object of texts in a part; numbers and booleans count as what JSON writes for them.

    Raises:
        InvalidInput: a value is a list, an object or null, or a name is too long.
    """
    found: dict[str, str] = {}
    for key, value in json_object(name, text).items():
        if not isinstance(value, (str, int, float)):
            raise InvalidInput(f"{name}.{key[:80]} is not a text")
        if len(key) > _LONGEST_TAG:
            raise InvalidInput(f"a name in {name} is longer than {_LONGEST_TAG} characters")
        found[key] = value if isinstance(value, str) else json.dumps(value)
    return found
