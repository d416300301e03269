"""What one body may cost, and what all bodies may cost together: each bound, by the kind of body that reaches it."""

import asyncio
import gzip
import json
import random
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from bronze.api.body import EXPANSION_FREE_BYTES, UNCOUNTED_BYTES, BodyReader
from bronze.api.budget import Budget
from bronze.api.columnar_reader import ColumnarReaders
from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.errors import Refused, Unavailable
from bronze.protocol.message import decompress, split_records
from bronze.records.json_intake import BLOCK_BYTES, IntakeBounds, JsonIntake
from bronze.records.media import JSON, NDJSON, ColumnarType
from bronze.records.sources import built_in
from bronze.records.spool import CheckedSubmission
from bronze.settings import Settings
from local.machine import limit_s
from tests import factories

MIB = 2**20
SOURCE = built_in()["vehicles"]
RECORD = b'{"vehicle_id":"N14228"}'


class Telemetry:
    """Takes the place of a request's telemetry."""

    records = 0


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


def reader(**settings: Any) -> BodyReader:
    chosen = Settings(**settings)
    return BodyReader(chosen, ColumnarReaders(chosen), Budget(chosen))


async def read(
    bodies: BodyReader,
    stream: AsyncIterator[bytes],
    media_type: str = NDJSON,
    encoding: str = "identity",
    *,
    keep_invalid: bool = False,
) -> CheckedSubmission:
    async def receive() -> Message:
        chunk = await anext(stream, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    telemetry = cast(SubmissionTelemetry, Telemetry())
    return await bodies.read(SOURCE, media_type, encoding, receive, telemetry, keep_invalid=keep_invalid)


async def refusal(bodies: BodyReader, body: bytes, *arguments: str, keep_invalid: bool = False) -> Refused:
    with pytest.raises(Refused) as refused:
        await read(bodies, pieces(body), *arguments, keep_invalid=keep_invalid)
    return refused.value


def distinct(count: int) -> bytes:
    """Records that compress to no less than half."""
    ids = random.Random(1)
    return b"".join(b'{"vehicle_id":"%s"}\n' % ids.randbytes(24).hex().encode() for _ in range(count))


def zstd_bomb(decoded_bytes: int) -> bytes:
    return zstandard.compress(b"\n" * decoded_bytes, 3)


# --- kinds of bodies


@pytest.mark.parametrize(
    ("body", "arguments", "code", "setting"),
    [
        (
            gzip.compress((RECORD + b" " * 1000 + b"\n") * 8192),
            (NDJSON, "gzip"),
            "body-too-costly",
            "BODY_EXPANSION_MAX",
        ),
        (gzip.compress(b"[" + b"1," * (6 * MIB) + b"1]"), (JSON, "gzip"), "body-too-costly", "BODY_EXPANSION_MAX"),
        (zstd_bomb(512 * MIB), (NDJSON, "zstd"), "body-too-costly", "BODY_EXPANSION_MAX"),
        (zstd_bomb(512 * MIB), (ColumnarType.PARQUET, "zstd"), "body-too-costly", "BODY_EXPANSION_MAX"),
        (zstd_bomb(MIB), (NDJSON, "zstd"), "body-too-costly", "BLANK_LINES_MAX"),
        (b" \r\n" * 20_000, (NDJSON,), "body-too-costly", "BLANK_LINES_MAX"),
        (b"[" + b"1," * (6 * MIB) + b"1]", (JSON,), "body-too-costly", "JSON_VALUES_MAX"),
        (b"[" + b"[]," * (4 * MIB) + b"[]]", (JSON,), "body-too-costly", "JSON_VALUES_MAX"),
        (b"[" + b"{}," * (4 * MIB) + b"{}]", (JSON,), "schema-violation", None),
        (b'[{"a":[' + b'{"b":1},' * (MIB) + b"1]}]", (JSON,), "body-too-costly", "JSON_VALUES_MAX"),
        (
            b"\n".join(b'{"vehicle_id":"a","classification_id":"%d"}' % i for i in range(120_000)),
            (NDJSON,),
            "body-too-large",
            "CLASSIFICATIONS_MAX",
        ),
    ],
    ids=[
        "spaces in gzip",
        "numbers in gzip",
        "blank lines in zstd",
        "columnar in zstd",
        "blank lines below the expansion",
        "blank lines",
        "numbers",
        "arrays",
        "objects",
        "objects in a record",
        "classifications",
    ],
)
async def test_a_body_that_costs_too_much_is_refused_early(
    body: bytes, arguments: Sequence[str], code: str, setting: str | None
) -> None:
    """The refusal names the bound, and takes neither much memory nor much time."""
    bodies = reader()
    start_s = time.process_time()
    tracemalloc.start()
    try:
        refused = await refusal(bodies, body, *arguments)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.code == code
    if setting:
        assert refused.members["setting"] == f"BRONZE_{setting}"
        assert f"BRONZE_{setting}" in refused.detail
        assert str(refused.members["limit"]) in refused.detail
    assert peak_bytes < 3 * len(body) + 40 * MIB
    assert time.process_time() - start_s < limit_s(10)
    assert (bodies.budget.memory_bytes, bodies.budget.disk_bytes) == (0, 0)


async def test_as_many_blank_lines_as_records_are_allowed() -> None:
    checked = await read(reader(blank_lines_max=10), pieces((RECORD + b"\n\n") * 1000))
    assert checked.records == 1000
    checked.close()


async def test_a_body_may_expand_as_real_data_does() -> None:
    """The sample's records are a twelfth of their size when they are compressed; identical ones a hundredth."""
    lines = b"".join(b'{"vehicle_id":"N%d","seats":%d,"manufacturer":"BOEING"}\n' % (i, i % 300) for i in range(10**5))
    for encode, encoding in ((gzip.compress, "gzip"), (zstandard.compress, "zstd")):
        checked = await read(reader(), pieces(encode(lines)), NDJSON, encoding)
        assert (checked.records, checked.body_bytes) == (10**5, len(lines))
        checked.close()


async def test_a_small_body_may_expand_without_a_bound() -> None:
    lines = RECORD + b"\n" + b" " * (EXPANSION_FREE_BYTES - len(RECORD) - 1)
    body = zstandard.compress(lines)
    assert len(lines) > 250 * len(body)
    checked = await read(reader(), pieces(body), NDJSON, "zstd")
    assert checked.body_bytes == EXPANSION_FREE_BYTES
    checked.close()


@pytest.mark.parametrize(
    ("record", "count", "setting"),
    [(b"1", 10**6, "REJECTED_RECORDS_MAX"), (b"x" * 100_000, 200, "REJECTED_BYTES_MAX")],
)
async def test_rejected_records_are_bounded(record: bytes, count: int, setting: str) -> None:
    """Their notes are many times larger than they are, and nothing bounds a quarantine."""
    refused = await refusal(reader(), (record + b"\n") * count, keep_invalid=True)
    assert (refused.code, refused.members["setting"]) == ("too-many-rejected", f"BRONZE_{setting}")


async def test_as_many_rejected_records_as_the_bound_are_quarantined() -> None:
    checked = await read(reader(rejected_records_max=5), pieces(RECORD + b"\n1" * 5), keep_invalid=True)
    assert (checked.records, checked.rejected) == (1, 5)
    checked.close()


# --- arrays, piece by piece

_TEXTS = st.text(st.sampled_from('},{"\\[] \n:ä'), max_size=12)
_RECORDS = st.lists(
    st.fixed_dictionaries(
        {"vehicle_id": _TEXTS},
        optional={"x": st.recursive(_TEXTS, lambda nested: st.lists(nested) | st.dictionaries(_TEXTS, nested))},
    ),
    min_size=1,
    max_size=30,
)


@given(_RECORDS, st.sampled_from([(",", ":"), (" , ", " : "), (",\n", ":")]), st.integers(1, 64), st.integers(64, 2048))
def test_an_array_gives_the_same_records_however_it_is_cut(
    records: list[dict[str, Any]], separators: tuple[str, str], block_bytes: int, piece_bytes_max: int
) -> None:
    """Also if what looks like the end of a record is in a string, or deeper in a record."""
    texts = [json.dumps(record, separators=(separators[0], separators[1]), ensure_ascii=False) for record in records]
    body = f"[{separators[0].join(texts)}]".encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bronze.records.json_intake.BLOCK_BYTES", block_bytes)
        patch.setattr("bronze.records.json_intake.PIECE_BYTES_MAX", piece_bytes_max)
        intake = JsonIntake(SOURCE, body_bytes_max=MIB, spool_memory_bytes_max=MIB)
        intake.add_document(body)
        checked = intake.finish()
    accepted = factories.accepted(records=1, classification_id=None, classification_default=None)
    found = [
        record
        for part, payload in checked.parts(accepted)
        for record in split_records(part.kind, decompress(part.headers(), payload))
    ]
    checked.close()
    assert found == [text.encode() for text in texts]


@pytest.mark.parametrize(
    "broken",
    [b"[%s,]", b"[%s", b"[%s]]", b"[%s}]", b"[%s] x", b"[,%s]", b"[%s,,{}]"],
)
def test_an_array_that_is_not_json_is_refused_in_any_piece(broken: bytes) -> None:
    records = b",".join([RECORD] * (3 * BLOCK_BYTES // len(RECORD)))
    intake = JsonIntake(SOURCE, body_bytes_max=MIB, spool_memory_bytes_max=MIB)
    with pytest.raises(Refused) as refused:
        intake.add_document(broken % records)
    intake.close()
    assert refused.value.code == "malformed-json"


def test_a_record_of_many_values_is_accepted_up_to_the_bound() -> None:
    """An array of objects has no bound but its size; one that cannot be cut into pieces has."""
    bounds = IntakeBounds(json_values_max=2 * BLOCK_BYTES)
    flat = b"[" + b",".join([b'{"vehicle_id":"a","seats":1}'] * 2 * BLOCK_BYTES) + b"]"
    nested = b'[{"vehicle_id":"a","x":[' + b",".join([b"{}"] * 3 * BLOCK_BYTES) + b"]}]"
    for body, accepted in ((flat, True), (nested, False)):
        intake = JsonIntake(SOURCE, body_bytes_max=16 * MIB, spool_memory_bytes_max=MIB, bounds=bounds)
        if accepted:
            intake.add_document(body)
        else:
            with pytest.raises(Refused, match="BRONZE_JSON_VALUES_MAX"):
                intake.add_document(body)
        intake.close()


# --- time


async def stalls_after(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    await asyncio.Event().wait()


async def trickles(chunk: bytes, pause_s: float) -> AsyncIterator[bytes]:
    while True:
        yield chunk
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize("media_type", [NDJSON, JSON, *ColumnarType])
@pytest.mark.parametrize(
    ("stream", "settings", "setting"),
    [
        (stalls_after, {"body_stall_s_max": 0.2}, "BODY_STALL_S_MAX"),
        (lambda: stalls_after(RECORD[:5]), {"body_stall_s_max": 0.2}, "BODY_STALL_S_MAX"),
        (lambda: stalls_after((RECORD + b"\n") * 100_000), {"body_stall_s_max": 0.2}, "BODY_STALL_S_MAX"),
        (lambda: trickles(b" ", 0.02), {"body_stall_s_max": 0.2}, "BODY_STALL_S_MAX"),
        (lambda: trickles(b" " * 1024, 0.02), {"body_s_max": 0.2}, "BODY_S_MAX"),
    ],
    ids=["silent", "half", "large half", "slow", "long"],
)
async def test_a_slow_body_is_refused(
    media_type: str, stream: Callable[[], AsyncIterator[bytes]], settings: dict[str, float], setting: str
) -> None:
    bodies = reader(**settings)
    async with asyncio.timeout(limit_s(10)):
        with pytest.raises(Refused) as refused:
            await read(bodies, stream(), media_type)
    assert (refused.value.code, refused.value.status) == ("body-too-slow", 408)
    assert refused.value.members["setting"] == f"BRONZE_{setting}"
    assert (bodies.budget.memory_bytes, bodies.budget.disk_bytes) == (0, 0)


async def test_a_body_at_the_lowest_rate_is_accepted() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield RECORD + b"\n"
            await asyncio.sleep(0.02)

    checked = await read(reader(body_stall_s_max=0.3, body_bytes_per_s_min=100), slowly())
    assert checked.records == 20
    checked.close()


# --- all together


@pytest.mark.parametrize(
    ("media_type", "sent", "setting"),
    [
        (JSON, b"[" + b" " * 9 * MIB, "BODIES_MEMORY_BYTES_MAX"),
        (NDJSON, b" " * (MIB - 1), "BODIES_MEMORY_BYTES_MAX"),
        (ColumnarType.PARQUET, b"x" * 9 * MIB, "BODIES_DISK_BYTES_MAX"),
        (NDJSON, distinct(200_000), "BODIES_DISK_BYTES_MAX"),
    ],
    ids=["document", "piece", "columnar", "spool"],
)
async def test_all_bodies_together_are_bounded(media_type: str, sent: bytes, setting: str) -> None:
    """Bodies whose senders stall fill the bound. Then large ones get a 503, small ones do not, until some are gone."""
    counted = ["BODIES_MEMORY_BYTES_MAX", "BODIES_DISK_BYTES_MAX"].index(setting)
    memory_bytes_max = 2**40 if counted else 16 * MIB
    bodies = reader(bodies_memory_bytes_max=memory_bytes_max, bodies_disk_bytes_max=16 * MIB)
    stalled: list[asyncio.Task[CheckedSubmission]] = []
    try:
        async with asyncio.timeout(limit_s(60)):
            while not any(task.done() for task in stalled):
                assert len(stalled) < 20
                used = bodies.budget.memory_bytes, bodies.budget.disk_bytes
                task = asyncio.create_task(read(bodies, stalls_after(sent), media_type))
                stalled.append(task)
                while (  # noqa: ASYNC110  the budget has no event
                    not task.done() and used[counted] == (bodies.budget.memory_bytes, bodies.budget.disk_bytes)[counted]
                ):
                    await asyncio.sleep(0.01)
            (refused,) = (task for task in stalled if task.done())
            error = refused.exception()
            assert isinstance(error, Unavailable)
            assert (error.code, error.members["setting"]) == ("overloaded", f"BRONZE_{setting}")
            checked = await read(bodies, pieces(RECORD))
            assert checked.records == 1
            checked.close()
    finally:
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
    assert (bodies.budget.memory_bytes, bodies.budget.disk_bytes) == (0, 0)


async def test_a_submission_counts_until_it_is_published() -> None:
    bodies = reader()
    body = distinct(40_000)
    checked = await read(bodies, pieces(body))
    assert bodies.budget.memory_bytes > UNCOUNTED_BYTES
    checked.close()
    assert bodies.budget.memory_bytes == 0


async def test_a_small_body_does_not_wait_for_large_ones() -> None:
    """All threads of large bodies are busy; a small compressed one is checked nevertheless."""
    bodies = reader()
    busy = threading.Event()
    large = [
        asyncio.create_task(bodies._threads.run(busy.wait, small=False)) for _ in range(2 * Settings().body_threads_max)
    ]
    try:
        async with asyncio.timeout(limit_s(10)):
            for keep_invalid in (False, True):
                checked = await read(bodies, pieces(gzip.compress(RECORD)), NDJSON, "gzip", keep_invalid=keep_invalid)
                assert checked.records == 1
                checked.close()
    finally:
        busy.set()
        await asyncio.gather(*large)
