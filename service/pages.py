"""What a page of a list is asked for with."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query

_POSITION = r"^[0-9]{0,18}$"

PageToken = Annotated[str, Query(pattern=_POSITION, description="`next_page_token` of the page before.")]
"""Tokens are positions; anything else was never given out by this service."""


def is_page_token(text: str) -> bool:
    """Whether it may be one of ours."""
    return re.fullmatch(_POSITION, text, re.ASCII) is not None
