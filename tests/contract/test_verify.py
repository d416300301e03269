"""`bronze verify` on a real catalog and bucket that a consumer has filled: each fault is found by its check."""

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import boto3
import httpx
import msgspec
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import ReadableSpan

from bronze.errors import Outage, Unavailable
from bronze.objects.footer import CONTENT_TYPE, FOOTER_KEY
from bronze.objects.reader import read_contents
from bronze.objects.removals import write_removal
from bronze.protocol.documents import Contents
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import JetStream
from bronze.servers.prometheus import Prometheus
from bronze.servers.trace_store import Span
from bronze.telemetry.signals import VerifyCheck
from bronze.verify.results import CheckResult, Fault, Period, report_shares
from bronze.verify.verification import READS, UNANSWERED_MAX, Verification
from local.servers import S3Account
from tests import factories
from tests.contract.making import Heard, until, vehicle
from tests.contract.test_consumer import Parts, parts

__all__ = ["parts"]

OBJECTS = 3


class Traces:
    """A trace store with the spans that were recorded in this process."""

    name = "memory"

    def __init__(self, spans: Sequence[ReadableSpan]) -> None:
        self.traces: dict[str, list[Span]] = {}
        for span in spans:
            assert span.context is not None
            assert span.start_time is not None
            assert span.end_time is not None
            self.traces.setdefault(f"{span.context.trace_id:032x}", []).append(
                Span(
                    span.name,
                    f"{span.context.span_id:016x}",
                    None,
                    "consumer",
                    {name: str(value) for name, value in (span.attributes or {}).items()},
                    span.start_time / 1e9,
                    (span.end_time - span.start_time) / 1e9,
                )
            )

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        return self.traces.get(trace_id)


@dataclass
class Written:
    """Objects that were written, with their telemetry."""

    parts: Parts
    jetstream: JetStream
    s3: Any
    uploads: Sequence[ReadableSpan]
    traces: Traces
    exemplars: list[dict[str, Any]]

    @property
    def keys(self) -> list[str]:
        return [str((span.attributes or {})["bronze.file_path"]) for span in self.uploads]

    @property
    def trace_ids(self) -> list[str]:
        return [exemplar["labels"]["trace_id"] for exemplar in self.exemplars]

    async def verify(
        self,
        *,
        deep: bool = False,
        period: Period | None = None,
        settle_s: float = 0,
    ) -> Mapping[VerifyCheck, CheckResult]:
        """The results by check. With `settle_s` 0, nothing is waited for."""

        async def answer(request: httpx.Request) -> httpx.Response:
            assert request.url.path == "/api/v1/query_exemplars"
            labels = {"bronze_source": "vehicles", "job": "bronze/consumer"}
            return httpx.Response(200, json={"data": [{"seriesLabels": labels, "exemplars": self.exemplars}]})

        now = dt.datetime.now(dt.UTC)
        hour = Period(now - dt.timedelta(hours=1), now + dt.timedelta(seconds=1))
        async with httpx.AsyncClient(base_url="http://prometheus", transport=httpx.MockTransport(answer)) as client:
            verification = Verification(
                self.parts.bucket,
                Feed(self.jetstream),
                Prometheus(client),
                self.traces,
                self.parts.settings.prefix,
                settle_s=settle_s,
                retry_s=0.05,
            )
            results = await verification.run(period or hour, ["vehicles"], deep=deep)
        assert [result.check for result in results] == list(VerifyCheck)
        return {result.check: result for result in results}

    def replace(self, key: str, body: bytes) -> None:
        """Replace an object by another one, with the same user metadata."""
        metadata = self.s3.head_object(Bucket=self.parts.bucket.name, Key=key)["Metadata"]
        self.s3.put_object(
            Bucket=self.parts.bucket.name, Key=key, Body=body, Metadata=metadata, ContentType=CONTENT_TYPE
        )

    def body(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=self.parts.bucket.name, Key=key)["Body"].read()
        return body

    async def delete_entry(self, key: str) -> None:
        """Delete the catalog entry of an object."""
        feed = Feed(self.jetstream)
        page = await feed.read(await feed.end(), since="2026-01-01T00:00:00Z")
        (listed,) = (listed for listed in page.entries if listed.entry.file_path == key)
        await self.jetstream.api(
            f"STREAM.MSG.DELETE.{page.position.stream}", {"seq": listed.sequence, "no_erase": True}
        )


@pytest_asyncio.fixture
async def written(
    parts: Parts, jetstream: JetStream, s3_account: S3Account, s3_env: dict[str, str], heard: Heard
) -> AsyncIterator[Written]:
    """Three objects of three records each, in one lane."""
    async with parts.running():
        for number in range(OBJECTS):
            await parts.submit(*(vehicle(f"{number}-{record}") for record in range(3)))
            await until(parts.at(number + 1))
    uploads = heard.spans("upload vehicles")
    assert len(uploads) == OBJECTS
    exemplars = [
        {
            "labels": {"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"},
            "value": "0.1",
            "timestamp": (span.end_time or 0) / 1e9,
        }
        for span in uploads
        if span.context
    ]
    yield Written(parts, jetstream, boto3.client("s3"), uploads, Traces(heard.spans()), exemplars)


def faults(results: Mapping[VerifyCheck, CheckResult]) -> dict[VerifyCheck, list[Fault]]:
    return {check: result.faults for check, result in results.items() if result.faults}


async def test_what_is_correct_has_no_fault(written: Written) -> None:
    """Each check has looked at everything, also at every byte."""
    results = await written.verify(deep=True)
    assert faults(results) == {}
    assert {check: result.checked for check, result in results.items()} == {
        VerifyCheck.EXEMPLAR: OBJECTS,
        VerifyCheck.ENTRY: OBJECTS,
        VerifyCheck.CHAIN: OBJECTS - 1,
        VerifyCheck.OBJECT: OBJECTS,
    }
    assert [result.notes for result in results.values()] == [[]] * len(results)


async def test_a_trace_that_was_lost_is_found(written: Written) -> None:
    del written.traces.traces[written.trace_ids[1]]
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.EXEMPLAR}
    (fault,) = found[VerifyCheck.EXEMPLAR]
    assert (fault.trace_id, fault.problem) == (written.trace_ids[1], "trace not found in memory")


async def test_a_trace_without_its_upload_is_found(written: Written) -> None:
    """The trace is there, but the one span that names the object was lost."""
    spans = written.traces.traces[written.trace_ids[1]]
    spans[:] = [span for span in spans if span.name != "upload vehicles"]
    (fault,) = faults(await written.verify())[VerifyCheck.EXEMPLAR]
    assert "not that of the upload" in fault.problem


async def test_an_object_that_was_deleted_is_found(written: Written) -> None:
    """By its exemplar and by its entry; not if a removal record explains it."""
    key = written.keys[1]
    contents = await read_contents(written.parts.bucket, key)
    assert contents is not None
    written.s3.delete_object(Bucket=written.parts.bucket.name, Key=key)
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.EXEMPLAR, VerifyCheck.ENTRY}
    assert {(fault.file_path, fault.problem) for (fault,) in found.values()} == {(key, "it is not in the bucket")}
    await write_removal(written.parts.bucket, written.parts.settings.prefix, factories.removal(contents))
    results = await written.verify()
    assert faults(results) == {}
    assert [result.removed for result in results.values()] == [1, 1, 0, 0]


@pytest.mark.parametrize("with_footer", [True, False], ids=["footer of the original", "footer of its own"])
async def test_a_row_too_few_is_found(written: Written, with_footer: bool) -> None:  # noqa: FBT001
    """By Parquet's own number of rows, even if Bronze's footer still says the number of the entry."""
    key = written.keys[1]
    table = pq.read_table(BytesIO(written.body(key)))
    shorter = table.slice(0, table.num_rows - 1)
    if not with_footer:
        contents = msgspec.json.decode(table.schema.metadata[FOOTER_KEY], type=Contents)
        footer = msgspec.json.encode(msgspec.structs.replace(contents, records=2))
        shorter = shorter.replace_schema_metadata({**table.schema.metadata, FOOTER_KEY: footer})
    sink = BytesIO()
    pq.write_table(shorter, sink)
    written.replace(key, sink.getvalue())
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.EXEMPLAR, VerifyCheck.ENTRY}
    assert {fault.file_path for (fault,) in found.values()} == {key}
    problems = {check: fault.problem for check, (fault,) in found.items()}
    assert problems[VerifyCheck.EXEMPLAR] == "it has 2 rows, its span says 3"
    assert problems[VerifyCheck.ENTRY] == (
        "it has 2 rows, its entry says 3" if with_footer else "its footer says 2 rows, its entry 3"
    )


async def test_an_altered_byte_is_found_by_deep_alone(written: Written) -> None:
    """In a page, where no count changes."""
    key = written.keys[1]
    body = bytearray(written.body(key))
    column = pq.read_metadata(BytesIO(body)).row_group(0).column(0)
    body[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    written.replace(key, bytes(body))
    assert faults(await written.verify()) == {}
    found = faults(await written.verify(deep=True))
    assert found.keys() == {VerifyCheck.ENTRY}
    (fault,) = found[VerifyCheck.ENTRY]
    assert (fault.file_path, "SHA-256" in fault.problem) == (key, True)


async def test_an_object_that_has_another_size_is_found(written: Written) -> None:
    """The same rows, written again by somebody else: the entries' totals give the size."""
    key = written.keys[1]
    table = pq.read_table(BytesIO(written.body(key)))
    sink = BytesIO()
    pq.write_table(table, sink, compression="none")
    written.replace(key, sink.getvalue())
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.ENTRY}
    assert "bytes, by the totals of its entry" in found[VerifyCheck.ENTRY][0].problem


async def test_a_damaged_object_with_a_removal_record_is_correct(written: Written) -> None:
    """Its loss is acknowledged, and what is left of it is still in the bucket, readable or not."""
    key, readable = written.keys[1:]
    prefix = written.parts.settings.prefix
    for lost in (key, readable):
        contents = await read_contents(written.parts.bucket, lost)
        assert contents is not None
        size = len(written.body(lost))
        await write_removal(written.parts.bucket, prefix, factories.removal(contents, bytes=size))
    assert all(result.removed == 0 for result in (await written.verify()).values())  # nothing is damaged yet
    written.replace(key, b"damaged")
    sink = BytesIO()
    pq.write_table(pq.read_table(BytesIO(written.body(readable))), sink, compression="none")
    written.replace(readable, sink.getvalue())
    results = await written.verify()
    assert faults(results) == {}
    assert [result.removed for result in results.values()] == [1, 2, 0, 0]


async def test_an_object_without_a_recorded_sha_256_is_decoded(written: Written) -> None:
    """Somebody copied it without its user metadata."""
    key = written.keys[1]
    written.s3.put_object(Bucket=written.parts.bucket.name, Key=key, Body=written.body(key))
    results = await written.verify(deep=True)
    assert faults(results) == {}
    assert results[VerifyCheck.ENTRY].notes == ["1 object without a recorded SHA-256: pages were decoded instead"]


async def test_a_catalog_entry_that_is_missing_is_found(written: Written) -> None:
    """By the gap in its lane, by the object that nothing names, and by the exemplar."""
    key, following = written.keys[1:]
    await written.delete_entry(key)
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.EXEMPLAR, VerifyCheck.CHAIN, VerifyCheck.OBJECT}
    assert found[VerifyCheck.OBJECT][0].file_path == key
    assert found[VerifyCheck.EXEMPLAR][0].problem == "no entry in the catalog names it"
    (gap,) = found[VerifyCheck.CHAIN]
    assert gap.file_path == following
    assert gap.problem.startswith("an entry is missing: the entry before it ends with message 1, it begins with 3")


async def test_messages_with_a_removal_record_are_no_gap(written: Written) -> None:
    """A rebuilt catalog has no entry for them: their object is unknown."""
    key = written.keys[1]
    contents = await read_contents(written.parts.bucket, key)
    assert contents is not None
    unknown = factories.removal(contents, file_path=None, entry=None, identities=[], records=None)
    await write_removal(written.parts.bucket, written.parts.settings.prefix, unknown)
    await written.delete_entry(key)
    results = await written.verify()
    assert faults(results).get(VerifyCheck.CHAIN) is None
    assert results[VerifyCheck.CHAIN].removed == 1


async def test_the_last_catalog_entry_that_is_missing_is_found(written: Written) -> None:
    """No gap shows it: only its object does."""
    await written.delete_entry(written.keys[-1])
    found = faults(await written.verify())
    assert found.keys() == {VerifyCheck.EXEMPLAR, VerifyCheck.OBJECT}
    assert found[VerifyCheck.OBJECT][0].file_path == written.keys[-1]


async def test_a_trace_that_is_late_is_waited_for(written: Written) -> None:
    """An upload of a moment ago: its spans are still in the collector."""
    late = written.trace_ids[1]
    spans = written.traces.traces.pop(late)
    asked = 0
    trace = written.traces.trace

    async def arriving(trace_id: str) -> Sequence[Span] | None:
        nonlocal asked
        asked += trace_id == late
        return spans if trace_id == late and asked > 2 else await trace(trace_id)

    written.traces.trace = arriving  # type: ignore[method-assign]
    assert faults(await written.verify(settle_s=60)) == {}
    assert asked == 3


async def test_objects_of_a_period_within_an_hour_are_checked(written: Written) -> None:
    """Listing begins with the hour of the period, which has all objects here."""
    now = dt.datetime.now(dt.UTC)
    results = await written.verify(period=Period(now - dt.timedelta(minutes=2), now))
    assert [result.checked for result in results.values()] == [OBJECTS, OBJECTS, OBJECTS - 1, OBJECTS]


async def test_only_entries_of_the_period_have_to_follow_one_another(written: Written) -> None:
    """An entry is missing, but was before the period: the entry after it is not of the period."""
    await written.delete_entry(written.keys[1])
    now = dt.datetime.now(dt.UTC)
    period = Period(now, now + dt.timedelta(seconds=1))
    assert (await written.verify(period=period))[VerifyCheck.CHAIN].checked == 0


async def test_an_exemplar_that_the_trace_store_cannot_look_up_is_counted(written: Written) -> None:
    """One error of the trace store does not end the verification, and is neither correct nor a fault."""
    of = written.traces.trace

    async def failing(trace_id: str) -> Sequence[Span] | None:
        if trace_id == written.trace_ids[1]:
            raise Unavailable(Outage.UNAVAILABLE, "503")
        return await of(trace_id)

    written.traces.trace = failing  # type: ignore[method-assign]
    result = (await written.verify())[VerifyCheck.EXEMPLAR]
    assert (result.checked, result.not_looked_up, result.faults, result.share) == (OBJECTS - 1, 1, [], 1)
    assert result.notes == ["1 exemplar not looked up, since the trace store failed: 503"]


@pytest.mark.parametrize("exemplars", [1, 11 * OBJECTS])
async def test_a_trace_store_that_looks_up_nothing_is_unavailable(written: Written, exemplars: int) -> None:
    """The verification ends after some errors, and with the only one."""
    asked = 0

    async def failing(trace_id: str) -> Sequence[Span] | None:
        nonlocal asked
        asked += 1
        raise Unavailable(Outage.UNAVAILABLE, "503")

    (first, *_) = written.exemplars
    labels = first["labels"]
    written.exemplars[:] = [{**first, "labels": {**labels, "span_id": f"{number:016x}"}} for number in range(exemplars)]
    written.traces.trace = failing  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="503"):
        await written.verify()
    assert asked <= UNANSWERED_MAX + READS


async def test_a_period_without_objects_checks_nothing(written: Written) -> None:
    """Neither exemplars nor entries of other times are looked at, and no share is claimed."""
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    results = await written.verify(period=Period(now - 2 * day, now - day))
    assert [results[check].checked for check in (VerifyCheck.EXEMPLAR, VerifyCheck.ENTRY)] == [0, 0]
    assert results[VerifyCheck.EXEMPLAR].share is None


async def test_shares_are_reported(written: Written, heard: Heard) -> None:
    """One of three traces is lost. A check without anything to check reports nothing."""
    del written.traces.traces[written.trace_ids[1]]
    results = await written.verify()
    results[VerifyCheck.CHAIN].checked = 0
    report_shares(heard.telemetry.instruments, list(results.values()), 1_800_000_000)
    shares = {
        point.attributes["bronze.verify.check"]: round(point.value, 3) for point in heard.points("bronze.verify.share")
    }
    assert shares == {"exemplar": 0.667, "entry": 1, "object": 1}
    assert {point.value for point in heard.points("bronze.verify.last_run.time")} == {1_800_000_000}
