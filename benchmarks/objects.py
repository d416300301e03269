"""Objects, for who reads them: bytes per record, a week's layout asked by DuckDB, and the writer's options compared."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs
from rich.progress import track
from uuid_utils import uuid7

from benchmarks.rounds import Figures, Found, Runs, interleaved
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, STATE, Options, console, one_line, running, say, stack
from bronze.objects.encoder import Encoded, encode_object
from bronze.objects.file_writer import FileWriter
from bronze.protocol.chain import reconcile
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import AcceptedSubmission, Message, MessageKind, Part, compress
from bronze.records import sources
from local.exporters import Exporters
from local.stack import Stack

SOURCE = sources.built_in()["status"]
LANE = Lane(SOURCE.name, 0, "20130101T000000Z")
BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
MB = 1_000_000

#: Records of an object, and of each submission in it.
SIZES = ((1, 1), (10, 1), (100, 10), (1_000, 100), (10_000, 1_000), (100_000, 1_000), (300_000, 1_000))
#: A week: an object a minute.
OBJECTS, OBJECT_RECORDS = 10_000, 100
OBJECTS_QUICK = 200
PUTS = 8
DAY = BEGIN + timedelta(days=3)
LARGE_RECORDS = 300_000


# --- objects as the service makes them


@dataclass
class Making:
    """Objects of the sample, in its order and from its beginning again at its end."""

    lines: Sequence[bytes]
    _at: int = 0
    _sequence: int = 1

    def object(self, records: int, submission_records: int, moment: datetime) -> Encoded:
        """An object with so many records, whose messages were stored at a moment."""
        return self.encoded(self.messages(records, submission_records, moment))

    def messages(self, records: int, submission_records: int, moment: datetime) -> list[Message]:
        """So many records in submissions of one message each."""
        return [
            self._message(min(submission_records, records - done), moment)
            for done in range(0, records, submission_records)
        ]

    @staticmethod
    def encoded(messages: Sequence[Message]) -> Encoded:
        key = object_key("bronze", LANE, messages[0])
        cut = reconcile(LANE, messages, {})
        return encode_object(SOURCE, LANE, key, cut, f"00-{'4b' * 16}-{'00' * 7}01-01")

    def _message(self, records: int, moment: datetime) -> Message:
        taken = [self.lines[(self._at + n) % len(self.lines)] for n in range(records)]
        self._at += records
        accepted = AcceptedSubmission(
            submission_id=str(uuid7()),
            source=SOURCE.name,
            digest="ab" * 32,
            records=records,
            classification_id=None,
            classification_default=None,
            classification_count=records,
            received_at=(moment + timedelta(microseconds=self._sequence)).isoformat(timespec="microseconds"),
            trace_id=str(uuid7()).replace("-", ""),
            traceparent=f"00-{'4b' * 16}-{'00' * 7}01-01",
        )
        subject = lane_subject(SOURCE.name, 0, accepted.submission_id)
        payload, zstd = compress(b"\n".join(taken))
        headers = Part(accepted, 1, 1, 0, records, MessageKind.LINES, zstd).headers()
        sequence, self._sequence = self._sequence, self._sequence + 1
        stored = f"{moment:%Y-%m-%dT%H:%M:%S}.000000000Z"
        return Message(sequence, subject, stored, headers, payload)


def queued_bytes(message: Message) -> int:
    """What the queue's file has of it: NATS keeps 30 bytes beside subject, headers and payload."""
    headers = len("NATS/1.0\r\n\r\n") + sum(len(f"{k}: {v}\r\n") for k, v in message.headers.items())
    return 30 + len(message.subject) + headers + len(message.payload)


def rows_of(encoded: Encoded) -> pa.Table:
    return pq.read_table(pa.BufferReader(encoded.body))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- bytes per record


def sizes(making: Making) -> Runs:
    """By records of an object: its bytes, and what a record takes in it, against the record's line."""
    line = statistics.mean(len(line) + 1 for line in making.lines)
    found: dict[str, list[Figures]] = {}
    making.object(10, 1, BEGIN)  # what is made at first use is no part of it
    for records, submission_records in SIZES:
        messages = making.messages(records, submission_records, BEGIN)
        began = time.process_time()
        encoded = making.encoded(messages)
        found[f"{records:,} records"] = [
            {
                "records": records,
                "records per submission": submission_records,
                "queue bytes per record": sum(map(queued_bytes, messages)) / records,
                "bytes": len(encoded.body),
                "bytes per record": len(encoded.body) / records,
                "of NDJSON, %": len(encoded.body) / records / line * 100,
                "CPU encode, us per record": (time.process_time() - began) / records * 1e6,
            }
        ]
    return found


# --- a week's layout


def week(making: Making, count: int) -> Iterator[Encoded]:
    """Objects over seven days, in even steps."""
    for number in range(count):
        yield making.object(OBJECT_RECORDS, OBJECT_RECORDS // 4, BEGIN + timedelta(days=7) * number / count)


def queries(table: str, submission: str, classification: str) -> Mapping[str, str]:
    day = f"{DAY:%Y-%m-%d}"
    return {
        "count": f"SELECT count(*) FROM {table}",
        "one day": f"SELECT operator, avg(delay_min) FROM {table} WHERE date = '{day}' GROUP BY operator",
        "one submission": f"SELECT count(*) FROM {table} WHERE _submission_id = '{submission}'",
        "its day known": f"SELECT count(*) FROM {table} WHERE date = '{day}' AND _submission_id = '{submission}'",
        "one run": f"SELECT count(*) FROM {table} WHERE classification_id = '{classification}'",
        "one column": f"SELECT avg(delay_min) FROM {table}",
    }


def over_s3(system: Stack, folder: str, asked: tuple[str, str], known: str) -> Figures:
    """As the README reads the bucket: an Arrow dataset, asked by DuckDB; and one object whose path is known."""
    account = system.account
    s3 = fs.S3FileSystem(
        access_key=account.access_key,
        secret_key=account.secret_key,
        endpoint_override=account.env["AWS_ENDPOINT_URL_S3"],
        region=account.env["AWS_DEFAULT_REGION"],
    )
    opened: dict[str, Any] = {}

    def open_it() -> None:
        opened["status"] = ds.dataset(folder, filesystem=s3, partitioning="hive")

    took = {"list, s": timed(open_it)}
    connection = duckdb.connect()
    connection.register("status", opened["status"])
    for name, query in queries("status", *asked).items():
        took[f"{name}, s"] = timed(partial(connection.execute, query))
    took["its path known, s"] = timed(
        lambda: pq.read_table(known, filesystem=s3, filters=[("_submission_id", "=", asked[0])], partitioning=None)
    )
    return took


def on_disk(folder: Path, asked: tuple[str, str]) -> Figures:
    """The same layout as files, read by DuckDB's own reader."""
    table = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true, hive_types = {{'date': VARCHAR}})"
    connection = duckdb.connect()
    took = {"list, s": timed(lambda: list(folder.rglob("*.parquet")))}
    for name, query in queries(table, *asked).items():
        took[f"{name}, s"] = timed(partial(connection.execute, query))
    return took


def layout(making: Making, options: Options) -> tuple[Runs, Mapping[str, Any]]:
    count = OBJECTS_QUICK if options.quick else OBJECTS
    system = stack("objects", Exporters())
    files = STATE / "objects" / "files"
    bucket = next(server for server in system.servers if server.name == "seaweedfs")
    with running(system, bucket):
        account = system.account
        s3 = boto3.client(
            "s3",
            endpoint_url=account.env["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=account.access_key,
            aws_secret_access_key=account.secret_key,
            region_name=account.env["AWS_DEFAULT_REGION"],
        )

        def put(encoded: Encoded) -> int:
            key = encoded.contents.file_path
            s3.put_object(Bucket=account.bucket, Key=key, Body=encoded.body)
            file = files / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded.body)
            return len(encoded.body)

        say(f"writing a week: {count:,} objects of {OBJECT_RECORDS} records")
        size = 0
        asked, path = ("", ""), ""
        with ThreadPoolExecutor(PUTS) as putting:
            objects = week(making, count)
            for group in track([*range(0, count, PUTS)], "writing", console=console):
                made = list(islice(objects, PUTS))
                size += sum(putting.map(put, made))
                if group <= count / 2 < group + PUTS:  # one of the fourth day
                    contents = made[0].contents
                    asked = (contents.submissions[0].accepted.submission_id, contents.classifications[0])
                    path = f"{account.bucket}/{contents.file_path}"
        root = f"bronze/source={SOURCE.name}"
        runs = interleaved(
            {
                "bucket, Arrow dataset": partial(over_s3, system, f"{account.bucket}/{root}", asked, path),
                "files, DuckDB's reader": partial(on_disk, files / root, asked),
            },
            options.repeats,
            lambda n, variant, f: one_line(n, options.repeats, variant, f, "list, s", "count, s", "one submission, s"),
        )
    return runs, {"objects": count, "records": count * OBJECT_RECORDS, "bytes": size}


# --- the writer's options


#: What is changed, by what it is called in the table.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "no page index": {"write_page_index": False},
    "row groups of 16k": {"row_group_size": 16 * 1024},
    "row groups of 64k": {"row_group_size": 64 * 1024},
    "row groups of 256k": {"row_group_size": 256 * 1024},
    "zstd 3": {"compression_level": 3},
    "zstd 9": {"compression_level": 9},
    "snappy": {"compression": "snappy"},
    "dictionary everywhere": {"use_dictionary": True},
    "no dictionary": {"use_dictionary": False},
    "pages of 128 KiB": {"data_page_size": 128 * 1024},
    "pages of 4k rows": {"max_rows_per_page": 4096},
    "delta encodings": {
        "column_encoding": {
            "_record_index": "DELTA_BINARY_PACKED",
            "classification_id": "DELTA_BYTE_ARRAY",
            "scheduled_at": "DELTA_BINARY_PACKED",
            "departed_at": "DELTA_BINARY_PACKED",
        },
    },
    "Arrow schema too": {"store_schema": True},
    "Bloom filter for runs": {"bloom_filter_options": {"classification_id": True}},
    "sorted by run": {},
    "sorted by vehicle": {},
}
SORTED = {"sorted by run": "classification_id", "sorted by vehicle": "vehicle_id"}


def written(rows: pa.Table, folder: Path, name: str, asked: tuple[str, str]) -> Figures:
    """One large object with an option changed: its size, what writing takes, and what DuckDB takes to ask it."""
    file = folder / f"{name}.parquet"
    began = time.process_time()
    if by := SORTED.get(name):
        rows = rows.sort_by(by)
    writing = FileWriter(rows.schema, **CHANGES[name])
    for batch in rows.to_batches():
        writing.add(batch)
    body, _ = writing.finish({})
    cpu = time.process_time() - began
    file.write_bytes(body)
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    ask = queries(f"read_parquet('{file}')", *asked)
    wanted = {"one submission", "one run", "one column"}
    ms = {f"{k}, ms": timed(partial(connection.execute, query)) * 1000 for k, query in ask.items() if k in wanted}
    every = timed(lambda: connection.execute(f"SELECT max(COLUMNS(*)) FROM read_parquet('{file}')").fetchall())
    return {
        "bytes per record": len(body) / rows.num_rows,
        "CPU write, s": cpu,
        **ms,
        "every column, ms": every * 1000,
    }


def choices(making: Making, options: Options) -> Runs:
    records = LARGE_RECORDS // (10 if options.quick else 1)
    encoded = making.object(records, 1_000, BEGIN)
    rows = rows_of(encoded).replace_schema_metadata(None)
    submission = encoded.contents.submissions[len(encoded.contents.submissions) // 2].accepted.submission_id
    asked = (submission, rows.column("classification_id")[records // 2].as_py())
    folder = STATE / "objects" / "choices"
    folder.mkdir(parents=True, exist_ok=True)
    return interleaved(
        {name: partial(written, rows, folder, name, asked) for name in CHANGES},
        options.repeats,
        lambda n, variant, f: one_line(
            n, options.repeats, variant, f, "bytes per record", "CPU write, s", "one classification, ms"
        ),
    )


def run(options: Options) -> Found:
    lines = status(SAMPLE, say).read_bytes().splitlines()
    making = Making(lines)
    by_size = sizes(making)
    by_reader, notes = layout(making, options)
    by_choice = choices(making, options)
    line = statistics.mean(len(line) + 1 for line in lines)
    return Found({**by_size, **by_reader, **by_choice}, (), {"ndjson_bytes_a_record": line, "week": notes})
