"""Event time: what objects say of it, how late their rows were received, and which objects a range of it needs."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bronze.client.objects import EventRange
from bronze.consumer.monitors import Monitors
from bronze.errors import Misconfigured
from bronze.objects.encoder import Encoded, encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.documents import CatalogEntry, Contents, EventTimes, entry_of
from bronze.protocol.feed_event import ObjectEvent
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records import sources
from bronze.records.sources import Source, incompatibility
from bronze.telemetry.instruments import Instruments
from tests import factories

THINGS = sources.parse(
    """
    [things]
    description = "-"
    version = 2
    event_time = "at"
    fields = [
        { name = "day", type = "date32", description = "-" },
        { name = "at", type = "timestamp", since = 2, description = "-" },
        { name = "at_s", type = "timestamp", unit = "s", description = "-" },
        { name = "size", type = "int64", description = "-" },
    ]
    """,
    "things.toml",
)["things"]
BY_DAY = replace(THINGS, event_time="day")
NONE = replace(THINGS, event_time=None)
LANE = Lane("things", 0, "20261124T120000000")


def stored(source: Source, *records: bytes) -> Encoded:
    """An object with these records, which were received on 24 November 2026 at 12:34:56."""
    accepted = factories.accepted(source="things", schema_version=2, records=len(records))
    headers = Part(accepted, 1, 1, 0, len(records)).headers()
    payload = b"[" + b",".join(records) + b"]"
    subject = lane_subject("things", 0, accepted.submission_id)
    message = Message(1, subject, factories.TIME, headers, payload)
    return encode_object(source, LANE, "key", reconcile(LANE, [message], {}), "")


def at(*times: str) -> list[bytes]:
    return [b'{"at": "' + time.encode() + b'"}' for time in times]


def test_an_object_says_its_least_and_greatest_event_time() -> None:
    """In its footer, its catalog entry, the feed and the statistics of the column; in any order, without the nulls."""
    encoded = stored(
        THINGS, *at("2026-11-24T12:00:00Z", "2013-01-01T01:00:00.5+02:00"), b"{}", *at("2026-11-24T12:34:00Z")
    )
    expected = EventTimes("at", "2012-12-31T23:00:00.500000+00:00", "2026-11-24T12:34:00+00:00")
    contents = msgspec.json.decode(msgspec.json.encode(encoded.contents), type=Contents)
    assert contents.event_times == expected
    entry = msgspec.json.decode(msgspec.json.encode(entry_of(contents)), type=CatalogEntry)
    event = ObjectEvent.of(entry, 1)
    assert msgspec.json.decode(msgspec.json.encode(event), type=ObjectEvent).event_times == expected
    file = pq.ParquetFile(pa.BufferReader(encoded.body))
    statistics = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("at")).statistics
    assert (statistics.min.isoformat(), statistics.max.isoformat()) == (expected.least, expected.greatest)


@pytest.mark.parametrize(("source", "record"), [(NONE, at("2013-01-01T00:00:00Z")[0]), (THINGS, b"{}")])
def test_without_an_event_time_documents_are_as_before(source: Source, record: bytes) -> None:
    encoded = stored(source, record)
    assert encoded.lateness_s is None
    for document in (encoded.contents, entry_of(encoded.contents)):
        assert b"event_time" not in msgspec.json.encode(document)
    assert ObjectEvent.of(entry_of(encoded.contents), 1).event_times is None


@pytest.mark.parametrize(
    ("source", "records", "lateness_s"),
    [
        (THINGS, at("2026-11-24T12:34:46Z"), 10),
        (THINGS, at("2026-11-24T12:34:46Z", "2025-11-24T12:34:56Z", "2026-11-24T12:34:26Z"), 30),
        (THINGS, [*at("2026-11-24T12:34:46Z"), b"{}", b"{}"], 10),
        (THINGS, at("2030-01-01T00:00:00Z"), 0),
        (THINGS, at("0001-01-02T00:00:00Z"), 63_931_034_096),
        (BY_DAY, [b'{"day": "2026-11-24"}'], 0),
        (BY_DAY, [b'{"day": "2026-11-23"}'], 12 * 3600 + 34 * 60 + 56),
        (replace(THINGS, event_time="at_s"), [b'{"at_s": 1795523686}'], 10),
    ],
)
def test_lateness_is_the_median_of_the_rows_with_an_event_time(
    source: Source, records: Sequence[bytes], lateness_s: float
) -> None:
    assert stored(source, *records).lateness_s == lateness_s


def test_lateness_is_a_metric_of_the_newest_object() -> None:
    reader = InMemoryMetricReader()
    instruments = Instruments.create(MeterProvider([reader]).get_meter("test"))
    reporting = Monitors({"things": THINGS}, instruments)
    for records in (at("2026-11-24T12:34:46Z"), at("2025-11-24T12:34:56Z"), [b"{}"]):
        reporting.add(stored(THINGS, *records))
    reporting.report()
    data: Any = reader.get_metrics_data()
    (found,) = [m for m in data.resource_metrics[0].scope_metrics[0].metrics if m.name == "bronze.event.lateness"]
    ((labels, value),) = [(point.attributes, point.value) for point in found.data.data_points]
    assert (labels, value) == ({"bronze.source": "things", "bronze.lane": "0"}, 365 * 86_400)


# --- the declaration


@pytest.mark.parametrize("name", ["size", "nothing"])
def test_the_event_time_is_a_field_with_times(name: str) -> None:
    fields = 'fields = [{ name = "size", type = "int64", description = "-" }]'
    with pytest.raises(Misconfigured, match=f"event_time = '{name}' must be the name of a field of the type timestamp"):
        sources.parse(f'[s]\ndescription = "-"\nevent_time = "{name}"\n{fields}', "f")


def test_the_event_time_may_change_at_any_version() -> None:
    """It concerns new objects only. A version before its field has none."""
    for old, new in ((NONE, THINGS), (THINGS, NONE), (THINGS, BY_DAY)):
        assert incompatibility(old.schema, new.schema) is None
    assert THINGS.at_version(1).event_time is None
    assert BY_DAY.at_version(1).event_time == "day"


# --- reading


def event(times: EventTimes | None) -> ObjectEvent:
    return replace(ObjectEvent.of(entry_of(factories.contents(1, 1)), 1), event_times=times)


@pytest.mark.parametrize(
    ("since", "until", "times", "may"),
    [
        (
            "2013-01-02T00:00:00Z",
            None,
            EventTimes("at", "2013-01-01T00:00:00+00:00", "2013-01-02T00:00:00+00:00"),
            True,
        ),
        (
            "2013-01-02T00:00:01Z",
            None,
            EventTimes("at", "2013-01-01T00:00:00+00:00", "2013-01-02T00:00:00+00:00"),
            False,
        ),
        (
            None,
            "2013-01-01T00:00:00Z",
            EventTimes("at", "2013-01-01T00:00:00+00:00", "2014-01-01T00:00:00+00:00"),
            False,
        ),
        (
            None,
            "2013-01-01T00:00:01Z",
            EventTimes("at", "2013-01-01T00:00:00+00:00", "2014-01-01T00:00:00+00:00"),
            True,
        ),
        ("2013-01-02T00:00:00+01:00", None, EventTimes("at", "2013-01-01", "2013-01-01"), False),
        ("2013-01-01T00:00:00+00:00", None, EventTimes("at", "2013-01-01", "2013-01-01"), True),
        ("2020-01-01T00:00:00Z", None, EventTimes("other", "2013-01-01", "2013-01-01"), True),
        ("2020-01-01T00:00:00Z", None, None, True),
    ],
)
def test_objects_are_left_out_only_if_the_catalog_says_that_they_have_no_such_row(
    since: str | None, until: str | None, times: EventTimes | None, *, may: bool
) -> None:
    assert EventRange("at", since, until).may_be_in(event(times)) is may


@pytest.mark.parametrize(
    ("column", "since", "until", "kept"),
    [
        ("at", "2013-01-01T12:00:00Z", None, [1, 2]),
        ("at", None, "2013-01-02T00:00:00Z", [0, 1]),
        ("at", "2013-01-01T13:00:00+01:00", "2013-01-02T00:00:00Z", [1]),
        ("day", "2013-01-02T00:00:00Z", None, [1, 2]),
        ("day", "2013-01-02T00:00:00.000001Z", None, [2]),
        ("day", None, "2013-01-02T00:00:00Z", [0]),
        ("day", None, "2013-01-02T00:00:01Z", [0, 1]),
        ("absent", "2013-01-01T00:00:00Z", None, []),
    ],
)
def test_rows_are_those_of_the_range(column: str, since: str | None, until: str | None, kept: list[int]) -> None:
    """The beginning is in it, the end is not, and a row without an event time is in no range."""
    noon = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)
    times = [noon - dt.timedelta(hours=1), noon, noon + dt.timedelta(days=1), None]
    days = [dt.date(2013, 1, 1), dt.date(2013, 1, 2), dt.date(2013, 1, 3), None]
    table = pa.table({"at": pa.array(times, pa.timestamp("us", "UTC")), "day": days, "n": [0, 1, 2, 3]})
    found = ds.dataset(table).to_table(filter=EventRange(column, since, until).condition(table.schema))
    assert found["n"].to_pylist() == kept
