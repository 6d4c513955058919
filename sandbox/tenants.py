"""Who exists in the sandbox: two virtual labs, their projects, and people with different rights."""

from __future__ import annotations

from dataclasses import dataclass

VIRTUAL_LAB = "7a1b2c3d-0000-4000-8000-00000000a001"
PROJECT = "5e6f7a8b-0000-4000-8000-00000000b001"
OTHER_VIRTUAL_LAB = "9c8d7e6f-0000-4000-8000-00000000a002"
OTHER_PROJECT = "1f2e3d4c-0000-4000-8000-00000000b002"

SERVICE_CLIENT = "bbp-workflow"
CLI_CLIENT = "obi-entitysdk-auth"


@dataclass(frozen=True)
class Person:
    """A user of the issuer; ``groups`` as the realm names them, with the leading slash of a full path."""

    username: str
    name: str
    sub: str
    groups: tuple[str, ...]


PEOPLE = (
    Person(
        "alice",
        "Alice Member",
        "a11ce000-0000-4000-8000-000000000001",
        (f"/vlab/{VIRTUAL_LAB}/member", f"/proj/{VIRTUAL_LAB}/{PROJECT}/member"),
    ),
    Person(
        "ada",
        "Ada Admin",
        "ada00000-0000-4000-8000-000000000002",
        (f"/vlab/{VIRTUAL_LAB}/admin", f"/proj/{VIRTUAL_LAB}/{PROJECT}/admin"),
    ),
    # administers the virtual lab and belongs to no project of it: must be refused by the project
    Person("victor", "Victor Labadmin", "51c70a00-0000-4000-8000-000000000003", (f"/vlab/{VIRTUAL_LAB}/admin",)),
    Person(
        "bob",
        "Bob Foreign",
        "b0b00000-0000-4000-8000-000000000004",
        (f"/vlab/{OTHER_VIRTUAL_LAB}/member", f"/proj/{OTHER_VIRTUAL_LAB}/{OTHER_PROJECT}/member"),
    ),
)
"""Everybody's password is their username: these people exist on loopback alone."""
