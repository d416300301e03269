"""The snapshots of real tables, in an SQLite catalog, are announced at least once, in the order of each table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema_rs
import pyarrow as pa
import pytest
from openlineage.client.serde import Serde
from pyiceberg.catalog import Catalog, load_catalog

from bronze.client import FileCheckpoint
from bronze.errors import Halted, Outage, Unavailable
from bronze.notify.delivery import Delivery
from bronze.notify.event import Event, SnapshotEvent, cloud_event, event_id
from bronze.notify.lineage_event import Site, commit_events
from bronze.notify.notify_telemetry import NotifyTelemetry
from bronze.notify.openlineage import OpenLineage, open_client
from bronze.notify.snapshots import SnapshotFollower
from bronze.servers.iceberg import Tables
from bronze.telemetry.signals import Role
from local.builds import REPOSITORY
from tests.contract.making import Heard

ROWS = pa.table({"a": ["x", "y"]})
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OURS = {"bronze.objects": "1", "bronze.traceparent": TRACEPARENT}
SCHEMA = REPOSITORY / "service" / "bronze" / "api" / "schemas" / "BronzeCommitRunFacet.json"
SITE = Site("lake", "bronze", "http://api:8000/", "bronze", "http://catalog:8181", "bronze")


class Taken:
    """A receiver. At `fails`, it does not take the event and then ends the test, as a crash would."""

    name = "webhook"

    def __init__(self) -> None:
        self.events: list[SnapshotEvent] = []
        self.fails_at = -1

    async def send(self, event: Event) -> None:
        assert isinstance(event, SnapshotEvent)
        if len(self.events) == self.fails_at:
            self.fails_at = -1
            raise Halted("a crash")
        self.events.append(event)


class Memory:
    text = ""

    def load(self) -> str:
        return self.text

    def save(self, cursor: str) -> None:
        self.text = cursor


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    uri = f"sqlite:///{tmp_path}/catalog.db"
    catalog = load_catalog("tried", type="sql", uri=uri, warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("bronze")
    yield catalog
    catalog.close()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.NOTIFY)
    yield heard
    heard.telemetry.shutdown()


def commit(catalog: Catalog, name: str, **summary: str) -> str:
    """A snapshot with two rows. Returns its id."""
    table = catalog.create_table_if_not_exists(f"bronze.{name}", ROWS.schema)
    table.append(ROWS, snapshot_properties=summary)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return str(snapshot.snapshot_id)


def started(catalog: Catalog, taken: Taken, memory: Memory, heard: Heard, *, skip: bool = False) -> SnapshotFollower:
    """A follower as a new process has it, with what was saved."""
    delivery = Delivery(taken, NotifyTelemetry(heard.telemetry))
    follower = SnapshotFollower(Tables(catalog, "bronze"), delivery, memory, skip=skip)
    follower.restore()
    return follower


def ids(taken: Taken) -> list[str]:
    return [event.snapshot_id for event in taken.events]


async def test_each_snapshot_is_announced_once_if_nothing_fails(catalog: Catalog, heard: Heard) -> None:
    taken, memory = Taken(), Memory()
    follower = started(catalog, taken, memory, heard)
    await follower.step()
    assert taken.events == []
    made = [commit(catalog, "vehicles", **OURS), commit(catalog, "vehicles"), commit(catalog, "status", **OURS)]
    await follower.step()
    await started(catalog, taken, memory, heard).step()
    assert ids(taken) == [made[2], *made[:2]]  # the tables by their names
    made.append(commit(catalog, "vehicles", **OURS))
    await follower.step()
    assert ids(taken)[3:] == [made[3]]
    first = taken.events[1]
    assert (first.source, first.records, first.objects, first.traceparent) == ("vehicles", 2, 1, TRACEPARENT)
    assert (first.operation, first.parent_snapshot_id, taken.events[2].objects) == ("append", None, None)
    span, *_ = heard.spans("notify")
    assert [format(link.context.trace_id, "032x") for link in span.links] == [TRACEPARENT.split("-")[1]]


async def test_after_a_crash_none_is_missing(catalog: Catalog, heard: Heard) -> None:
    """At each snapshot; those of the same table since then come again, under the same ids."""
    made = [commit(catalog, "vehicles", **OURS) for _ in range(4)]
    for crash in range(4):
        taken, memory = Taken(), Memory()
        taken.fails_at = crash
        with pytest.raises(Halted):
            await started(catalog, taken, memory, heard).step()
        await started(catalog, taken, memory, heard).step()
        assert ids(taken) == [*made[:crash], *made]
        assert len({event_id(event, "lake") for event in taken.events}) == 4


async def test_a_damaged_position_is_named(
    catalog: Catalog, heard: Heard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "webhook.snapshots"
    file.write_text("corrupt")
    taken = Taken()
    await SnapshotFollower(
        Tables(catalog, "bronze"), Delivery(taken, NotifyTelemetry(heard.telemetry)), FileCheckpoint(file)
    ).run()
    assert str(file) in caplog.text
    assert not taken.events


async def test_only_what_comes_from_now_on(catalog: Catalog, heard: Heard) -> None:
    """But of a table that is made later, everything."""
    taken, memory = Taken(), Memory()
    commit(catalog, "vehicles")
    await started(catalog, taken, memory, heard, skip=True).step()
    assert ids(taken) == []
    made = [commit(catalog, "status"), commit(catalog, "vehicles")]
    await started(catalog, taken, memory, heard, skip=True).step()
    assert ids(taken) == made


async def test_the_first_table_after_the_begin_is_announced_whole(catalog: Catalog, heard: Heard) -> None:
    taken, memory = Taken(), Memory()
    await started(catalog, taken, memory, heard, skip=True).step()
    made = [commit(catalog, "vehicles"), commit(catalog, "vehicles")]
    await started(catalog, taken, memory, heard, skip=True).step()
    assert ids(taken) == made


async def test_a_table_that_was_made_again_is_announced_from_its_beginning(catalog: Catalog, heard: Heard) -> None:
    taken, memory = Taken(), Memory()
    made = [commit(catalog, "vehicles"), commit(catalog, "vehicles")]
    await started(catalog, taken, memory, heard).step()
    catalog.drop_table("bronze.vehicles")
    made.append(commit(catalog, "vehicles"))
    await started(catalog, taken, memory, heard).step()
    assert ids(taken) == made


async def test_snapshots_that_expired_are_said_to_be_missing(
    catalog: Catalog, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    taken, memory = Taken(), Memory()
    commit(catalog, "vehicles")
    await started(catalog, taken, memory, heard).step()
    expired, last = commit(catalog, "vehicles"), commit(catalog, "vehicles")
    catalog.load_table("bronze.vehicles").maintenance.expire_snapshots().by_ids([int(expired)]).commit()
    await started(catalog, taken, memory, heard).step()
    assert ids(taken)[1:] == [last]
    assert "1 snapshots had expired" in caplog.text


async def test_a_catalog_that_does_not_answer_is_unavailable(catalog: Catalog, heard: Heard, tmp_path: Path) -> None:
    commit(catalog, "vehicles")
    for file in (tmp_path / "warehouse").rglob("*.metadata.json"):
        file.unlink()
    with pytest.raises(Unavailable) as failed:
        await started(catalog, Taken(), Memory(), heard).step()
    assert failed.value.code is Outage.UNAVAILABLE


async def test_the_events_say_which_table_and_where_its_rows_come_from(catalog: Catalog, heard: Heard) -> None:
    taken = Taken()
    commit(catalog, "vehicles", **OURS)
    commit(catalog, "vehicles")
    await started(catalog, taken, Memory(), heard).step()
    ours, theirs = taken.events
    document = json.loads(cloud_event(ours, "lake", "bronze"))
    assert (document["type"], document["subject"]) == ("bronze.table.committed", "vehicles")
    assert (document["id"], document["traceparent"]) == (str(event_id(ours, "lake")), TRACEPARENT)
    assert document["data"]["snapshot_id"] == ours.snapshot_id
    start, complete = documents(ours)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert [(one["namespace"], one["name"]) for one in complete["inputs"]] == [("s3://lake", "bronze/source=vehicles")]
    (table,) = complete["outputs"]
    location = catalog.load_table("bronze.vehicles").location()
    assert (table["namespace"], table["name"]) == ("file", urlsplit(location).path)
    assert table["facets"]["version"]["datasetVersion"] == ours.snapshot_id
    (link,) = table["facets"]["symlinks"]["identifiers"]
    assert link == {"namespace": "http://catalog:8181", "name": "bronze.vehicles", "type": "TABLE"}
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 2
    facet = complete["run"]["facets"]["bronze_commit"]
    jsonschema_rs.validator_for(json.loads(SCHEMA.read_text())).validate({"bronze_commit": facet})
    assert facet["objects"] == 1
    assert documents(theirs)[1]["inputs"] == []


def documents(event: SnapshotEvent) -> list[dict[str, Any]]:
    return [json.loads(Serde.to_json(run_event)) for run_event in commit_events(event, SITE)]


async def test_they_are_sent_as_those_of_objects_are(
    catalog: Catalog, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "events.ndjson"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    commit(catalog, "vehicles", **OURS)
    async with httpx.AsyncClient() as unused:
        receiver = OpenLineage(open_client(), unused, SITE)
        follower = SnapshotFollower(
            Tables(catalog, "bronze"), Delivery(receiver, NotifyTelemetry(heard.telemetry)), Memory()
        )
        await follower.step()
    assert [json.loads(line)["eventType"] for line in file.read_text().splitlines()] == ["START", "COMPLETE"]
