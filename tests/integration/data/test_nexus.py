"""The client of Nexus Delta against the double as a process, over real HTTP with real tokens."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.cluster.jobs import Archived
from bbpwf.data.nexus import Content, NexusClient, Resource
from bbpwf.data.registrar import Activity, Campaign, Execution, NexusRegistrar, Registrar, Simulation, Span, Status
from bbpwf.errors import InvalidConfig, NexusError
from bbpwf.settings import NexusSettings
from tests.integration.data.conftest import NEXUS_BUCKET, SCRATCH_BUCKET, Bucket, Nexus, Realm


class Quick(SystemClock):
    """Real time, without the patience between tries."""

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.01))


Connect = Callable[..., NexusClient]


@pytest.fixture(scope="session")
def token(realm: Realm) -> SecretStr:
    return realm.token("alice")


@pytest.fixture
def connect(nexus: Nexus, token: SecretStr) -> Iterator[Connect]:
    made: list[NexusClient] = []

    def make(*, s3: bool = False, tokens: Callable[[], SecretStr] = lambda: token) -> NexusClient:
        made.append(NexusClient(nexus.settings(s3=s3), tokens, Quick()))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def client(connect: Connect) -> NexusClient:
    return connect()


def new_id() -> str:
    """An id with everything that must be percent-encoded."""
    return f"https://example.org/a b/é?x=1&y#{uuid.uuid4()}".replace(" ", "%20")


PAYLOAD: dict[str, Any] = {"@context": ["https://bbp.neuroshapes.org"], "@type": "Entity", "name": "n", "size": 1.0}


def refused(call: Callable[[], object]) -> NexusError:
    with pytest.raises(NexusError) as caught:
        call()
    return caught.value


# -- resources ---------------------------------------------------------------------------------------------


def test_a_resource_is_made_found_updated_and_deprecated(client: NexusClient) -> None:
    id_ = new_id()
    made = client.create(id_, PAYLOAD)
    assert (made.id, made.rev, made.deprecated) == (id_, 1, False)
    assert "name" not in made.body  # a write answers metadata only
    assert made.body["@type"] == "http://www.w3.org/ns/prov#Entity"
    found = client.fetch(id_)
    assert found is not None
    assert (found.body["name"], found.rev, found.self_url) == ("n", 1, made.self_url)
    assert client.source(id_) == PAYLOAD
    changed = client.update(id_, lambda payload: {**payload, "name": "other"})
    assert changed.rev == 2
    assert client.source(id_, rev=1) == PAYLOAD
    assert (client.source(id_) or {})["name"] == "other"
    assert client.deprecate(id_).deprecated
    assert client.deprecate(id_).rev == 3
    assert refused(lambda: client.update(id_, lambda payload: {**payload, "x": 1})).kind == "ResourceIsDeprecated"


def test_what_does_not_exist_is_none(client: NexusClient) -> None:
    id_ = new_id()
    assert client.fetch(id_) is None
    assert client.source(id_) is None
    assert client.file(id_) is None
    assert refused(lambda: client.update(id_, dict)).status == 404
    client.create(id_, PAYLOAD)
    assert client.fetch(id_, rev=7) is None
    assert client.fetch(id_, tag="v1") is None


def test_creating_the_same_again_is_a_success_and_another_is_a_conflict(client: NexusClient) -> None:
    id_ = new_id()
    first = client.create(id_, PAYLOAD)
    again = client.create(id_, {**PAYLOAD, "size": 1})
    assert (again.id, again.rev) == (first.id, first.rev)
    assert refused(lambda: client.create(id_, {**PAYLOAD, "name": "other"})).kind == "ResourceAlreadyExists"


def test_a_create_whose_answer_was_lost_happened_once(client: NexusClient, nexus: Nexus) -> None:
    id_ = new_id()
    nexus.faults(lost_answers=1)
    assert client.create(id_, PAYLOAD).rev == 1
    nexus.faults(lost_answers=1)
    assert client.update(id_, lambda payload: {**payload, "name": "other"}).rev == 2
    nexus.faults(lost_answers=1)
    assert client.deprecate(id_).rev == 3


def test_updates_that_meet_are_merged(connect: Connect) -> None:
    id_ = new_id()
    ours, theirs = connect(), connect()
    ours.create(id_, PAYLOAD)
    met: list[int] = []

    def change(payload: dict[str, Any]) -> dict[str, Any]:
        if not met:
            met.append(theirs.update(id_, lambda found: {**found, "theirs": True}).rev)
        return {**payload, "ours": True}

    assert ours.update(id_, change).rev == 3
    assert ours.source(id_) == {**PAYLOAD, "theirs": True, "ours": True}


def test_an_update_gives_up_when_others_are_always_quicker(connect: Connect) -> None:
    id_ = new_id()
    ours, theirs = connect(), connect()
    ours.create(id_, PAYLOAD)

    def change(payload: dict[str, Any]) -> dict[str, Any]:
        theirs.update(id_, lambda found: {**found, "count": found.get("count", 0) + 1})
        return {**payload, "ours": True}

    assert refused(lambda: ours.update(id_, change)).kind == "IncorrectRev"


def test_publishing_again_changes_nothing_and_none_takes_away(client: NexusClient) -> None:
    id_ = new_id()
    client.publish(id_, PAYLOAD)
    assert client.publish(id_, PAYLOAD).rev == 1
    client.update(id_, lambda payload: {**payload, "added": "by somebody"})
    assert client.publish(id_, {**PAYLOAD, "size": None, "name": "new"}).rev == 3
    assert client.source(id_) == {
        "@context": PAYLOAD["@context"],
        "@type": "Entity",
        "name": "new",
        "added": "by somebody",
    }


def test_a_gateway_that_is_down_for_a_moment_is_survived_and_for_long_is_told(
    client: NexusClient, nexus: Nexus
) -> None:
    nexus.faults(unavailable=3)
    assert client.fetch(new_id()) is None
    nexus.faults(unavailable=50)
    error = refused(lambda: client.fetch(new_id()))
    assert (error.status, error.retryable) == (503, True)
    assert "no healthy upstream" in str(error)


def test_nobody_listening_is_told_without_the_token(token: SecretStr, nexus: Nexus) -> None:
    settings = nexus.settings().model_copy(update={"url": "http://127.0.0.1:9/v1"})
    client = NexusClient(settings, lambda: token, Quick())
    error = refused(lambda: client.fetch("x"))
    assert (error.status, error.retryable) == (0, True)
    assert token.get_secret_value() not in str(error)
    client.close()


def test_slowness_is_limited(nexus: Nexus, token: SecretStr) -> None:
    nexus.faults(slow_s=5)
    client = NexusClient(nexus.settings().model_copy(update={"timeout_s": 0.2}), lambda: token, Quick())
    assert "did not answer" in str(refused(lambda: client.fetch("x")))
    client.close()


def test_listing_pages_through_a_type(client: NexusClient) -> None:
    kind = f"Kind{uuid.uuid4().hex}"
    wanted = {client.create(new_id(), {"@context": PAYLOAD["@context"], "@type": kind}).id for _ in range(103)}
    gone = client.create(new_id(), {"@context": PAYLOAD["@context"], "@type": kind}).id
    client.deprecate(gone)
    assert {each.id for each in client.listing(f"https://neuroshapes.org/{kind}")} == wanted


def test_schemas_are_checked(client: NexusClient) -> None:
    schema = "https://neuroshapes.org/dash/simulation"
    assert refused(lambda: client.create(new_id(), PAYLOAD, schema=schema)).kind == "NoTargetedNode"
    assert refused(lambda: client.create(new_id(), PAYLOAD, schema="https://x.org/none")).kind == (
        "InvalidSchemaRejection"
    )


# -- who may ---------------------------------------------------------------------------------------------------


def test_strangers_and_bad_tokens_are_told_apart(connect: Connect, realm: Realm, token: SecretStr) -> None:
    def ask(value: str) -> NexusError:
        return refused(lambda: connect(tokens=lambda: SecretStr(value)).create(new_id(), PAYLOAD))

    foreign = ask(realm.token("bob").get_secret_value())
    assert (foreign.status, foreign.kind) == (403, "AuthorizationFailed")
    assert "resources/write" in str(foreign)
    assert ask(realm.token("victor").get_secret_value()).status == 403
    assert (ask("nonsense").status, ask("nonsense").kind) == (401, "InvalidAccessTokenFormat")
    header, payload, signature = token.get_secret_value().split(".")
    forged = f"{header}.{payload}.{signature[:-8]}AAAAAAAA"
    assert (ask(forged).status, ask(forged).kind) == (401, "InvalidAccessToken")
    assert forged not in str(ask(forged))


def test_nobody_is_forbidden_rather_than_unauthenticated(nexus: Nexus) -> None:
    answer = requests.get(f"{nexus.base}/resources/bbp/sandbox/_/x", timeout=10)
    assert (answer.status_code, answer.json()["@type"]) == (403, "AuthorizationFailed")


def test_the_service_itself_may_write_and_so_may_members_known_by_userinfo_only(connect: Connect, realm: Realm) -> None:
    assert connect(tokens=realm.service_token).create(new_id(), PAYLOAD).rev == 1
    realm.faults(groups_in_userinfo_only=True)
    try:
        bare = realm.token("ada")
        assert connect(tokens=lambda: bare).create(new_id(), PAYLOAD).rev == 1
        foreign = realm.token("bob")
        assert refused(lambda: connect(tokens=lambda: foreign).create(new_id(), PAYLOAD)).status == 403
    finally:
        realm.faults(groups_in_userinfo_only=False)


def test_a_token_that_expired_on_the_way_is_renewed_once(connect: Connect, token: SecretStr) -> None:
    supply = iter([SecretStr("stale"), token])
    assert connect(tokens=lambda: next(supply)).create(new_id(), PAYLOAD).rev == 1


def test_settings_that_are_missing_are_named(token: SecretStr) -> None:
    with pytest.raises(InvalidConfig, match="BBPWF_NEXUS__URL"):
        NexusClient(NexusSettings.model_validate({}), lambda: token, Quick())


# -- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_s3", [False, True])
def test_bytes_are_uploaded_once_and_come_back(connect: Connect, nexus: Nexus, token: SecretStr, on_s3: bool) -> None:
    client, id_ = connect(s3=on_s3), new_id()
    pieces = [b"\r\n--boundary--\r\n", b"\x00" * 100_000, b"", b"end"]
    content = Content(sum(map(len, pieces)), lambda: iter(pieces))
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    made = client.upload(id_, content, filename='sp"ik\u00e9s.h5', media_type="application/x-hdf5")
    assert made.rev == 1
    assert made.digest == ("SHA-256", digest)
    assert (made.body["_bytes"], made.body["_mediaType"]) == (content.size, "application/x-hdf5")
    assert made.body["_filename"] == 'sp"ik\u00e9s.h5'
    assert client.upload(id_, content, filename='sp"ik\u00e9s.h5', media_type="application/x-hdf5").rev == 1
    answer = requests.get(made.self_url, headers={"Authorization": f"Bearer {token.get_secret_value()}"}, timeout=10)
    assert (answer.content, answer.headers["content-type"]) == (b"".join(pieces), "application/x-hdf5")
    other = client.upload(id_, Content.of(b"other"), filename="f", media_type="text/plain")
    assert (other.rev, other.body["_bytes"]) == (2, 5)
    found = client.file(id_)
    assert found is not None
    assert found.body["_filename"] == "f"


def test_an_upload_whose_answer_was_lost_happened_once(connect: Connect, nexus: Nexus) -> None:
    client, id_ = connect(s3=True), new_id()
    nexus.faults(lost_answers=1)
    assert client.upload(id_, Content.of(b"x"), filename="f", media_type="text/plain").rev == 1
    nexus.faults(lost_answers=1)
    assert client.upload(id_, Content.of(b"y"), filename="f", media_type="text/plain").rev == 2


def test_an_upload_that_is_too_large_is_told(client: NexusClient, nexus: Nexus) -> None:
    nexus.faults(max_file_bytes=3)
    error = refused(lambda: client.upload(new_id(), Content.of(b"1234"), filename="f", media_type="text/plain"))
    assert (error.status, error.kind) == (413, "FileTooLarge")


@pytest.mark.parametrize("generation", ["1.9", "1.10", "1.11"])
def test_objects_are_linked_in_every_generation(connect: Connect, nexus: Nexus, s3: Bucket, generation: str) -> None:
    nexus.faults(generation=generation)
    client, id_ = connect(s3=True), new_id()
    key = f"results/{uuid.uuid4()}/a b.h5"
    s3.client.put_object(Bucket=NEXUS_BUCKET, Key=key, Body=b"12345")
    made = client.link(id_, key, size=5, media_type="application/x-hdf5")
    assert (made.rev, made.body["_bytes"], made.body["_filename"]) == (1, 5, "a b.h5")
    assert made.digest == ("", "")  # an exported object carries no SHA-256
    assert made.body["_digest"] == {"_value": ""}
    assert client.link(id_, key, size=5, media_type="application/x-hdf5").rev == 1
    s3.client.put_object(Bucket=NEXUS_BUCKET, Key=key, Body=b"123456", ChecksumAlgorithm="SHA256")
    newer = client.link(id_, key, size=6, media_type="application/x-hdf5")
    assert (newer.rev, newer.digest[1]) == (2, hashlib.sha256(b"123456").hexdigest())


def test_a_link_to_nothing_is_deltas_internal_error(connect: Connect) -> None:
    error = refused(lambda: connect(s3=True).link(new_id(), "absent/f", size=1))
    assert (error.status, error.retryable) == (500, True)


def test_a_link_on_a_disk_is_refused_with_the_first_word(client: NexusClient) -> None:
    assert refused(lambda: client.link(new_id(), "a/f", size=1)).kind == "UnsupportedOperation"


# -- the double itself -------------------------------------------------------------------------------------------


def test_a_restart_keeps_everything(connect: Connect, nexus: Nexus) -> None:
    client, id_, file_id = connect(s3=True), new_id(), new_id()
    client.create(id_, PAYLOAD)
    client.upload(file_id, Content.of(b"x"), filename="f", media_type="text/plain")
    nexus.stop()
    nexus.start()
    assert client.source(id_) == PAYLOAD
    file = client.file(file_id)
    assert file is not None
    assert client.update(id_, lambda payload: {**payload, "name": "after"}).rev == 2


@pytest.fixture
def raw(nexus: Nexus, token: SecretStr) -> Callable[..., requests.Response]:
    def send(method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} | options.pop("headers", {})
        return requests.request(method, f"{nexus.base}/{path}", headers=headers, timeout=10, **options)

    return send


def test_the_doubles_refusals(raw: Callable[..., requests.Response]) -> None:
    here = "resources/bbp/sandbox"
    made = raw("POST", here, json={"name": "x"})
    assert made.status_code == 201
    id_ = quote(made.json()["@id"], safe="")
    for method, path, options, status, kind in (
        ("PUT", f"{here}/_/{id_}", {"json": {"name": "x"}}, 409, "ResourceAlreadyExists"),
        ("PUT", f"{here}/_/{id_}?rev=4", {"json": {"name": "y"}}, 409, "IncorrectRev"),
        ("PUT", f"{here}/_/new", {"json": {"_rev": 1}}, 400, "MalformedRequestContentRejection"),
        ("PUT", f"{here}/_/new", {"json": {"@id": "https://x.org/other"}}, 400, "UnexpectedResourceId"),
        ("PUT", f"{here}/_/new", {"data": "{"}, 400, "MalformedRequestContentRejection"),
        ("PUT", f"{here}/_/nxv:mine", {"json": {}}, 400, "ReservedResourceId"),
        ("PUT", f"{here}/_/a%20b", {"json": {}}, 400, "InvalidResourceId"),
        ("POST", here, {"json": {"@type": "nxv:File"}}, 400, "ReservedResourceTypes"),
        ("GET", f"{here}/_/{id_}?rev=9", {}, 404, "RevisionNotFound"),
        ("GET", f"{here}/_/{id_}?tag=none", {}, 404, "TagNotFound"),
        ("GET", f"{here}/_/{id_}?rev=1&tag=none", {}, 400, "MalformedQueryParam"),
        ("DELETE", f"{here}/_/{id_}", {}, 400, "MissingQueryParam"),
        ("GET", "resources/bbp/other/_/x", {}, 404, "ProjectNotFound"),
        ("POST", "files/bbp/sandbox", {"files": {"other": b"x"}}, 400, "InvalidMultipartFieldName"),
        ("POST", "files/bbp/sandbox", {"json": {"path": "x"}}, 415, "UnsupportedMediaType"),
        ("POST", "nowhere", {}, 404, "ResourceNotFound"),
    ):
        answer = raw(method, path, **options)
        assert (answer.status_code, answer.json()["@type"]) == (status, kind), (method, path, answer.text)
    wrong = raw("PUT", f"{here}/_/{id_}?rev=4", json={"name": "y"}).json()
    assert (wrong["provided"], wrong["expected"]) == (4, 1)
    storage = quote(f"https://bbp.epfl.ch/nexus/v1/storages/s3/{NEXUS_BUCKET}", safe="")
    missing = raw("POST", f"files/bbp/sandbox?storage={storage}", files={"file": ("f", b"x")})
    assert missing.json()["@type"] == "FileContentLengthIsMissing"


def test_the_doubles_details(raw: Callable[..., requests.Response], nexus: Nexus) -> None:
    here = "resources/bbp/sandbox"
    body = {"@context": {"@vocab": "https://x.org/"}, "@type": "Thing", "name": "x"}
    made = raw("PUT", f"{here}/_/thing-{uuid.uuid4()}", json=body).json()
    id_ = quote(made["@id"], safe="")
    assert made["@id"].startswith(f"{nexus.base}/resources/bbp/sandbox/_/thing-")
    assert made["_project"] == "bbp/sandbox"
    unchanged = raw("PUT", f"{here}/_/{id_}?rev=1", json=body)
    assert (unchanged.status_code, unchanged.json()["_rev"]) == (200, 1)
    tagged = raw("POST", f"{here}/_/{id_}/tags?rev=1", json={"tag": "v1", "rev": 1})
    assert (tagged.status_code, tagged.json()["_rev"]) == (201, 2)
    raw("PUT", f"{here}/_/{id_}?rev=2", json={**body, "name": "y"})
    assert raw("GET", f"{here}/_/{id_}?tag=v1").json()["name"] == "x"
    assert raw("GET", f"{here}/_/{id_}/source").json() == {**body, "name": "y"}
    full = raw("GET", f"resolvers/bbp/sandbox/_/{id_}")
    assert full.json()["@context"][0] == body["@context"]
    assert raw("GET", f"{here}/_/{id_}", headers={"If-None-Match": full.headers["etag"]}).status_code == 304
    assert raw("DELETE", f"{here}/_/{id_}?rev=3").json()["_deprecated"]
    assert raw("PUT", f"{here}/_/{id_}/undeprecate?rev=4").json()["_rev"] == 5
    identities = raw("GET", "identities").json()["identities"]
    assert {"Anonymous", "User", "Group"} <= {each["@type"] for each in identities}
    assert raw("POST", "storages/bbp/sandbox", json={"@type": "S3Storage", "bucket": "b"}).status_code == 201
    nexus.faults(generation="1.9")
    assert raw("GET", f"{here}/_/{id_}").json()["_project"] == f"{nexus.base}/projects/bbp/sandbox"


# -- the registrar -----------------------------------------------------------------------------------------------


def body(resource: Resource | None) -> dict[str, Any]:
    assert resource is not None
    return dict(resource.body)


def test_a_campaign_is_registered_with_its_provenance_and_again_without_a_trace(connect: Connect, s3: Bucket) -> None:
    client = connect(s3=True)
    registrar: Registrar = NexusRegistrar(client)
    run_id = str(uuid.uuid4())
    key = f"{run_id}/spikes.h5"
    s3.client.put_object(Bucket=NEXUS_BUCKET, Key=key, Body=b"spikes")
    digest = hashlib.sha256(b"spikes").hexdigest()
    here = Archived(path="/obi/spikes.h5", url=f"s3://{NEXUS_BUCKET}/{key}", size=6, sha256=digest)
    there = Archived(path="/obi/v.h5", url=f"s3://{SCRATCH_BUCKET}/{key}", size=6, sha256=digest)

    def register(status: Status, ended: float | None) -> list[tuple[str, int]]:
        execution = registrar.execution(
            Execution(run_id, "tasks.simulation", "SimulationCampaign", "1.0", status, span=Span(0.5, ended))
        )
        report = registrar.upload(run_id, "report/raster.png", Content.of(b"png"))
        campaign = registrar.campaign(
            Campaign(run_id, "Amplitudes", coords={"amplitude": [0.1, 0.2]}, distributions=[report])
        )
        files = [registrar.archived(run_id, "0/spikes.h5", here), registrar.archived(run_id, "0/v.h5", there)]
        simulation = registrar.simulation(
            Simulation(
                run_id,
                "0",
                "Amplitudes 0",
                status,
                campaign,
                {"amplitude": 0.1},
                Span(1.0, ended),
                used=[campaign],
                distributions=files,
                execution=execution,
            )
        )
        activity = registrar.activity(
            Activity(run_id, "generate", "Generate", Status.DONE, generated=[campaign], execution=execution)
        )
        return [(each.id, each.rev) for each in (execution, campaign, simulation, activity)]

    first = register(Status.DONE, 20.25)
    assert [rev for _, rev in first] == [1, 1, 1, 1]
    assert register(Status.DONE, 20.25) == first

    execution_id, campaign_id, simulation_id, activity_id = (id_ for id_, _ in first)
    simulation = body(client.fetch(simulation_id))
    assert simulation["@type"] == "Simulation"
    assert simulation["_constrainedBy"] == "https://neuroshapes.org/dash/simulation"
    assert (simulation["startedAtTime"], simulation["endedAtTime"]) == (
        "1970-01-01T00:00:01",
        "1970-01-01T00:00:20.250000",
    )
    assert simulation["isPartOf"] == {"@id": campaign_id, "@type": "SimulationCampaign"}
    assert simulation["wasInfluencedBy"] == {"@id": execution_id, "@type": "WorkflowExecution"}
    linked, named = simulation["distribution"]
    assert linked["contentUrl"].startswith("http")
    assert linked["digest"] == {"algorithm": "SHA-256", "value": digest}
    assert linked["contentSize"] == {"unitCode": "bytes", "value": 6}
    assert linked["encodingFormat"] == "application/x-hdf5"
    assert named["url"] == there.url  # another bucket than the storage's: named, not linked
    assert body(client.fetch(activity_id))["generated"] == [{"@id": campaign_id, "@type": "SimulationCampaign"}]
    assert body(client.fetch(campaign_id))["parameter"]["coords"] == {"amplitude": [0.1, 0.2]}
    assert registrar.reference("Simulation", run_id, "0").id == simulation_id
    assert registrar.reference("Simulation", run_id, "1").id != simulation_id

    resumed = register(Status.RUNNING, None)
    assert [rev for _, rev in resumed] == [2, 1, 2, 1]
    assert "endedAtTime" not in body(client.fetch(execution_id))
