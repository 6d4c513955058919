"""Which project a request means, and whether its caller may use it."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from bbpwf.errors import BbpwfError, InvalidInput, NotAuthenticated, NotAuthorized
from bbpwf.platform.tokens import Identity
from service.gateway.authorizer import Project, bearer, choose


def identity(*groups: str) -> Identity:
    return Identity("sub", "alice", frozenset(groups), 1e10, SecretStr("token"))


def test_headers_name_the_project() -> None:
    assert choose(identity(), "v", "p") == Project("v", "p")  # whether they may is judged afterwards


def test_the_only_project_is_meant_when_none_is_named() -> None:
    assert choose(identity("/proj/v/p/member", "/vlab/v/admin"), "", "") == Project("v", "p")
    assert choose(identity("/proj/v/p/member", "/proj/v/p/admin"), "", "") == Project("v", "p")


def test_a_project_id_alone_means_that_one_of_ones_own() -> None:
    somebody = identity("/proj/v/p/member", "/proj/v/q/member", "/proj/w/r/admin")
    assert choose(somebody, "", "q") == Project("v", "q")
    assert choose(somebody, "w", "") == Project("w", "r")
    with pytest.raises(NotAuthorized):
        choose(somebody, "", "x")


def test_several_possible_projects_are_not_guessed_among() -> None:
    with pytest.raises(InvalidInput, match="2 projects"):
        choose(identity("/proj/v/p/member", "/proj/v/q/member"), "", "")


@pytest.mark.parametrize(
    "groups", [(), ("/vlab/v/admin",), ("/proj/v/p/owner",), ("/proj/v/p",), ("x/proj/v/p/member",)]
)
def test_no_project_is_nobodys(groups: tuple[str, ...]) -> None:
    with pytest.raises(NotAuthorized):
        choose(identity(*groups), "", "")


@pytest.mark.parametrize("value", ["../x", "a b", "a/b", "-a", "a" * 65, "é", "a\n", "$(x)"])
def test_ids_that_would_be_unsafe_in_names_are_refused(value: str) -> None:
    with pytest.raises(InvalidInput):
        choose(identity(), value, "p")
    with pytest.raises(InvalidInput):
        choose(identity(), "v", value)
    with pytest.raises(BbpwfError):
        choose(identity(f"/proj/{value}/p/member"), "", "")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "token"])
def test_no_token_is_told(header: str) -> None:
    with pytest.raises(NotAuthenticated):
        bearer(header)


def test_the_scheme_may_be_written_in_any_case() -> None:
    assert bearer("bearer x") == bearer("Bearer  x ") == "x"
