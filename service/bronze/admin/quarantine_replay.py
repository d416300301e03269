"""Replay: send the corrected records of a quarantine object to the API, once."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import msgspec

from bronze import client
from bronze.admin.command_error import CommandError
from bronze.admin.quarantine import QuarantinedObject, ReplayMark
from bronze.errors import Outage, Unavailable
from bronze.plurals import counted
from bronze.protocol import request_headers
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.quarantine import REPLAYED
from bronze.records.media import JSON, NDJSON
from bronze.servers.bucket import Bucket

ATTEMPTS = 8
BACK_OFF_S_MAX = 8.0


class _Receipt(msgspec.Struct, frozen=True):
    """The member of a 202 that a replay needs."""

    submission_id: str


@dataclass(frozen=True, slots=True)
class Replay:
    """The corrected records of one quarantine object; `indices` are those in the body of its submission."""

    quarantined: QuarantinedObject
    accepted: AcceptedSubmission
    lines: Sequence[bytes]
    indices: Sequence[int | None]

    @property
    def body(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def match_lines(objects: Sequence[QuarantinedObject], lines: Sequence[bytes]) -> list[Replay]:
    """Match the lines of a corrected export to records. An empty line discards its record. Raises `CommandError`."""
    expected = sum(len(quarantined.records) for quarantined in objects)
    if len(lines) != expected:
        raise CommandError(
            f"{counted(len(lines), 'line')} for {counted(expected, 'record')} in quarantine. Write one line per "
            "record, in the order of the export; to discard a record, leave its line empty"
        )
    remaining = iter(lines)
    replays: list[Replay] = []
    for quarantined in objects:
        if not quarantined.separable:
            raise CommandError(
                f"{quarantined.key} cannot be replayed: its records cannot be separated, because its content is not "
                "readable as JSON records. Write its content to a file with `bronze quarantine export`, correct it by "
                "hand, and publish it as new data"
            )
        if quarantined.accepted is None:
            raise CommandError(f"the submission of {quarantined.key} is not known. Publish its records as new data")
        filled = [(line, record.index) for record in quarantined.records if (line := next(remaining).strip())]
        replays.append(
            Replay(quarantined, quarantined.accepted, [line for line, _ in filled], [index for _, index in filled])
        )
    return replays


async def replay(bucket: Bucket, http: httpx.AsyncClient, corrected: Replay) -> ReplayMark:
    """Send corrected records, once: as one submission, whose Idempotency-Key is the key of the quarantine object.

    If the Idempotency-Key depended on the selected records, a second, larger selection would send the records of the
    first one again. Raises `CommandError` if the API refuses them or has accepted other records of the same quarantine
    object, and `Unavailable`.
    """
    quarantined = corrected.quarantined
    if quarantined.replayed:
        if quarantined.replayed.digest != corrected.digest:
            raise _replayed_differently(quarantined.key, quarantined.replayed.submission_id)
        return quarantined.replayed
    response = await _send(http, quarantined.source, quarantined.key, corrected.accepted, corrected.body)
    if response.status_code != httpx.codes.ACCEPTED:
        raise _refusal(response, corrected)
    try:
        receipt = msgspec.json.decode(response.content, type=_Receipt)
    except msgspec.DecodeError as error:
        raise CommandError(
            f"{quarantined.key}: {response.url} answers 202, but without a submission_id. Check that BRONZE_API_URL is "
            "the address of the API"
        ) from error
    mark = ReplayMark(submission_id=receipt.submission_id, records=len(corrected.lines), digest=corrected.digest)
    await bucket.create(quarantined.key + REPLAYED, msgspec.json.encode(mark), {}, JSON)
    return mark


def _refusal(response: httpx.Response, corrected: Replay) -> CommandError:
    key = corrected.quarantined.key
    problem = client.problem_of(response)
    if response.status_code == httpx.codes.CONFLICT:
        return _replayed_differently(key, str(problem.submission_id))
    index = corrected.indices[problem.record] if problem.record is not None else None
    record = f" (record {index} of its submission)" if index is not None else ""
    detail = problem.detail or f"{response.url} answers {response.status_code}"
    return CommandError(f"{key}: {detail}{record}")


def _replayed_differently(key: str, submission_id: str) -> CommandError:
    return CommandError(
        f"{key} was already replayed with other records, as submission {submission_id}. Publish the missing records as "
        "new data"
    )


async def _send(
    http: httpx.AsyncClient, source: str, key: str, accepted: AcceptedSubmission, body: bytes
) -> httpx.Response:
    """Send until the API answers; the Idempotency-Key makes retries safe."""
    headers = {"Content-Type": NDJSON, request_headers.IDEMPOTENCY_KEY: key}
    if accepted.classification_default is not None:
        headers[request_headers.CLASSIFICATION_ID] = request_headers.encode(accepted.classification_default)
    if accepted.origin is not None:
        headers[request_headers.FILE_NAME] = request_headers.encode(accepted.origin)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(min(2.0 ** (attempt - 2), BACK_OFF_S_MAX))
        try:
            response = await http.post(f"v1/ingest/{source}", content=body, headers=headers)
        except httpx.RequestError as error:
            reason = f"{type(error).__name__} {error}"
            continue
        if not response.is_server_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return response
        reason = f"it answers {response.status_code}"
    raise Unavailable(
        Outage.UNAVAILABLE, f"the API at {http.base_url} did not accept {key}: {reason}. Run the replay again"
    )
