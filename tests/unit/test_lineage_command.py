"""The command line of `bronze lineage`, and the kinds of id that a text may be."""

import argparse
import datetime as dt
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from bronze import client
from bronze.__main__ import parser
from bronze.admin import lineage_command
from bronze.errors import Misconfigured, Unavailable
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageRemoval, guesses
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.settings import Settings


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(["lineage", *words])


def test_exactly_one_id_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("abc").id == "abc"
    assert parse("--trace-id", "abc").trace_id == "abc"
    for wrong in ([], ["abc", "--trace-id", "abc"], ["--trace-id", "a", "--file-path", "b"]):
        with pytest.raises(SystemExit):
            parse(*wrong)
    assert "not allowed with" in capsys.readouterr().err


def test_follow_has_options_of_its_own() -> None:
    """A classification_id of that name can be looked up with its option."""
    assert lineage_command.wants_follow(parse("follow", "--source", "vehicles"))
    assert not lineage_command.wants_follow(parse("--classification-id", "follow"))
    for wrong in (["abc", "--from-start"], ["--file-path", "a", "--source", "vehicles"], ["follow", "--tables"]):
        with pytest.raises(Misconfigured, match="bronze lineage follow"):
            lineage_command.wants_follow(parse(*wrong))


def test_since_is_a_time_or_a_period(capsys: pytest.CaptureFixture[str]) -> None:
    """UTC if it names no time zone, and in the time format of the queue."""
    for text, time in (
        ("2026-11-27", "2026-11-27T00:00:00Z"),
        ("2026-11-27T10:00", "2026-11-27T10:00:00Z"),
        ("2026-11-27T10:00:00.5+02:00", "2026-11-27T08:00:00.500000Z"),
    ):
        assert parse("follow", "--since", text).since == time
    ago = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(parse("follow", "--since", "90m").since)
    assert abs(ago - dt.timedelta(minutes=90)) < dt.timedelta(minutes=1)
    for text in ("yesterday", "99999999999d", "0001-01-01T00:00+14:00"):
        with pytest.raises(SystemExit):
            parse("follow", "--since", text)
        assert "nor a period up to now" in capsys.readouterr().err


def test_a_removed_object_says_why_and_how_many_records_it_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = LineageRemoval("acknowledged", "deleted by a script", by="operator", at="2026-11-28T09:00:00Z")
    written = LineageObject("a.parquet", "s", "e", 0, 1, 4, 4, 2, 1234, 9, "0" * 32, "2026-11-28T08:00:00Z", removed)
    lineage = Lineage("file_path", "a.parquet", [], [written], truncated=False, complete=True, lag_s=0)
    front = httpx.MockTransport(lambda _: httpx.Response(200, content=msgspec.json.encode(lineage)))
    monkeypatch.setattr(client, "connect", lambda *_: httpx.Client(base_url="http://front", transport=front))
    assert lineage_command.run_lookup(parse("--file-path", "a.parquet"), Settings()) == 0
    assert "by operator: deleted by a script (it had 1,234 records)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [
        (None, "not in its table"),
        (
            FirstSnapshot("7", "2026-11-28T08:00:09+00:00", is_exact=True, trace_id="a" * 32),
            f"in its table since snapshot 7, committed +9.000 s, trace {'a' * 32}",
        ),
        (
            FirstSnapshot("7", "2026-11-28T08:00:09+00:00", is_exact=False, trace_id=None),
            "committed +9.000 s or before: older snapshots have expired",
        ),
        (  # an erasure wrote the object again
            FirstSnapshot("7", "2026-11-28T07:59:48.8+00:00", is_exact=False, trace_id=None),
            "committed 2026-11-28 07:59:48.800 or before: older snapshots have expired",
        ),
    ],
)
def test_an_object_says_since_when_its_table_has_it(
    snapshot: FirstSnapshot | None, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the answer of the API, or by the catalog of the tables itself."""
    known: dict[str, Any] = {"in_table": snapshot is not None, "snapshot": snapshot}
    written = LineageObject("a.parquet", "s", "e", 0, 1, 4, 4, 2, 1234, 9, "0" * 32, "2026-11-28T08:00:00Z")
    lineage = Lineage("file_path", "a.parquet", [], [written], truncated=False, complete=True, lag_s=0)
    front = httpx.MockTransport(lambda _: httpx.Response(200, content=msgspec.json.encode(lineage)))
    monkeypatch.setattr(client, "connect", lambda *_: httpx.Client(base_url="http://front", transport=front))
    asked = ("--file-path", "a.parquet")
    assert lineage_command.run_lookup(parse(*asked), Settings()) == 0
    assert "table" not in capsys.readouterr().out
    assert lineage_command.run_lookup(parse(*asked, "--tables"), Settings(), lambda _: [snapshot]) == 0
    assert says in capsys.readouterr().out
    assert lineage_command.run_lookup(parse(*asked, "--tables", "--json"), Settings(), lambda _: [snapshot]) == 0
    (printed,) = msgspec.json.decode(capsys.readouterr().out)["objects"]
    assert msgspec.convert(printed, LineageObject) == replace(written, **known)
    lineage.objects[:] = [replace(written, **known)]
    assert lineage_command.run_lookup(parse(*asked), Settings()) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (httpx.Response(404, json={"type": "/problems/not-found", "detail": "Nothing is known."}), 1),
        (httpx.Response(400, json={"type": "/problems/invalid-query", "detail": "Give one."}), 2),
        (httpx.Response(301, json={"detail": "Moved."}), 2),
        (httpx.Response(410, json={"type": "/problems/removed", "detail": "The object was removed (expired)."}), 1),
        (httpx.Response(404, text="<html>"), 3),
        (httpx.Response(403, text="<html>"), 3),
        (httpx.Response(200, text="<html>"), 3),
        (httpx.Response(503, json={"type": "/problems/queue-away", "detail": "Later."}), 3),
    ],
    ids=lambda value: f"{value.status_code} {value.text[:9]}" if isinstance(value, httpx.Response) else None,
)
def test_the_exit_code_tells_the_apis_answers_from_others(
    answer: httpx.Response, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 says that the API does not know the id: a 404 of a proxy, or of another server, does not say that."""
    front = httpx.MockTransport(lambda _: answer)
    monkeypatch.setattr(client, "connect", lambda *_: httpx.Client(base_url="http://front", transport=front))
    try:
        assert lineage_command.run_lookup(parse("abc"), Settings()) == code
    except Unavailable:
        assert code == 3


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("bronze/source=status/date=2026-11-27/hour=10/e-0-1.parquet", ["file_path", "classification_id"]),
        ("s3://bucket/a/b.parquet", ["file_path"]),
        ("4bf92f3577b34da6a3ce929d0e0e4736", ["trace_id", "classification_id"]),
        ("bf92f3577b34da6a3ce929d0e0e4736", ["trace_id", "classification_id"]),
        ("20130208", ["classification_id", "trace_id"]),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", ["trace_id"]),
        ("01939f4e-6b7c-7cc3-a4f5-0242ac120002", ["submission_id", "classification_id"]),
        ("2013-02-08-UA-1018-EWR-IAH", ["classification_id"]),
        ("", ["classification_id"]),
    ],
)
def test_the_kinds_of_id_that_a_text_may_be(text: str, kinds: list[By]) -> None:
    assert [by for by, _ in guesses(f" {text}\n")] == kinds
