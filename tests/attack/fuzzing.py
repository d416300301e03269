"""`make attack FUZZ=100000 SEED=1`: damaged requests of each format, and then everything in the bucket is compared.

No answer may be a server error other than 503, each has to be a 202 or a problem document, and the bucket has to have
each record of each 202, exactly as it was sent, once, and nothing else.
"""

import hashlib
import http.client
import io
import json
import multiprocessing
import queue
import socket
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq

from bronze.protocol import rejected_records
from local import servers
from local.programs import LOOPBACK, environment
from local.stack import Stack
from tests.attack import mutations

PROCESSES = 2
CONNECTIONS = 5  # per process
ANSWER_S_MAX = 120.0
STORED_S_MAX = 300.0
#: One CSV file per so many requests.
REQUESTS_PER_CSV = 2000
DIGEST_BYTES = 8


def digest(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=DIGEST_BYTES).digest()


@dataclass
class Accepted:
    """What a 202 says, and the digests of the records that were sent, one after the other; None if unknown."""

    records: int
    rejected: int
    sent: bytes | None


@dataclass
class Outcome:
    """What one process of senders saw."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepted: dict[str, Accepted] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class _Connection:
    """A keep-alive connection, opened again if the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def exchange(self, pieces: Sequence[bytes]) -> tuple[int, str, bytes] | None:
        """Status, content type and body of the answer, or None without an answer."""
        if self._socket is None:
            self._socket = socket.create_connection((LOOPBACK, self._port), timeout=ANSWER_S_MAX)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before
                for piece in pieces:
                    self._socket.sendall(piece)
            answer = http.client.HTTPResponse(self._socket)
            answer.begin()
            body = answer.read()
            if answer.will_close:
                self.close()
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        return answer.status, answer.headers.get("content-type", ""), body

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def send_all(port: int, seed: int, numbers: range, outcomes: Any) -> None:
    """Send the requests with these numbers over several connections, in a process of its own."""
    outcome = Outcome()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for part in threads.map(lambda each: _send(port, seed, numbers[each::CONNECTIONS]), range(CONNECTIONS)):
            outcome.answers += part.answers
            outcome.accepted |= part.accepted
            outcome.wrong += part.wrong
    outcomes.put(outcome)
    outcomes.close()


def _send(port: int, seed: int, numbers: Sequence[int]) -> Outcome:
    outcome = Outcome()
    connection = _Connection(port)
    for number in numbers:
        made = mutations.request(seed, number, f"{LOOPBACK}:{port}")
        answer = connection.exchange(made.pieces)
        if answer is None:
            outcome.answers[made.kind, "none"] += 1
            continue
        status, media_type, body = answer
        outcome.answers[made.kind, str(status)] += 1
        if status == 202:
            facts = json.loads(body)
            sent = None if made.records is None else b"".join(map(digest, made.records))
            outcome.accepted[facts["submission_id"]] = Accepted(facts["records"], facts["rejected"], sent)
        elif media_type != "application/problem+json" or (status >= 500 and status != 503):
            outcome.wrong.append(f"request {number} ({made.kind}): {status} {media_type} {body[:200]!r}")
    connection.close()
    return outcome


@dataclass
class Published:
    """What `bronze publish` said of the CSV files: the records per file, as it is named in `_origin`."""

    records: dict[str, int] = field(default_factory=dict)
    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def publish_all(stack: Stack, seed: int, count: int, folder: Path) -> Published:
    """Publish damaged CSV files, one command after the other."""
    published = Published()
    folder.mkdir(parents=True, exist_ok=True)
    env = {**environment(), **stack.simulate.env, "OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}
    for number in range(count):
        file = folder / f"fuzz-{number}.csv"
        file.write_bytes(mutations.csv_file(seed, number))
        command = [servers.executable("bronze"), "publish", "plain", str(file), "--json"]
        if number % 2:
            command += ["--on-invalid", "quarantine"]
        ended = subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=ANSWER_S_MAX)
        published.codes[ended.returncode] += 1
        if "Traceback" in ended.stderr or ended.returncode not in {0, 1, 2}:
            published.wrong.append(f"{file.name}: exit code {ended.returncode}: {ended.stderr[-300:]}")
        if ended.stdout.strip():
            published.records[file.name] = json.loads(ended.stdout.splitlines()[-1])["records"]
    return published


def fuzz(stack: Stack, api_pid: int, count: int, seed: int, usage: Any) -> int:
    """Send everything, compare everything, print it; the exit code."""
    spawn = multiprocessing.get_context("spawn")
    outcomes: Any = spawn.Queue()
    port = stack.ports.api
    senders = [
        spawn.Process(target=send_all, args=(port, seed, range(each, count, PROCESSES), outcomes), daemon=True)
        for each in range(PROCESSES)
    ]
    start_s = time.monotonic()
    before_mib = peak_mib = usage(api_pid)[0]
    outcome = Outcome()
    with ThreadPoolExecutor(1) as threads:
        for sender in senders:
            sender.start()
        publishing = threads.submit(publish_all, stack, seed, max(2, count // REQUESTS_PER_CSV), stack.root / "csv")
        waiting = len(senders)
        while waiting or not publishing.done():
            peak_mib = max(peak_mib, usage(api_pid)[0])
            with suppress(queue.Empty):
                part: Outcome = outcomes.get(timeout=0.1)
                outcome.answers += part.answers
                outcome.accepted |= part.accepted
                outcome.wrong += part.wrong
                waiting -= 1
            assert waiting <= sum(sender.is_alive() for sender in senders) or not outcomes.empty(), "a sender died"
        published = publishing.result()
    seconds = time.monotonic() - start_s
    stored = wait_stored(stack, outcome, published)
    wrong = [*outcome.wrong, *published.wrong, *stored.wrong]
    print(table(outcome))
    print(
        f"{count} requests and {sum(published.codes.values())} CSV files in {seconds:.0f} s "
        f"({count / seconds:.0f}/s); memory of API and readers {before_mib:.0f} MiB, at most {peak_mib:.0f} MiB"
    )
    print(
        f"accepted: {len(outcome.accepted)} submissions, {sum(each.records for each in outcome.accepted.values())} "
        f"records, {sum(each.rejected for each in outcome.accepted.values())} for quarantine; by bronze publish: "
        f"{sum(published.records.values())} records, exit codes {dict(published.codes)}"
    )
    print(f"in the bucket: {stored.rows} rows, {stored.rejected} in quarantine, {stored.objects} objects")
    print(f"wrong: {len(wrong)}")
    for line in wrong[:20]:
        print(f"  {line}")
    return 1 if wrong else 0


def table(outcome: Outcome) -> str:
    kinds = sorted({kind for kind, _ in outcome.answers})
    statuses = sorted({status for _, status in outcome.answers})
    lines = [
        f"| body | {' | '.join(statuses)} |",
        f"|---|{'---|' * len(statuses)}",
        *(f"| {kind} | {' | '.join(str(outcome.answers[kind, each]) for each in statuses)} |" for kind in kinds),
    ]
    return "\n".join(lines)


@dataclass
class Stored:
    """The comparison of the bucket with what was accepted."""

    rows: int = 0
    rejected: int = 0
    objects: int = 0
    wrong: list[str] = field(default_factory=list)


def wait_stored(stack: Stack, outcome: Outcome, published: Published) -> Stored:
    """Compare until everything is stored, within a time."""
    deadline_s = time.monotonic() + STORED_S_MAX
    bucket = _Bucket(stack)
    while True:
        bucket.read_new()
        found = bucket.contents.compare(outcome.accepted, published.records)
        if not found.wrong or time.monotonic() > deadline_s:
            return found
        time.sleep(1)


class Contents:
    """All rows and all rejected records of a bucket, by submission and index."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, dict[int, bytes | None]] = defaultdict(dict)
        self._rejected: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
        self._rows_of_files: Counter[str] = Counter()
        self._of_files: set[str] = set()
        self._twice: list[str] = []
        self._objects = 0

    def add_object(self, body: bytes) -> None:
        self._objects += 1
        columns = ["_submission_id", "_record_index", "_payload", "_origin"]
        for row in pq.ParquetFile(io.BytesIO(body)).read(columns).to_pylist():
            submission, index, payload = row["_submission_id"], row["_record_index"], row["_payload"]
            if (row["_origin"] or "").endswith(".csv"):
                self._of_files.add(submission)
                self._rows_of_files[row["_origin"].rpartition("/")[2]] += 1
            if index in self._rows[submission]:
                self._twice.append(f"{submission}: record {index} is stored twice")
            self._rows[submission][index] = None if payload is None else digest(payload.encode())

    def add_quarantined(self, body: bytes) -> None:
        first_line, records = rejected_records.unpack(body)
        accepted = json.loads(first_line)
        submission = accepted["submission_id"]
        if (accepted.get("origin") or "").endswith(".csv"):
            self._of_files.add(submission)
        for note, record in records:
            if note.index in self._rejected[submission]:
                self._twice.append(f"{submission}: record {note.index} is in quarantine twice")
            self._rejected[submission][note.index] = digest(record)

    def compare(self, accepted: Mapping[str, Accepted], files: Mapping[str, int]) -> Stored:
        """What differs from the answers, and from what `bronze publish` said of its files."""
        wrong = list(self._twice)
        for submission, facts in accepted.items():
            rows, rejected = self._rows.get(submission, {}), self._rejected.get(submission, {})
            counts = len(rows), len(rejected)
            if counts != (facts.records, facts.rejected):
                expected = f"accepted {facts.records} and {facts.rejected}"
                wrong.append(f"{submission}: {counts[0]} rows and {counts[1]} in quarantine, {expected}")
            elif facts.sent is not None:
                found = [rows.get(index) or rejected.get(index) or b"" for index in range(sum(counts))]
                if b"".join(found) != facts.sent:
                    wrong.append(f"{submission}: other records than were sent")
        stored = self._rows.keys() | self._rejected.keys()
        unknown = stored - accepted.keys() - self._of_files
        wrong += [f"{submission}: stored, but nobody got a 202" for submission in unknown]
        rows_of_files = ((name, self._rows_of_files[name], count) for name, count in files.items())
        wrong += [f"{name}: {rows} rows, accepted {count}" for name, rows, count in rows_of_files if rows != count]
        return Stored(sum(map(len, self._rows.values())), sum(map(len, self._rejected.values())), self._objects, wrong)


class _Bucket:
    """Reads each object of the bucket once."""

    def __init__(self, stack: Stack) -> None:
        env: Mapping[str, str] = stack.client_env
        self._name = stack.account.bucket
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )
        self._read: set[str] = set()
        self.contents = Contents()

    def read_new(self) -> None:
        for key in self._keys():
            if key in self._read:
                continue
            self._read.add(key)
            if key.endswith(".parquet"):
                self.contents.add_object(self._body(key))
            elif "/quarantine/" in f"/{key}":
                self.contents.add_quarantined(self._body(key))

    def _keys(self) -> Iterator[str]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._name):
            yield from (item["Key"] for item in page.get("Contents", ()))

    def _body(self, key: str) -> bytes:
        body: bytes = self._s3.get_object(Bucket=self._name, Key=key)["Body"].read()
        return body
