"""What a page of a list is asked for with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

PageToken = Annotated[str, Query(pattern=r"^[0-9]{0,18}$", description="`next_page_token` of the page before.")]
"""Tokens are positions; anything else was never given out by this service."""
