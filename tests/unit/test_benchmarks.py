"""The benchmarks' own arithmetic: no time is measured here."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import objects, report
from benchmarks.__main__ import OTHERS, PARTS, main, names
from benchmarks.delivery import bucket_quantile, upload_buckets
from benchmarks.load import Load, Refused, bodies, offer
from benchmarks.rounds import Figures, Found, Target, interleaved, medians, quantile, ratio
from benchmarks.rows import Rows
from bronze.records.columns import object_schema
from local.builds import REPOSITORY
from local.programs import LOOPBACK

LINES = (REPOSITORY / "samples" / "status.ndjson").read_bytes().splitlines(keepends=True)[:50]


# --- rounds


def test_each_round_runs_every_variant_once_and_begins_with_another() -> None:
    order: list[str] = []

    def run(name: str) -> Figures:
        order.append(name)
        return {"n": float(len(order))}

    runs = interleaved({name: lambda name=name: run(name) for name in "abc"}, 3, lambda *_: None)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"
    assert {name: len(of) for name, of in runs.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_medians() -> None:
    """A round in which the machine was slow for both counts as any other."""
    mine = [{"rate": rate} for rate in (50.0, 5.0, 60.0)]
    theirs = [{"rate": rate} for rate in (100.0, 10.0, 40.0)]
    assert ratio(mine, theirs, "rate") == 0.5
    assert medians(mine) == {"rate": 50.0}


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([float(n) for n in range(100)], 0.99) == 99.0
    assert quantile([3.0], 0.5) == 3.0


def test_a_target_holds_on_its_bound() -> None:
    assert Target("a", 0.5, least=0.5).holds
    assert Target("a", 3, most=3).holds
    assert not Target("a", 0.49, least=0.5).holds
    assert not Target("a", 3.1, most=3).holds


# --- what is read


def test_the_upload_quantile_is_of_what_came_between_two_scrapes() -> None:
    """Other sources and earlier uploads are no part of it."""
    name = "bronze_upload_duration_seconds_bucket"

    def scraped(fast: int, all_of_them: int) -> str:
        return (
            f'{name}{{bronze_outcome="success",bronze_source="vehicles",le="0.5"}} 1000.0\n'
            f'{name}{{bronze_outcome="success",bronze_source="status",le="0.5"}} {fast}\n'
            f'{name}{{bronze_outcome="success",bronze_source="status",le="2.0"}} {all_of_them}\n'
            f'{name}{{bronze_outcome="success",bronze_source="status",le="+Inf"}} {all_of_them}\n'
        )

    before, after = upload_buckets(scraped(100, 100)), upload_buckets(scraped(150, 200))
    assert after == {0.5: 150, 2.0: 200, float("inf"): 200}
    assert bucket_quantile(before, after, 0.5) == 0.5
    assert bucket_quantile(before, after, 0.99) == 2.0


def test_the_limit_writes_rows_of_the_objects_own_schema() -> None:
    source = objects.SOURCE
    batch = Rows(source).batch(b"".join(LINES), key="k", submission_id="s", trace_id="t", first=7, received_us=1)
    assert batch.schema == object_schema(source)
    assert batch.num_rows == len(LINES)
    assert [payload.encode() + b"\n" for payload in batch.column("_payload").to_pylist()] == LINES
    with pytest.raises(pa.ArrowInvalid):
        Rows(source).batch(b'{"operator": 1}\n', key="k", submission_id="s", trace_id="t", first=0, received_us=1)


def test_the_objects_that_are_measured_are_the_services_own() -> None:
    encoded = objects.Making([line.rstrip() for line in LINES]).object(100, 30, objects.BEGIN)
    read = pq.read_table(pa.BufferReader(encoded.body))
    assert read.num_rows == 100
    assert [one.records for one in encoded.contents.submissions] == [30, 30, 30, 10]
    assert encoded.contents.file_path.startswith("bronze/source=status/date=2013-01-01/hour=00/")


# --- the client


@pytest.fixture
def lines(tmp_path: Path) -> str:
    file = tmp_path / "status.ndjson"
    file.write_bytes(b"".join(LINES))
    return str(file)


@contextmanager
def answering(status: int, seen: list[bytes]) -> Iterator[int]:
    """An HTTP/1.1 server that keeps what it reads, and answers in two pieces; its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"submission_id": f"s{len(seen)}"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.flush()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


async def test_the_client_sends_every_line_once_over_its_connections(lines: str) -> None:
    seen: list[bytes] = []
    with answering(202, seen) as port:
        load = Load(ports=[port], path="/", file=lines, records=7, connections=3, passes=2, receipts=True)
        sent = await offer(load)
    assert sorted(seen) == sorted([body for body, _ in bodies(Path(lines), 7)] * 2)
    assert (sent.requests, sent.records, sent.bytes) == (16, 100, 2 * sum(map(len, LINES)))
    assert len(sent.receipts) == 16
    assert 0 < max(sent.latencies_s) <= sent.seconds


async def test_the_client_stops_at_a_refusal_and_says_it(lines: str) -> None:
    with answering(503, []) as port, pytest.raises(Refused, match="503"):
        await offer(Load(ports=[port], path="/", file=lines, records=7, connections=1))


# --- the command and its pages


def test_parts_are_named_by_comma_and_one_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert names("bulk, small") == ["bulk", "small"]
    with pytest.raises(SystemExit):
        main(["bulk,smal"])
    assert "there is no 'smal'; there are bulk, small" in capsys.readouterr().err


def found() -> Iterator[tuple[str, dict[str, Any]]]:
    """As `keep` writes it, of two parts."""
    machine = {"machine": {"cpus": 2, "load_average": [1.0]}, "repeats": 5, "quick": False}
    bulk = Found({"limit": [{"records/s": 2000.0}], "service": [{"records/s": 1000.0}]}, [Target("r", 0.5, least=0.5)])
    yield "bulk", {**machine, **bulk.document()}
    sizes = {
        f"{records} records": [
            {
                "records": float(records),
                "records per submission": float(records),
                "queue bytes per record": 1000.0,
                "bytes per record": each,
            }
        ]
        for records, each in ((1, 5000.0), (10_000, 50.0))
    }
    yield "objects", {**machine, **Found(sizes).document(), "ndjson_bytes_a_record": 200.0}


def test_the_pages_have_a_place_for_every_part_and_what_is_not_measured_stays() -> None:
    """`python -m benchmarks.report` fills docs/performance.md and docs/sizing.md; the text around stays."""
    places = report.rendered(dict(found()))
    pages = [page.read_text() for page in (report.PERFORMANCE, report.SIZING)]
    marked = {mark[2] for page in pages for mark in report._MARKED.finditer(page)}
    assert marked == {*PARTS, "targets", "sizes", "queue"}
    filled = report.filled(pages[0], places)
    assert "| `r` | bulk | 0.5 | ≥ 0.5 | yes |" in filled
    assert "| records/s | 2,000 | 1,000 |" in filled
    lanes = next(mark[0] for mark in report._MARKED.finditer(pages[0]) if mark[2] == "lanes")
    assert lanes in filled
    assert report.filled(filled, places) == filled
    assert not {*PARTS} & {*OTHERS}


def test_objects_are_sized_by_rate_and_flush_age() -> None:
    """Bytes a record lie between what was measured, along the logarithm; an object has the record that begins it."""
    bench = dict(found())
    sizes = report.measured(bench)
    assert [report.bytes_a_record(sizes, n) for n in (1, 100, 10_000, 1_000_000)] == [5000, 2525, 50, 50]
    rows = report.object_sizes(bench)
    assert "| 1 records/s | 1 s | 43,200 | 2 | 9 | 0.4 | 2314% |" in rows
    assert "| 1,000 records/s | 15 s | 5,760 | 15,001 | 750 | 4.32 | 25% |" in rows
    assert "| 1 | 1,000 | 3.6 | 28.8 | 86.4 | 18 |" in report.queue_sizes(bench)
