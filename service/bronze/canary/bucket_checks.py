"""The checks of the bucket: the object contains exactly the records that were sent, and no other object does."""

import datetime as dt
from collections import Counter
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bronze.canary.api import Api
from bronze.canary.checks import CanaryCheck, Run, found, within
from bronze.errors import Mismatch, Outage, Unavailable
from bronze.objects.footer import TAIL_BYTES, NotABronzeObject, contents_of_footer, footer_start
from bronze.protocol.documents import trace_id_of
from bronze.protocol.keys import hour_prefix
from bronze.servers.bucket import Bucket
from bronze.telemetry.signals import Check

_COLUMNS = ["_submission_id", "_record_index", "_payload", "file_path"]


class ObjectCheck(CanaryCheck):
    """The object is in the bucket, and its rows are the records that were sent, byte for byte, with its own key.

    `stored_s_max` is the time within which the submission has to be stored.
    """

    name = Check.OBJECT
    needs = frozenset({Check.ACCEPTED})

    def __init__(self, api: Api, bucket: Bucket, stored_s_max: float) -> None:
        self._api = api
        self._bucket = bucket
        self._stored_s_max = stored_s_max

    async def check(self, run: Run) -> None:
        submission_id = found(run.accepted).submission_id
        key = await within(self._stored_s_max, lambda: self._stored(submission_id))
        body = await _read(self._bucket, key)
        rows = [row for row in _rows(key, body) if row["_submission_id"] == submission_id]
        expected = [
            {"_submission_id": submission_id, "_record_index": index, "_payload": line.decode(), "file_path": key}
            for index, line in enumerate(run.lines)
        ]
        if sorted(rows, key=lambda row: row["_record_index"]) != expected:
            raise Mismatch(f"{key} has other rows of submission {submission_id} than were sent: {rows}")
        run.upload_trace_id = _upload_trace_id(key, body)
        run.file_path = key

    async def _stored(self, submission_id: str) -> str:
        """The key of the submission's object."""
        status = await self._api.status(submission_id)
        if status.status == "accepted":
            raise Unavailable(Outage.TIMEOUT, f"submission {submission_id} is accepted, but not stored in time")
        keys = [link.file_path for link in status.objects]
        if status.status != "stored" or len(keys) != 1:
            raise Mismatch(f"submission {submission_id} is {status.status}, in the objects {keys}")
        return keys[0]


class OnceCheck(CanaryCheck):
    """Each submission is in one object only, and a retry under its key is the same submission.

    A retry that is stored again is in an object that is written later. So the submission of the run before is counted
    too.
    """

    name = Check.ONCE
    needs = frozenset({Check.OBJECT})

    def __init__(self, api: Api, bucket: Bucket, prefix: str) -> None:
        self._api = api
        self._bucket = bucket
        self._prefix = prefix
        #: The keys that were read, or were there before the first run; None before the first listing.
        self._known: set[str] | None = None
        self._since_s = 0.0
        #: The rows of the last submissions, by object.
        self._rows: dict[str, Counter[str]] = {}

    async def prepare(self, run: Run) -> None:
        if self._known is None:
            self._since_s = run.began_s
            self._known = await self._list()

    async def check(self, run: Run) -> None:
        accepted = found(run.accepted)
        retry = await self._api.send(run.key, run.lines)
        if retry != accepted:
            raise Mismatch(f"a retry under the key {run.key} of {accepted} is another submission: {retry}")
        self._rows[accepted.submission_id] = Counter()
        known, listed = found(self._known), await self._list()
        for key in sorted(listed - known):
            body = await _read(self._bucket, key)
            known.add(key)
            for row in _rows(key, body):
                if row["_submission_id"] in self._rows:
                    self._rows[row["_submission_id"]][key] += 1
        known &= listed
        self._since_s = run.began_s
        counted, self._rows = self._rows, {}
        for submission_id, rows in counted.items():
            if len(rows) != 1 or rows.total() != len(run.lines):
                raise Mismatch(f"submission {submission_id} has its rows in {dict(rows)}, not once")
        self._rows = {accepted.submission_id: counted[accepted.submission_id]}

    async def _list(self) -> set[str]:
        """The keys of the canary's objects since the hour before the last run."""
        hour = dt.datetime.fromtimestamp(self._since_s - 3600, dt.UTC).isoformat()
        folder = hour_prefix(self._prefix, "canary", hour)
        return {key async for key in self._bucket.keys(f"{self._prefix}/source=canary/", folder)}


async def _read(bucket: Bucket, key: str) -> bytes:
    head = await bucket.head(key)
    if head is None:
        raise Mismatch(f"{key} is not in the bucket")
    return await bucket.read(key, 0, head.size)


def _rows(key: str, body: bytes) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(BytesIO(body), columns=_COLUMNS).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise Mismatch(f"{key} cannot be read: {error}") from error
    return rows


def _upload_trace_id(key: str, body: bytes) -> str:
    """The trace of the upload. It is another trace than that of the submission if the object has others too."""
    try:
        footer = body[footer_start(len(body), body[-TAIL_BYTES:]) :]
        return trace_id_of(contents_of_footer(footer).traceparent)
    except NotABronzeObject as error:
        raise Mismatch(f"{key}: {error}") from error
