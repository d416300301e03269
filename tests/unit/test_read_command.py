"""`bronze read`: conditions, formats, and rows of objects with different columns."""

import argparse
import asyncio
import contextlib
import csv
import datetime as dt
import io
import re
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from bronze.admin import read_command, read_rows
from bronze.client import AsyncClient, Client
from bronze.client.condition import CHARS_MAX, parse
from bronze.client.objects import Bucket
from bronze.errors import Misconfigured, Refused, Unavailable
from bronze.protocol.documents import EventTimes, entry_of
from bronze.protocol.feed_event import ObjectEvent
from bronze.records import sources
from bronze.records.columns import object_schema
from tests import factories

DAY = dt.datetime(2026, 11, 29, 10, tzinfo=dt.UTC)
UTC = pa.timestamp("us", "UTC")
ROWS = pa.table(
    {
        "model": ["A7", "it's", None, "B"],
        "seats": pa.array([100, 149, 7, None], pa.int64()),
        "load": pa.array([0.5, 1.5, None, -2.0], pa.float64()),
        "price": pa.array([Decimal("1.10"), None, Decimal("3.00"), Decimal("2.00")], pa.decimal128(9, 2)),
        "on_time": [True, False, None, True],
        "day": pa.array([dt.date(2026, 11, day) for day in (1, 2, 3, 4)], pa.date32()),
        "_received_at": pa.array([DAY + dt.timedelta(hours=hour) for hour in range(4)], UTC),
        'a "name"': ["x", "y", "z", None],
    }
)

DECLARED = object_schema(sources.built_in()["vehicles"])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("seats > 100", [1]),
        ("seats >= 100 and seats <= 149", [0, 1]),
        ("SEATS_ = 1 OR seats = 7".replace("SEATS_ = 1", "seats = 149"), [1, 2]),
        ("seats BETWEEN 7 AND 100", [0, 2]),
        ("model = 'A7'", [0]),
        ("model == 'it''s'", [1]),
        ("model <> 'A7'", [1, 3]),
        ("model IS NULL", [2]),
        ("model IS NOT NULL AND NOT model = 'B'", [0, 1]),
        ("model IN ('A7', 'B')", [0, 3]),
        ("seats NOT IN (7)", [0, 1]),  # one that is null is not known to be another
        ("NOT seats IN (7)", [0, 1]),
        ("seats IN (7) OR model = 'B'", [2, 3]),
        ("load NOT IN (0.5)", [1, 3]),
        ("load = -2", [3]),
        ("load < 1e0", [0, 3]),
        ("price = 1.10", [0]),
        ("price > 1.1", [2, 3]),
        ("on_time", [0, 3]),
        ("NOT on_time", [1]),
        ("on_time = false", [1]),
        ("day = '2026-11-02'", [1]),
        ("_received_at >= '2026-11-29T12:00:00Z'", [2, 3]),
        ("(seats = 7 OR seats = 100) AND model = 'A7'", [0]),
        ("seats = 7 OR seats = 100 AND model = 'x'", [2]),
        ('"a ""name""" = \'y\'', [1]),
    ],
)
def test_a_condition_selects_rows(text: str, kept: list[int]) -> None:
    dataset = ds.dataset(ROWS)
    assert dataset.to_table(filter=parse(text, ROWS.schema)).equals(ROWS.take(kept))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize(
    ("text", "kept"),
    [("x = 0", [0, 1]), ("x IN (0, 7)", [0, 1]), ("x IN (-0.0)", [0, 1]), ("x NOT IN (0)", [2]), ("x IN (5)", [2])],
)
def test_both_zeros_are_one_value(text: str, kept: list[int], kind: pa.DataType) -> None:
    """Rows that came as Arrow or Parquet can have either."""
    rows = pa.table({"x": pa.array([0.0, -0.0, 5.0, None], kind)})
    found = ds.dataset(rows).to_table(filter=parse(text, rows.schema))["x"].to_pylist()
    assert list(map(repr, found)) == [repr(rows["x"][number].as_py()) for number in kept]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a column is expected before its end"),
        ("seats", "=, <>"),
        ("seats >", "a value is expected before its end"),
        ("seats > 'a'", "not a value of seats"),
        ("seats > 1.5", "not a value of seats"),
        ("model = 5", "not a value of model"),
        ("on_time = 1", "not a value of on_time"),
        ("day = 'yesterday'", "not a value of day"),
        ("day > 5", "not a value of day, which is a date32.*: write '2026-11-29'"),
        *(
            (f"_received_at > {text}", "not a value of _received_at, .*: write '2026-11-29T10:00:00Z', with its zone")
            for text in ("'2026-11-29'", "'2026-11-29T10:00:00'", "'today'", "5")
        ),
        ("wings = 2", "there is no column 'wings'; the columns are model, seats"),
        ("seats = 1 seats", "AND or OR is expected before 'seats'"),
        ("(seats = 1", r"\) is expected before its end"),
        ("seats = 1; DROP TABLE x", "cannot be read"),
        ("seats = $(reboot)", "cannot be read"),
        ("'a' = 'a'", "a column is expected"),
        ("NOT " * 60 + "on_time", "nested more than 50 times"),
        ("(" * 60 + "on_time", "nested more than 50 times"),
        ("on_time OR " * CHARS_MAX, "longer than"),
        ("seats IN ()", "a value is expected"),
    ],
)
def test_what_is_no_condition_says_why(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse(text, ROWS.schema)


@given(st.text(alphabet=list("seats model()'\"=<>.,120AND OR IN IS NOT NULL")) | st.text())
def test_no_text_is_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(Refused):
        parse(text, ROWS.schema)


# --- the command


class Objects:
    """The objects of a bucket that is a folder, and of the catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self.bucket = Bucket(fs.LocalFileSystem(), str(folder))

    def add(self, table: pa.Table) -> None:
        path = f"{len(self.paths)}.parquet"
        pq.write_table(table, self.folder / path)
        self.paths.append(path)

    def events(self, *_: object, **__: object) -> Iterator[ObjectEvent]:
        return (ObjectEvent.of(entry_of(factories.contents(1, 1, file_path=path)), None) for path in self.paths)


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    folder = tmp_path / "bucket"
    folder.mkdir()
    found = Objects(folder)
    monkeypatch.setattr(Client, "objects", found.events)
    monkeypatch.setattr(Client, "columns", lambda *_: DECLARED)
    monkeypatch.setattr(Bucket, "of_settings", lambda: found.bucket)
    return found


def read(*words: str) -> int:
    parser = argparse.ArgumentParser()
    read_command.arguments(parser)
    return read_rows.run(parser.parse_args(["vehicles", *words]))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["old first", "new first"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "csv"])
def test_objects_with_and_without_a_field_are_read_together(
    objects: Objects, tmp_path: Path, order: Sequence[int], form: str
) -> None:
    """In either order; the field is null in the rows of the objects that lack it."""
    tables = [pa.table({"a": [1]}), pa.table({"a": [2], "added": ["x"]})]
    for number in order:
        objects.add(tables[number])
    out = tmp_path / f"out.{form}"
    assert read("--output", str(out)) == 0
    if form == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif form == "arrow":
        rows = pa.ipc.open_stream(out.read_bytes()).read_all().to_pylist()
    else:
        rows = [
            {"a": int(row["a"]), "added": row["added"] or None} for row in csv.DictReader(io.StringIO(out.read_text()))
        ]
    assert rows == [[{"a": 1, "added": None}, {"a": 2, "added": "x"}][number] for number in order]
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == [out.name]


def test_rows_are_those_of_the_time_and_the_condition(objects: Objects, tmp_path: Path) -> None:
    """Not all rows of an object have to be of the time."""
    objects.add(ROWS)
    out = tmp_path / "out.parquet"
    words = ["--since", "2026-11-29T11:00Z", "--until", "2026-11-29T13:00Z", "--where", "seats > 7"]
    assert read(*words, "--columns", "seats,model", "--output", str(out)) == 0
    assert pq.read_table(out).to_pylist() == [{"seats": 149, "model": "it's"}]


def test_rows_are_those_of_the_event_time_and_objects_without_any_are_not_read(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: dict[str, EventTimes | None] = {
        "0.parquet": None,
        "1.parquet": EventTimes("day", "2026-11-01", "2026-11-02"),
    }
    events = objects.events

    def with_times(*_: object, **__: object) -> Iterator[ObjectEvent]:
        return (replace(event, event_times=times[event.file_path]) for event in events())

    monkeypatch.setattr(Client, "objects", with_times)
    monkeypatch.setattr(Client, "event_time", lambda *_: "day")
    objects.add(ROWS)
    objects.paths.append("1.parquet")  # it is missing, and not needed
    out = tmp_path / "out.parquet"
    words = ["--event-since", "2026-11-03", "--event-until", "2026-11-04", "--columns", "seats", "--output", str(out)]
    assert read(*words) == 0
    assert pq.read_table(out).to_pylist() == [{"seats": 7}]


def test_a_source_without_an_event_time_is_named(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Client, "event_time", lambda *_: None)
    assert read("--event-since", "2026-11-03") == 2
    assert "the source vehicles declares no event_time" in capsys.readouterr().err


def test_nested_values_and_bytes_are_json_in_a_csv(objects: Objects, tmp_path: Path) -> None:
    objects.add(
        pa.table({"list": [[1, None]], "struct": [{"a": "ä\n"}], "bytes": [b"\xff"], "time": pa.array([DAY], UTC)})
    )
    out = tmp_path / "out"
    assert read("--format", "csv", "--output", str(out)) == 0
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert row == {
        "list": "[1,null]",
        "struct": '{"a":"ä\\n"}',
        "bytes": '"/w=="',
        "time": "2026-11-29T10:00:00+00:00",
    }


def test_a_table_obeys_nothing_that_it_shows(objects: Objects, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Neither controls of the terminal nor markup; and has a bounded number of rows."""
    objects.add(pa.table({"a": ["\x1b[2J[bold]x[/]\n\u202e"] * 30}))
    assert read() == 0
    shown, said = capfdbinary.readouterr()
    assert shown.count(rb"\x1b[2J[bold]x[/]\x0a\x202e") == 20
    assert b"\x1b" not in shown
    assert b"20 rows, from 1 object, and there may be more (--limit)" in said


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "table"])
@pytest.mark.parametrize("columns", [["seats", "_received_at"], None])
def test_without_objects_the_columns_are_those_that_are_declared(
    objects: Objects, tmp_path: Path, form: str, columns: list[str] | None
) -> None:
    out = tmp_path / "out"
    words = ["--format", form, "--output", str(out), *(["--columns", ",".join(columns)] if columns else [])]
    assert read("--where", "seats > 100", *words) == 0
    expected = columns or DECLARED.names
    if form == "parquet":
        assert (pq.read_table(out).num_rows, pq.read_schema(out).names) == (0, expected)
        assert pq.read_schema(out).field("seats").type == pa.int64()
    elif form == "arrow":
        table = pa.ipc.open_stream(out.read_bytes()).read_all()
        assert (table.num_rows, table.schema.names) == (0, expected)
    elif form == "csv":
        assert out.read_text() == ",".join(expected) + "\n"
    else:
        assert all(name[:1] in out.read_text() for name in expected)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--since", "2026-11-28", "--until", "2026-11-27"], r"--since \(2026-11-28T.*\) has to be before --until"),
        (["--since", "2026-11-28", "--until", "2026-11-28"], r"--since \(2026-11-28T.*\) has to be before --until"),
        (["--event-since", "2026-11-28", "--event-until", "2026-11-27"], r"--event-since .* before --event-until"),
    ],
)
@pytest.mark.parametrize("some", [True, False])
def test_a_range_without_any_time_is_refused(
    objects: Objects, words: list[str], error: str, capsys: pytest.CaptureFixture[str], *, some: bool
) -> None:
    if some:
        objects.add(ROWS)
    assert read(*words) == 2
    assert re.search(error, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--output", "x"], "its name says no format"),
        (["--output", "/nowhere/x.csv"], "/nowhere/x.csv: No such file"),
        (["--limit", "-1"], "negative"),
    ],
)
def test_an_option_that_cannot_work_is_named(objects: Objects, words: list[str], error: str) -> None:
    objects.add(ROWS)
    with pytest.raises(Misconfigured, match=error):
        read(*words)


def test_binary_formats_are_not_for_a_terminal(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(Misconfigured, match="not for a terminal"):
        read("--format", "parquet")


@pytest.mark.parametrize("words", [["--where", "b = 1"], ["--columns", "b"]])
@pytest.mark.parametrize("some", [True, False])
def test_a_column_that_does_not_exist_is_refused(
    objects: Objects, words: list[str], capsys: pytest.CaptureFixture[str], *, some: bool
) -> None:
    """Also if there is no row."""
    if some:
        objects.add(pa.table({"vehicle_id": ["a"]}))
    assert read(*words) == 2
    assert "there is no column 'b'; the columns are vehicle_id" in capsys.readouterr().err


def test_a_missing_object_leaves_no_file(objects: Objects, tmp_path: Path) -> None:
    objects.paths.append("gone.parquet")
    with pytest.raises(Unavailable, match=r"the object gone.parquet is not in the bucket"):
        read("--output", str(tmp_path / "out.csv"))
    assert not list(tmp_path.glob("*out*"))


def test_a_client_reads_with_a_condition(objects: Objects) -> None:
    """As text and as an Arrow expression."""
    objects.add(ROWS)
    with Client("http://api") as bronze:
        conditions: list[Any] = ["seats > 100", pc.field("seats") > 100]
        for where in conditions:
            table = bronze.read("vehicles", columns=["model"], where=where)
            assert table.to_pylist() == [{"model": "it's"}]
        assert bronze.read_objects(objects.paths).num_rows == 4


def test_a_client_reads_nothing_with_the_declared_columns(objects: Objects) -> None:
    """And checks what is asked for as it does where there are rows."""
    with Client("http://api") as bronze:
        assert bronze.read("vehicles").schema == DECLARED
        assert bronze.read("vehicles", columns=["seats"], where=pc.field("seats") > 1).schema.names == ["seats"]
        assert bronze.read_objects([]).num_rows == 0
        for wrong in ({"columns": ["wings"]}, {"where": "wings = 2"}, {"where": pc.field("wings") == 2}):
            with pytest.raises(Refused, match="wings"):
                bronze.read("vehicles", **wrong)
        objects.add(ROWS)
        with pytest.raises(Refused, match=r"the condition is not valid: .*wings"):
            bronze.read("vehicles", where=pc.field("wings") == 2)


def test_an_async_client_reads_the_same(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def events(*_: object, **__: object) -> AsyncIterator[ObjectEvent]:
        for event in objects.events():
            yield event

    async def columns(*_: object) -> pa.Schema:
        return DECLARED

    monkeypatch.setattr(AsyncClient, "objects", events)
    monkeypatch.setattr(AsyncClient, "columns", columns)

    async def run() -> None:
        async with AsyncClient("http://api") as bronze:
            assert (await bronze.read("vehicles")).schema == DECLARED
            with pytest.raises(Refused, match="wings"):
                await bronze.read("vehicles", where="wings = 2")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("since", "until"),
    [("2026-11-03", dt.date(2026, 11, 4)), (dt.datetime(2026, 11, 3, tzinfo=dt.UTC), "2026-11-04T00:00:00Z")],
)
def test_a_client_reads_by_event_time(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, since: str | dt.date, until: str | dt.date
) -> None:
    """As the command does. A date is its beginning, in UTC."""
    objects.add(ROWS)
    monkeypatch.setattr(Client, "event_time", lambda *_: "day")
    with Client("http://api") as bronze:
        table = bronze.read("vehicles", event_since=since, event_until=until, columns=["seats"])
        assert table.to_pylist() == [{"seats": 7}]
        with pytest.raises(Refused, match=r"event_since .* has to be before event_until"):
            bronze.read("vehicles", event_since=until, event_until=since)
        monkeypatch.setattr(Client, "event_time", lambda *_: None)
        with pytest.raises(Refused, match="declares no event_time"):
            bronze.read("vehicles", event_since=since)
