"""The Silver example is killed again and again, and then has exactly the rows of the bucket."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from local.builds import REPOSITORY
from local.machine import limit_s
from tests.system.blackbox import System, ndjson, until
from tests.system.test_several_lanes import assert_ended, bronze

EXAMPLE = REPOSITORY / "examples" / "silver.py"
#: A kill comes so long after the start of the program; its start alone takes about one second.
KILL_S_MIN, KILL_S_MAX = 0.2, 3.0
#: What arrives meanwhile: so many seconds are between two rounds of submissions.
REST_S = 0.05
SOURCES = ("results", "failures")
NOT_THERE = "is not in the bucket"


def records(number: int) -> dict[str, list[bytes]]:
    """Submissions of a number, by source: two results, one of which has two failures, and one failure without one."""
    result = {"arrived_at": "2026-11-29T10:00:00Z", "duration_min": 5, "vehicle_id": f"v{number}"}
    failure = {"reason": "late", "failed_on": "2026-11-29", "detail": str(number)}
    made: dict[str, list[dict[str, Any]]] = {
        "results": [{"classification_id": f"{number}-{part}", **result} for part in (0, 1)],
        "failures": [{"classification_id": f"{number}-{part}", **failure} for part in (0, 0, 2)],
    }
    return {source: [json.dumps(record).encode() for record in items] for source, items in made.items()}


class Load:
    """Clients that send until they are stopped. While nothing answers, they try again under the same key."""

    def __init__(self, system: System, mark: str) -> None:
        self._system, self._mark = system, mark
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.ids: list[str] = []

    @contextmanager
    def running(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()

    def _send(self) -> None:
        for number in count():
            for source, lines in records(number).items():
                while not (accepted := self._accepted(source, ndjson(lines), f"{self._mark}-{source}-{number}")):
                    time.sleep(0.05)
                self.ids.append(accepted)
            if self._enough.wait(REST_S):
                return

    def _accepted(self, source: str, body: bytes, key: str) -> str | None:
        """The id of a submission; None if it was not accepted, or if nobody knows."""
        try:
            answer = self._system.post(source, body, Idempotency_Key=key)
        except httpx.TransportError:
            return None
        found: str | None = answer.json()["submission_id"] if answer.status_code == 202 else None
        return found

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()


def rows(database: Path, query: str) -> Counter[tuple[Any, ...]]:
    with duckdb.connect(str(database), read_only=True) as db:
        return Counter(db.execute(query).fetchall())


def expected(system: System) -> dict[str, Counter[tuple[Any, ...]]]:
    """The rows of the bucket, by the key of each."""
    return {
        source: Counter(
            (row["file_path"], row["_submission_id"], row["_record_index"], row["classification_id"])
            for row in system.rows(source)
        )
        for source in SOURCES
    }


def silver(system: System, database: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLE), str(database), *arguments],
        env={**system.client_env, "BRONZE_API_URL": system.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(600)
def test_the_silver_example_has_exactly_the_rows_of_the_bucket(branch: System, mark: str, tmp_path: Path) -> None:
    """Although it is killed 20 times while records arrive; in between the API is killed, the number of lanes changes,
    an object is removed, the catalog is rebuilt, and the queue restarts.
    """
    seed = int(os.environ.get("BRONZE_SILVER_SEED", "1"))
    choices = random.Random(seed)
    database = tmp_path / "silver.duckdb"
    lanes = 1
    removed: list[str] = []

    def roles() -> Sequence[Any]:
        number = {"BRONZE_LANES": str(lanes)}
        return branch.role("api", **number), branch.role("consumer", **number)

    def killed(times: int) -> None:
        for _ in range(times):
            program = silver(branch, database)
            time.sleep(choices.uniform(KILL_S_MIN, KILL_S_MAX))
            program.kill()
            _, errors = program.communicate()
            # it ends by itself only if an object was deleted and nobody has said so yet
            assert program.returncode == -signal.SIGKILL or NOT_THERE in errors, errors

    def is_stored(submission_id: str) -> bool:
        return bool(branch.get(f"/v1/submissions/{submission_id}").json()["status"] != "accepted")

    def remove() -> None:
        """Remove an object as an operator does who cannot restore it."""
        path = choices.choice(branch.keys(f"{branch.prefix}/source=results/"))
        branch.s3.delete_object(Bucket=branch.bucket, Key=path)
        bronze(branch, "objects", "acknowledge", path, "--reason", "a test", "--yes")
        removed.append(path)

    with branch.queue() as queue, Load(branch, mark).running() as load:
        with branch.running(*roles()) as running:
            until("some records are accepted", lambda: len(load.ids) > 10, 60)
            killed(4)
            running["api"].signal(signal.SIGKILL)
            running["api"].restart()
            killed(3)
            bronze(branch, "lanes", "2", "--yes")
            lanes = 2
        with branch.running(*roles()) as running:
            killed(4)
            remove()
            killed(2)
        with branch.running(*roles()) as running:
            bronze(branch, "catalog", "rebuild", "--yes")
            assert_ended(branch, running)
        with branch.running(*roles()):
            killed(4)
            queue.restart()
            killed(3)
            load.stop()
            until("everything is stored", lambda: all(map(is_stored, load.ids)), 120)
            program = silver(branch, database, "--once")
            _, errors = program.communicate(timeout=limit_s(120))
            assert program.returncode == 0, errors
    assert removed
    in_bucket = expected(branch)
    key = "file_path, _submission_id, _record_index, classification_id"
    for source in SOURCES:
        assert rows(database, f"SELECT {key} FROM {source}") == in_bucket[source], f"seed {seed}"
        assert sum(in_bucket[source].values()) > 50
    joined = Counter(
        {
            (result,): results * failures
            for result, results in by_classification(in_bucket["results"]).items()
            if (failures := by_classification(in_bucket["failures"])[result])
        }
    )
    assert joined
    assert rows(database, "SELECT classification_id FROM late_and_failed") == joined


def by_classification(found: Counter[tuple[Any, ...]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (*_, classification_id), number in found.items():
        counts[classification_id] += number
    return counts
