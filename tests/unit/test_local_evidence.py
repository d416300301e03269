import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from local.evidence import SOURCES, Evidence, Rows, Tempo, Trace, Zipkin, payloads, sample_file, show, source_of

KEY = "bronze/source=status/date=2026-01-02/hour=03/e-0-000000000001.parquet"
COUNTS = dict.fromkeys(SOURCES, 2)
GOOD = Evidence(
    records_sent=COUNTS,
    records_accepted=COUNTS,
    records_stored=COUNTS,
    rows_read_back=COUNTS,
    payloads_equal=True,
    duplicates=0,
    uploads_success=4,
    mean_upload_duration_s=0.01,
    p95_delivery_s=1.2,
    prometheus_targets_up=5,
    exemplar_trace_id="ab" * 16,
    trace_spans=6,
    trace_services=("api", "consumer", "publisher"),
    file_path=KEY,
    file_path_in_trace=KEY,
    url_trace="http://127.0.0.1/zipkin/traces/" + "ab" * 16,
    verified={"exemplar": 3, "entry": 4, "chain": 0, "object": 4},
    verify_faults={"exemplar": 0, "entry": 0, "chain": 0, "object": 0},
)


def test_without_a_fleet_the_publisher_needs_no_scrape() -> None:
    alone = replace(GOOD, prometheus_targets=("api", "consumer", "canary", "table"), prometheus_targets_up=4)
    assert alone.claims()["Prometheus scrapes api, consumer, canary, table"] is True
    assert not replace(alone, prometheus_targets_up=2).holds()


def test_records_of_others_leave_the_ledger_unchecked() -> None:
    """It counts them, too: it is not known whether it is right about the sample. All the rest is checked."""
    more = replace(GOOD, records_accepted=COUNTS | {"status": 3}, rows_of_others=1)
    not_checked = {claim: holds for claim, holds in more.claims().items() if holds is not True}
    assert not_checked == {
        "the ledger in Prometheus has as many records accepted and stored": "not checked: others sent records meanwhile"
    }
    assert more.holds()


def test_good_evidence_holds() -> None:
    assert set(GOOD.claims().values()) == {True}
    assert GOOD.holds()


@pytest.mark.parametrize(
    "flaw",
    [
        {"records_accepted": COUNTS | {"status": 1}},
        {"records_stored": COUNTS | {"status": 3}},
        {"rows_read_back": {k: v for k, v in COUNTS.items() if k != "failures"}},
        # equal in total, yet not for every source
        {"records_stored": COUNTS | {"status": 1, "results": 3}},
        {"payloads_equal": False},
        {"duplicates": 1},
        {"duplicates": None},
        {"uploads_success": 0},
        {"p95_delivery_s": None},
        {"prometheus_targets_up": 3},
        {"exemplar_trace_id": None},
        {"verified": {"exemplar": 0, "entry": 4, "chain": 0, "object": 4}},
        {"verified": {}, "verify_faults": {}},
        {"verify_faults": {"exemplar": 0, "entry": 0, "chain": 1, "object": 0}},
        {"trace_services": ("api", "publisher")},
        {"file_path_in_trace": None},
        {"file_path": None, "file_path_in_trace": None},
        {"file_path_in_trace": KEY.replace("status", "results")},
    ],
)
def test_each_flaw_breaks_one_claim(flaw: dict[str, object]) -> None:
    """No claim is decoration: each figure can fail one."""
    claims = replace(GOOD, **flaw).claims()  # type: ignore[arg-type]
    assert list(claims.values()).count(False) == 1


def test_evidence_of_nothing_holds_nowhere() -> None:
    """Figures that were never taken prove nothing."""
    assert not any(Evidence({}).claims().values())


def test_document() -> None:
    """Counts carry their total beside the sources, and all of it is JSON."""
    document = json.loads(json.dumps(GOOD.document()))
    assert document["records_sent"] == {"total": 8, **COUNTS}
    assert document["trace_services"] == ["api", "consumer", "publisher"]


def objects(rows: list[tuple[str, int, str]]) -> dict[str, pa.Table]:
    table = pa.Table.from_pylist(
        [{"_submission_id": s, "_record_index": i, "_trace_id": f"t-{s}", "_payload": p} for s, i, p in rows]
    )
    return {KEY: table}


def test_what_is_shown_is_rounded() -> None:
    """The screen shows milliseconds; the document keeps all digits."""
    evidence = replace(GOOD, mean_upload_duration_s=0.02101597599903471)
    output = io.StringIO()
    assert show(Console(file=output), evidence, None)
    assert re.search(r"mean_upload_duration_s +0\.021\n", output.getvalue())
    assert evidence.document()["mean_upload_duration_s"] == 0.02101597599903471


def test_rows_read_back() -> None:
    """Rows of our submissions are counted by source, by payload and by position; those of others are not."""
    rows = Rows.of(objects([("a", 0, "x"), ("a", 1, "x"), ("a", 1, "x"), ("other", 0, "y")]), frozenset({"a"}))
    assert rows.others == 1
    assert rows.by_source == {"status": 3}
    assert rows.duplicates == 1
    assert rows.payloads["status"] == Counter({hashlib.sha256(b"x").digest(): 3})
    assert rows.keys_of_trace == {"t-a": [KEY]}


def test_payloads_are_a_multiset(tmp_path: Path) -> None:
    """Equal records count as often as they occur; blank lines are no records."""
    file = tmp_path / "f.ndjson"
    file.write_bytes(b'{"a":1}\n\n{"a":1}\n{"b":"\xc3\xa9"}')
    assert sorted(payloads(file).values()) == [1, 2]


def test_sample_is_there() -> None:
    """The sample that the evidence is made with is whole: every source, 5,000 records at least, below 1 MB."""
    counts = {source: payloads(sample_file(source)).total() for source in SOURCES}
    assert min(counts.values()) > 0
    assert sum(counts.values()) >= 5000
    assert sum(sample_file(source).stat().st_size for source in SOURCES) < 1_000_000


ZIPKIN = [
    {"name": "post /v1/ingest/status", "localEndpoint": {"serviceName": "publisher"}},
    {"name": "post /v1/ingest/status", "localEndpoint": {"serviceName": "api"}},
    {"name": "upload status", "localEndpoint": {"serviceName": "consumer"}, "tags": {"bronze.file_path": KEY}},
]


def resource(service: str, **span: object) -> dict[str, object]:
    attributes = [{"key": "service.name", "value": {"stringValue": service}}]
    return {"resource": {"attributes": attributes}, "scopeSpans": [{"scope": {}, "spans": [span]}]}


TEMPO = {
    "trace": {
        "resourceSpans": [
            resource("publisher", name="POST"),
            resource("api", name="POST /v1/ingest/{source}", attributes=[{"key": "n", "value": {"intValue": "1"}}]),
            resource(
                "consumer",
                name="upload status",
                attributes=[{"key": "bronze.file_path", "value": {"stringValue": KEY}}],
            ),
        ]
    }
}


@pytest.mark.parametrize("trace", [Zipkin.parse(ZIPKIN), Tempo.parse(TEMPO)], ids=["zipkin", "tempo"])
def test_trace(trace: Trace) -> None:
    """The object's path is the upload span's, whichever store tells."""
    assert trace == Trace(3, ("api", "consumer", "publisher"), KEY)


def test_whole_trace() -> None:
    """A trace is whole when all three services and the path are there."""
    assert Zipkin.parse(ZIPKIN).whole
    assert not Zipkin.parse(ZIPKIN[:2]).whole
    assert not Zipkin.parse([ZIPKIN[0], ZIPKIN[2]]).whole
    assert Tempo.parse({"trace": {}}) == Trace()  # not there yet


@pytest.mark.parametrize(
    ("elsewhere", "reason", "count"),
    [
        ({"traces_exporters": ("otlp-http", "file")}, "not checked: traces go to otlp-http, file", 3),
        ({"metrics_exporters": ("otlp-grpc",)}, "not checked: metrics go to otlp-grpc", 3),
    ],
)
def test_what_goes_elsewhere_is_not_checked(elsewhere: dict[str, tuple[str, ...]], reason: str, count: int) -> None:
    """Claims about a signal that nobody here sees are neither kept nor broken, whatever the figures; the rest is."""
    blind: dict[str, object] = {
        "trace_spans": 0,
        "file_path_in_trace": None,
        "uploads_success": None,
        "records_stored": {},
    }
    seen = replace(GOOD, **elsewhere)  # type: ignore[arg-type]
    assert list(seen.claims().values()).count(reason) == count
    assert seen.holds()
    assert not replace(seen, **blind).holds()  # type: ignore[arg-type]
    assert not replace(seen, duplicates=1).holds()
    assert list(replace(seen, **blind).claims().values()).count(reason) == count  # type: ignore[arg-type]


def test_source_of_a_key() -> None:
    assert source_of(KEY) == "status"
