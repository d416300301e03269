"""The reader of columnar bodies, in real child processes: a hostile body is refused within its limits."""

import asyncio
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.api.columnar_reader import ColumnarReaders, SpooledBody
from bronze.api.columnar_worker import EXIT_DISK, ReadJob
from bronze.errors import Refusal, Refused, Unavailable
from bronze.records.columnar_reading import STREAM_END
from bronze.records.media import ColumnarType
from bronze.records.spool import CheckedSubmission
from bronze.settings import Settings
from tests.contract.making import SOURCES, until

MIB = 2**20
GOOD = pa.table({"vehicle_id": [f"N{n}" for n in range(100)], "seats": range(100)})
#: The memory limit of the readers in these tests, and a body whose only value is that large.
MEMORY_BYTES_MAX = 96 * MIB
BOMB = pa.table({"vehicle_id": pa.array(["\0" * MEMORY_BYTES_MAX])})


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def stream(table: pa.Table, compression: str | None = None, batch_rows: int = 50) -> bytes:
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue()


def settings(**chosen: int) -> Settings:
    return Settings().model_copy(update=chosen)


def readers_running(code: str) -> ColumnarReaders:
    """Readers whose children run this code instead."""
    return ColumnarReaders(settings(), command=("-c", code))


async def read(form: ColumnarType, data: bytes, readers: ColumnarReaders | None = None) -> CheckedSubmission:
    body = SpooledBody(form, 2**30)
    try:
        body.write(data)
        return await (readers or ColumnarReaders(settings())).read(SOURCES["vehicles"], body)
    finally:
        body.close()


#: The child processes that exist when a test begins, such as servers of other tests.
EXISTING: set[int] = set()


def children() -> set[int]:
    """The child processes that the test has started."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found - EXISTING


@pytest.fixture(autouse=True)
def _existing_children() -> None:
    EXISTING.clear()
    EXISTING.update(children())


# --- hostile bodies


def many_rows() -> bytes:
    """Twenty million rows in 50 KB, by run-length encoding."""
    ones = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 2 * 10**7), pa.array(["a"]))
    return parquet(pa.table({"vehicle_id": ones}), data_page_size=2**30)


def large_dictionary() -> bytes:
    """A text of half a MB in ten thousand rows, stored once."""
    large = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 10_000), pa.array(["x" * (MIB // 2)]))
    return stream(pa.table({"vehicle_id": large}), batch_rows=10_000)


def out_of_bounds() -> bytes:
    """Texts whose offsets point far beyond their bytes."""
    whole = stream(pa.table({"vehicle_id": ["a" * 7, "b" * 11]}))
    offsets, far = struct.pack("<3i", 0, 7, 18), struct.pack("<3i", 0, 7, 2**30)
    assert whole.count(offsets) == 1
    return whole.replace(offsets, far)


def thrift_garbage() -> bytes:
    footer = os.urandom(200)
    return b"PAR1" + os.urandom(100) + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def corrupt_pages() -> bytes:
    """A valid footer with pages of garbage."""
    whole = parquet(GOOD)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    return whole[:4] + b"\xff" * (len(whole) - footer - 4) + whole[-footer:]


ARROW, PARQUET = ColumnarType.ARROW_STREAM, ColumnarType.PARQUET
COSTLY = (413, "body-too-costly")
UNREADABLE = (400, "unreadable-body")


@pytest.mark.parametrize(
    ("form", "make", "expected", "text"),
    [
        pytest.param(PARQUET, lambda: parquet(BOMB, compression="brotli"), COSTLY, "memory", id="few bytes of many"),
        pytest.param(
            PARQUET,
            lambda: parquet(BOMB, compression="zstd", use_dictionary=False),
            COSTLY,
            "memory",
            id="zstd bomb in a page",
        ),
        pytest.param(ARROW, lambda: stream(BOMB, "zstd"), COSTLY, "memory", id="zstd bomb in a batch"),
        pytest.param(ARROW, large_dictionary, COSTLY, "memory", id="one text ten thousand times"),
        pytest.param(PARQUET, many_rows, COSTLY, "BRONZE_BODY_EXPANSION_MAX", id="endless rows"),
        pytest.param(PARQUET, lambda: b"", (400, "empty-body"), "no record", id="nothing"),
        pytest.param(PARQUET, lambda: os.urandom(1000), UNREADABLE, "magic", id="garbage for Parquet"),
        pytest.param(ARROW, lambda: os.urandom(1000), UNREADABLE, "is complete", id="garbage for Arrow"),
        pytest.param(PARQUET, thrift_garbage, UNREADABLE, "thrift", id="garbage as a footer"),
        pytest.param(PARQUET, corrupt_pages, UNREADABLE, "page header", id="garbage as pages"),
        pytest.param(PARQUET, lambda: parquet(GOOD)[:-40], UNREADABLE, "magic", id="cut Parquet"),
        pytest.param(ARROW, lambda: stream(GOOD)[:-400], UNREADABLE, "is complete", id="cut stream"),
        pytest.param(ARROW, lambda: stream(GOOD)[: -len(STREAM_END)], UNREADABLE, "close the writer", id="no end mark"),
        pytest.param(ARROW, lambda: stream(GOOD) * 2, UNREADABLE, "end-of-stream", id="two streams in one"),
        pytest.param(ARROW, lambda: b"ARROW1\0\0" + stream(GOOD), UNREADABLE, "an Arrow file", id="Arrow file"),
        pytest.param(ARROW, lambda: parquet(GOOD), UNREADABLE, "Content-Type", id="Parquet called Arrow"),
        pytest.param(ARROW, out_of_bounds, UNREADABLE, "offset", id="offsets out of bounds"),
    ],
)
async def test_a_hostile_body_is_refused(
    form: ColumnarType, make: Callable[[], bytes], expected: tuple[int, str], text: str
) -> None:
    """With a documented code, within the limits of memory and time; and the next body is read."""
    readers = ColumnarReaders(settings(columnar_cpu_s_max=1, columnar_memory_bytes_max=MEMORY_BYTES_MAX))
    with pytest.raises(Refused) as refused:
        await read(form, make(), readers)
    assert (refused.value.status, refused.value.code) == expected
    assert text in refused.value.detail
    assert children() == set()
    (await read(PARQUET, parquet(GOOD), readers)).close()


ROWS = 2**31 - 1


def one_value(rows: int) -> pa.Array:
    """A run-end encoded column."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array(["a"]))


def batch(**columns: pa.Array) -> bytes:
    made = pa.record_batch(columns)
    sink = BytesIO()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_batch(made)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("form", "make", "text"),
    [
        (ARROW, lambda: batch(vehicle_id=one_value(ROWS), x=pa.nulls(ROWS)), "BRONZE_BODY_EXPANSION_MAX"),
        (ARROW, lambda: batch(x=pa.nulls(ROWS)), "vehicle_id"),
        (ARROW, lambda: batch(vehicle_id=one_value(2_000_000)), "BRONZE_BODY_EXPANSION_MAX"),
        (
            PARQUET,
            lambda: parquet(pa.table({"vehicle_id": ["a"] * 4_000_000}), row_group_size=2**22),
            "BRONZE_BODY_EXPANSION_MAX",
        ),
        (
            ARROW,
            lambda: batch(
                vehicle_id=pa.array(["a"]), x=pa.ListArray.from_arrays(pa.array([0, ROWS], pa.int32()), pa.nulls(ROWS))
            ),
            "BRONZE_COLUMNAR_",
        ),
        (
            ARROW,
            lambda: batch(vehicle_id=pa.array(["a"]), x=pa.FixedSizeListArray.from_arrays(pa.nulls(ROWS), ROWS)),
            "BRONZE_COLUMNAR_",
        ),
    ],
    ids=["null and run-end encoded", "only null", "run-end encoded", "Parquet", "list of nulls", "fixed list of nulls"],
)
async def test_declared_rows_and_elements_cost_little(form: ColumnarType, make: Callable[[], bytes], text: str) -> None:
    """Columns of one value or of nulls declare billions of rows in some hundred bytes, and so do lists of nulls."""
    body = make()
    start_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(Refused, match=text):
        await read(form, body)
    end_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert end_s.ru_utime + end_s.ru_stime - start_s.ru_utime - start_s.ru_stime < 7


async def test_the_cpu_time_of_a_reader_grows_with_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[ReadJob] = []

    async def note(_: ColumnarReaders, job: ReadJob) -> None:
        jobs.append(job)
        raise Refused(Refusal.EMPTY_BODY, "noted")

    monkeypatch.setattr(ColumnarReaders, "_read", note)
    for size in (100, 10**6, 10**8):
        with pytest.raises(Refused, match="noted"):
            await read(PARQUET, b"x" * size)
    assert [job.cpu_s_max for job in jobs] == [5, 15, 60]
    assert jobs[0].rows_max == 1_000_000 + 250 * 100


@pytest.mark.parametrize("death", ["os.abort()", "os.kill(os.getpid(), 11)", "raise RuntimeError", "print('{')"])
async def test_a_reader_that_dies_is_a_refusal(death: str, capfd: pytest.CaptureFixture[str]) -> None:
    """However the reader ends, the sender learns that the body caused it."""
    with pytest.raises(Refused, match="its reader crashed") as refused:
        await read(PARQUET, parquet(GOOD), readers_running(f"import os; {death}"))
    assert (refused.value.status, refused.value.code) == UNREADABLE


async def test_a_full_disk_is_not_a_refusal() -> None:
    with pytest.raises(OSError, match="disk"):
        await read(PARQUET, parquet(GOOD), readers_running(f"import os; os._exit({EXIT_DISK})"))


# --- readers


#: A reader that waits forever.
ENDLESS = "import signal; signal.pause()"


@pytest.fixture
def all_ended() -> Iterator[None]:
    yield
    assert children() == set()


async def test_a_reader_that_only_waits_is_ended_by_the_time_limit(all_ended: None) -> None:
    readers = ColumnarReaders(settings(columnar_cpu_s_max=1), command=("-c", ENDLESS), wall_per_cpu=0.2)
    with pytest.raises(Refused, match="takes more than") as refused:
        await read(PARQUET, parquet(GOOD), readers)
    assert (refused.value.status, refused.value.code) == COSTLY


async def test_a_cancelled_request_ends_its_reader(all_ended: None) -> None:
    reading = asyncio.create_task(read(PARQUET, parquet(GOOD), readers_running(ENDLESS)))
    await until(lambda: bool(children()))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_the_number_of_readers_is_limited_and_other_requests_wait(all_ended: None) -> None:
    """Up to a time limit; then the answer is a 503, and the sender tries again."""
    readers = ColumnarReaders(settings(columnar_readers_max=1), command=("-c", ENDLESS), turn_wait_s=0.2)
    first = asyncio.create_task(read(PARQUET, parquet(GOOD), readers))
    await until(lambda: len(children()) == 1)
    with pytest.raises(Unavailable) as refused:
        await read(PARQUET, parquet(GOOD), readers)
    assert refused.value.code == "readers-busy"
    assert len(children()) == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_reader_does_not_inherit_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor can `PYTHON*` variables change the code that it runs."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    readers = readers_running(f"import os; open({str(tmp_path / 'env')!r}, 'w').write(str(dict(os.environ)))")
    with pytest.raises(Refused):
        await read(PARQUET, parquet(GOOD), readers)
    assert "AWS" not in (tmp_path / "env").read_text()
