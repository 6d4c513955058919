"""What is registered: stable ids, and nodes that say only what is known. Nothing is sent here."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.data.nexus import NexusClient
from bbpwf.data.registrar import SCHEMAS, Distribution, NexusRegistrar, Reference, Span, guess_media_type
from bbpwf.errors import InvalidInput
from bbpwf.settings import NexusSettings

names = st.text(max_size=20)


def registrar(project: str = "sandbox") -> NexusRegistrar:
    settings = NexusSettings.model_validate({"url": "http://127.0.0.1:9/v1", "org": "bbp", "project": project})
    return NexusRegistrar(NexusClient(settings, lambda: SecretStr("unused"), SystemClock()))


@pytest.fixture(scope="module")
def one() -> NexusRegistrar:
    return registrar()


@given(data=st.data())
def test_ids_follow_from_what_a_thing_is_and_nothing_else(one: NexusRegistrar, data: st.DataObject) -> None:
    thing = st.tuples(st.sampled_from(sorted(SCHEMAS)), st.text(min_size=1, max_size=20), names)
    first, second = data.draw(thing), data.draw(thing)
    ours = one.reference(*first).id
    assert ours.startswith("http://127.0.0.1:9/v1/resources/bbp/sandbox/_/")
    assert (ours == one.reference(*second).id) == (first == second)
    assert ours == registrar().reference(*first).id
    assert ours != registrar("other").reference(*first).id


def test_only_known_types_of_a_run_have_ids(one: NexusRegistrar) -> None:
    with pytest.raises(InvalidInput, match="'Circuit' is not a type"):
        one.reference("Circuit", "run")
    with pytest.raises(InvalidInput, match="without its run's id"):
        one.reference("Simulation", "")


@given(names, st.integers(0), st.text(min_size=1), names)
def test_a_distribution_says_what_is_known(name: str, size: int, url: str, digest: str) -> None:
    payload = Distribution(name, "text/plain", size, "SHA-256", digest, url=url).payload()
    assert json.loads(json.dumps(payload)) == payload
    assert payload["contentSize"] == {"unitCode": "bytes", "value": size}
    assert ("digest" in payload) == bool(digest)
    assert "contentUrl" not in payload
    assert None not in payload.values()


def test_a_distribution_without_a_place_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        Distribution("spikes.h5", "application/x-hdf5", 1).payload()


def test_times_are_naive_utc_and_links_hold_id_and_type_alone() -> None:
    assert Span(0.0, None).payload() == {"startedAtTime": "1970-01-01T00:00:00", "endedAtTime": None}
    assert Reference("https://x.org/1", "Activity", url="u", rev=3).link() == {
        "@id": "https://x.org/1",
        "@type": "Activity",
    }


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a/spikes.h5", "application/x-hdf5"), ("c.json", "application/json"), ("x.unknown", "application/octet-stream")],
)
def test_media_types(name: str, media_type: str) -> None:
    assert guess_media_type(name) == media_type
