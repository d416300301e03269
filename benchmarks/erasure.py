"""Erasure: one person out of a million rows, with a command that is killed again and again until one is not."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPConnection
from io import BytesIO
from typing import Any

import boto3
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.rounds import Figures, Found, Target
from benchmarks.stand import Feed, Options, running, say, stack
from local.exporters import Exporters
from local.programs import LOOPBACK
from local.stack import Stack

#: Submissions, and records in each: a million in all. One submission of so many has rows of the person.
SUBMISSIONS, RECORDS, EVERY = 1_000, 1_000, 5
QUICK = 50  # so much less
KILLS = 50
PERSON = "2013-02-08-UA-1018-EWR-IAH"
SEED = 7
STORED_S_MAX = 1_800.0
#: Small objects: 250 of them.
ROLES = {
    "BRONZE_OBJECT_MESSAGES_MAX": "4",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}
#: The least and the most that a command works before it is killed, after it has connected.
LEAST_S, MOST_S = 0.1, 3.0


@dataclass(frozen=True)
class Bench:
    """What runs, and where its API is."""

    stack: Stack
    api_port: int


@contextmanager
def started() -> Iterator[Bench]:
    """Queue, bucket, API and consumer, without telemetry."""
    made = stack("erasure", Exporters())
    with ExitStack() as stopping:
        processes = dict(stopping.enter_context(running(made, *made.stores)))
        roles = (replace(role, env={**role.env, **ROLES}) for role in made.roles)
        processes.update(stopping.enter_context(running(made, *roles)))
        yield Bench(made, processes["api"].program.ports["http"])


def body(number: int) -> bytes:
    """The records of a submission: of ten flights, in some of them a row of the person."""
    record = {"operator": "UA", "origin": "EWR", "destination": "IAH", "scheduled_at": "2013-02-08T10:00:00Z"}
    ids = [f"flight-{number}-{index % 10}" for index in range(RECORDS)]
    if number % EVERY == 0:
        ids[number % RECORDS] = PERSON
    return b"\n".join(
        json.dumps(record | {"run_number": index, "classification_id": one}).encode() for index, one in enumerate(ids)
    )


def fill(bench: Bench, submissions: int) -> None:
    with Feed(bench.stack.queue_options) as feed:
        send(bench, submissions)
        feed.until(0, submissions * RECORDS, STORED_S_MAX)


def send(bench: Bench, submissions: int) -> None:
    http = HTTPConnection(LOOPBACK, bench.api_port, timeout=60)
    for number in range(submissions):
        http.request("POST", "/v1/ingest/status", body(number), {"Content-Type": "application/x-ndjson"})
        answer = http.getresponse()
        said = answer.read()
        if answer.status != HTTPStatus.ACCEPTED:
            raise RuntimeError(f"{answer.status}: {said.decode()}")
    http.close()


def command(bench: Bench, *words: str) -> "subprocess.Popen[str]":
    env = {**os.environ, **bench.stack.client_env, **bench.stack.queue_env("admin")}
    given = [sys.executable, "-m", "bronze", "erase", *words, "--classification-id", PERSON]
    return subprocess.Popen(given, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a command printed as JSON, at its end. Raises `RuntimeError` with what it said if it failed."""
    out, error = process.communicate()
    if process.returncode:
        raise RuntimeError(error)
    found: dict[str, Any] = json.loads(out)
    return found


def rows(bench: Bench) -> Iterator[tuple[str, int, int]]:
    """Of each object, in order: a digest of all columns of the rows of others, their number, and that of the person."""
    env = bench.stack.client_env
    s3 = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="bronze", Prefix="bronze/source=status/"):
        for item in page.get("Contents", []):
            table = pq.read_table(BytesIO(s3.get_object(Bucket="bronze", Key=item["Key"])["Body"].read()))
            others = table.filter(pc.not_equal(table["classification_id"], PERSON)).combine_chunks()
            digest = hashlib.sha256(repr(others.to_pydict()).encode()).hexdigest()
            yield f"{item['Key']} {digest}", others.num_rows, table.num_rows - others.num_rows


def killed(bench: Bench, rng: random.Random) -> int:
    """Start the command, and kill it after a while. Returns its exit code."""
    process = command(bench, "--yes", "--by", "bench")
    if process.stderr:
        process.stderr.readline()  # it says what it acts on when it has connected
    try:
        process.wait(rng.uniform(LEAST_S, MOST_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


def run(options: Options) -> Found:
    less = QUICK if options.quick else 1
    rng = random.Random(SEED)  # noqa: S311  a test has to be repeatable
    with started() as bench:
        say(f"storing {SUBMISSIONS // less * RECORDS:,} rows")
        fill(bench, SUBMISSIONS // less)
        before = list(rows(bench))
        began = time.monotonic()
        found = finished(command(bench, "--dry-run", "--json", "--by", "bench"))
        dry_s = time.monotonic() - began
        say(f"{found['rows']} rows of the person in {len(found['objects'])} of {len(before)} objects, {dry_s:.1f} s")
        began, deaths = time.monotonic(), 0
        for _ in range(KILLS // less):
            deaths += killed(bench, rng) == -signal.SIGKILL
        killed_s = time.monotonic() - began
        say(f"killed {deaths} times, {killed_s:.1f} s")
        began = time.monotonic()
        proof = finished(command(bench, "--yes", "--json", "--by", "bench"))
        last_s = time.monotonic() - began
        after = list(rows(bench))
    return Found(
        {"erasure": [_figures(before, after, found, proof, dry_s, killed_s, last_s)]},
        _targets(before, after, deaths, less),
    )


def _figures(
    before: list[tuple[str, int, int]],
    after: list[tuple[str, int, int]],
    found: Mapping[str, list[str]],
    proof: Mapping[str, list[Mapping[str, int]]],
    *seconds: float,
) -> Figures:
    dry_s, killed_s, last_s = seconds
    return {
        "rows": sum(others + of_person for _, others, of_person in before),
        "rows of the person": sum(of_person for *_, of_person in before),
        "objects": len(before),
        "objects rewritten": len(proof["objects"]),
        "objects found by the dry run": len(found["objects"]),
        "dry run, s": dry_s,
        "killed runs, s": killed_s,
        "last run, s": last_s,
        "rows left": sum(of_person for *_, of_person in after),
    }


def _targets(
    before: list[tuple[str, int, int]],
    after: list[tuple[str, int, int]],
    deaths: int,
    less: int,
) -> tuple[Target, ...]:
    changed = sum(one[:2] != other[:2] for one, other in zip(before, after, strict=True))
    return (
        Target("objects_with_other_rows_changed", changed, most=0),
        Target("rows_left", sum(of_person for *_, of_person in after), most=0),
        Target("kills", deaths, least=KILLS // less),
    )
