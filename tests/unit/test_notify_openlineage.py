"""The OpenLineage events of a Bronze write: as its specification says, and read by its own client."""

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from openlineage.client import OpenLineageClient, generated
from openlineage.client.event_v2 import RunEvent
from openlineage.client.generated import base
from openlineage.client.naming.dataset import S3
from openlineage.client.serde import Serde

from bronze.errors import Halted, Misconfigured, Outage, Unavailable
from bronze.notify.event import SnapshotEvent, event_id
from bronze.notify.lineage_event import SUBMISSIONS_MAX, Site, WriteLineage, commit_events, run_events
from bronze.notify.openlineage import OpenLineage, open_client
from bronze.protocol.feed_event import ObjectEvent
from bronze.settings import sends_openlineage
from local.builds import REPOSITORY
from tests.inbox import Answer, Inbox, open_inbox
from tests.unit.test_notify import a_removal, an_object

SITE = Site("lake", "bronze", "http://api:8000/", "bronze")
SUBMISSION = {
    "submission_id": "s-1",
    "trace_id": "1" * 32,
    "records": 3,
    "classification_id": "c-1",
    "origin": None,
    "principal": "team",
    "url": "not used",
}
LINEAGE = msgspec.convert(
    {"submissions": [SUBMISSION], "objects": [{"ended_at": "2026-11-27T10:00:03Z", "submissions": 1}]}, WriteLineage
)
A_SNAPSHOT = SnapshotEvent(
    *("vehicles", "9c6b1a1e-4d0c-4f0e-8d5a-0a3b5a0c9d11", "s3://lake-tables/bronze/vehicles", "12", "11", 2, "append"),
    *("2026-11-27T10:00:05+00:00", 3, 1, None),
)
SCHEMA = REPOSITORY / "service" / "bronze" / "api" / "schemas" / "BronzeWriteRunFacet.json"
#: The folder `spec` of a checkout of OpenLineage. Its schemas are not copied here, and its package does not have them.
SPEC = os.environ.get("OPENLINEAGE_SPEC", "")
#: What its client generated from its schemas, by the address of the schema.
MODULES = [
    base,
    *(importlib.import_module(f"{generated.__name__}.{one.name}") for one in iter_modules(generated.__path__)),
]
CLASSES = {
    found._get_schema(): found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and hasattr(found, "_get_schema")
}


def documents(event: ObjectEvent, lineage: WriteLineage = LINEAGE) -> list[dict[str, Any]]:
    return [json.loads(Serde.to_json(run_event)) for run_event in run_events(event, lineage, SITE)]


def facets(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All facets of a document, with their names."""
    if isinstance(document, dict):
        for name, member in document.items():
            if isinstance(member, dict) and "_schemaURL" in member:
                yield name, member
            yield from facets(member)
    elif isinstance(document, list):
        for member in document:
            yield from facets(member)


@pytest.mark.parametrize("lineage", [LINEAGE, WriteLineage()], ids=["known", "nothing"])
def test_the_client_reads_the_events_as_it_would_write_them(lineage: WriteLineage) -> None:
    """Each part is what its class takes: no member is missing, and none is unknown."""
    for document in documents(an_object(1), lineage):
        read = RunEvent(
            eventType=base.EventType(document["eventType"]),
            eventTime=document["eventTime"],
            producer=document["producer"],
            run=base.Run(document["run"]["runId"]),
            job=base.Job(document["job"]["namespace"], document["job"]["name"]),
            inputs=[base.InputDataset(one["namespace"], one["name"]) for one in document["inputs"]],
            outputs=[base.OutputDataset(one["namespace"], one["name"]) for one in document["outputs"]],
        )
        assert read.schemaURL == document["schemaURL"]
        standard = {name: facet for name, facet in facets(document) if name != "bronze_write"}
        for facet in standard.values():
            its_class = CLASSES[facet["_schemaURL"]]
            members = {name: value for name, value in facet.items() if not name.startswith("_")}
            again = its_class(**members, producer=facet["_producer"])
            assert json.loads(Serde.to_json(again)) == facet


def test_a_run_has_a_begin_and_an_end_that_stay_the_same() -> None:
    """So a repetition is no second run."""
    event = an_object(1)
    start, complete = documents(event)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"] == str(event_id(event, "lake"))
    assert (start["eventTime"], complete["eventTime"]) == (event.written_at, "2026-11-27T10:00:03Z")
    assert documents(replace(event, removed=True)) == [start, complete]


def test_datasets_are_named_as_the_client_names_them() -> None:
    """One dataset per source, since the next job reads all of its objects; the subset names the one that is new."""
    _, complete = documents(an_object(1))
    (output,) = complete["outputs"]
    naming = S3("lake", "bronze/source=vehicles")
    assert (output["namespace"], output["name"]) == (naming.get_namespace(), naming.get_name())
    condition = output["outputFacets"]["subset"]["outputCondition"]
    assert condition == {"type": "location", "locations": ["s3://lake/bronze/source=vehicles/1.parquet"]}
    assert output["outputFacets"]["outputStatistics"]["size"] == 100
    (origin,) = complete["inputs"]
    assert (origin["namespace"], origin["name"]) == ("http://api:8000", "v1/ingest/vehicles")


def test_our_facet_is_as_the_schema_that_its_address_has() -> None:
    schema = json.loads(SCHEMA.read_text())
    many = msgspec.convert({"submissions": [SUBMISSION] * (SUBMISSIONS_MAX + 1), "objects": []}, WriteLineage)
    for lineage in (LINEAGE, many, WriteLineage()):
        _, complete = documents(an_object(1), lineage)
        facet = complete["run"]["facets"]["bronze_write"]
        jsonschema_rs.validator_for(schema).validate({"bronze_write": facet})
        address, _, pointer = facet["_schemaURL"].partition("#/$defs/")
        assert address == f"http://api:8000/schemas/1-0-0/{SCHEMA.name}"
        assert pointer in schema["$defs"]
    _, complete = documents(an_object(1))
    (submission,) = complete["run"]["facets"]["bronze_write"]["submissions"]
    assert submission == {
        "submissionId": "s-1", "traceId": "1" * 32, "classificationId": "c-1", "principal": "team"
    }  # fmt: skip


@pytest.mark.skipif(not SPEC, reason="OPENLINEAGE_SPEC is not set")
@pytest.mark.parametrize("lineage", [LINEAGE, WriteLineage()], ids=["known", "nothing"])
def test_the_schemas_of_openlineage_accept_the_events(lineage: WriteLineage) -> None:
    """The event, and each standard facet under its name by its own schema."""
    spec = Path(SPEC)
    schemas = {
        json.loads(file.read_text())["$id"]: json.loads(file.read_text())
        for file in (spec / "OpenLineage.json", *(spec / "facets").glob("*.json"))
    }
    core = schemas["https://openlineage.io/spec/2-0-2/OpenLineage.json"]

    def validate(schema: Any, document: Any) -> None:
        jsonschema_rs.validator_for(schema, retriever=schemas.__getitem__, validate_formats=True).validate(document)

    committed = [json.loads(Serde.to_json(run_event)) for run_event in commit_events(A_SNAPSHOT, SITE)]
    checked = 0
    for document in [*documents(an_object(1), lineage), *committed]:
        validate(core, document)
        for name, facet in facets(document):
            if not name.startswith("bronze_"):
                validate(schemas[facet["_schemaURL"].partition("#")[0]], {name: facet})
                checked += 1
    assert checked == 9
    with pytest.raises(jsonschema_rs.ValidationError):
        validate(core, {**documents(an_object(1))[0], "run": {"runId": "no uuid"}})


# --- how they are sent


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with open_inbox() as inbox:
        yield inbox


def receiver(client: OpenLineageClient) -> OpenLineage:
    """With an API that knows the lineage of any object."""
    known = json.loads(msgspec.json.encode(LINEAGE))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=known))
    return OpenLineage(client, httpx.AsyncClient(transport=transport, base_url="http://api:8000/"), SITE)


def without_tags(document: dict[str, Any]) -> dict[str, Any]:
    """An event as it was before the client added its own version."""
    tags = document["run"]["facets"].pop("tags")
    assert {tag["key"] for tag in tags["tags"]} == {"openlineage_client_version"}
    return document


async def test_events_go_to_the_server_of_the_standard_variables(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", inbox.url.partition("/inbox")[0])
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-key")
    assert sends_openlineage(os.environ)
    await receiver(open_client()).send(an_object(1))
    assert [request.path for request in inbox.taken] == ["/api/v1/lineage"] * 2
    assert {request.headers["Authorization"] for request in inbox.taken} == {"Bearer a-key"}
    assert [without_tags(document) for document in inbox.documents()] == documents(an_object(1))


async def test_of_a_removal_nothing_is_sent(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", inbox.url)
    await receiver(open_client()).send(a_removal(1))
    assert inbox.requests == []


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        ((500, {}), Unavailable, Outage.UNAVAILABLE),
        ((401, {}), Unavailable, Outage.DENIED),
        ((429, {"Retry-After": "9"}), Unavailable, Outage.THROTTLED),
        (None, Unavailable, Outage.UNAVAILABLE),
        ((410, {}), Halted, None),
    ],
)
async def test_the_follower_alone_tries_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, answer: Answer, error: type[Exception], code: Outage | None
) -> None:
    """Not the client as well: retries in both would multiply."""
    monkeypatch.setenv("OPENLINEAGE_URL", inbox.url)
    inbox.script = [lambda _: answer]
    with pytest.raises(error) as failed:
        await receiver(open_client()).send(an_object(1))
    assert len(inbox.requests) == 1
    assert "not-for-logs" not in str(failed.value)
    if isinstance(failed.value, Unavailable):
        assert failed.value.code is code
        assert failed.value.retry_after_s == (9 if code is Outage.THROTTLED else 0)


async def test_events_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.ndjson"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    await receiver(open_client()).send(an_object(1))
    assert [without_tags(json.loads(line)) for line in file.read_text().splitlines()] == documents(an_object(1))
    file.unlink()
    file.mkdir()
    with pytest.raises(Unavailable):
        await receiver(open_client()).send(an_object(1))


def test_a_transport_that_loses_events_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, `composite` only logs that one of its transports failed."""
    transports = {"one": {"type": "console"}}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps({"type": "composite", "transports": transports}))
    with pytest.raises(Misconfigured, match="composite"):
        open_client()


def test_a_transport_that_lacks_settings_is_refused_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "kafka")
    with pytest.raises(Misconfigured, match=r"kafka does not say.*use http"):
        open_client()


def test_it_can_be_turned_off() -> None:
    chosen = {"OPENLINEAGE_URL": "http://server"}
    assert sends_openlineage(chosen)
    assert not sends_openlineage({**chosen, "OPENLINEAGE_DISABLED": "true"})
    assert not sends_openlineage({"OPENLINEAGE_URL": "", "OPENLINEAGE_NAMESPACE": "x"})
