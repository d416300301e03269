"""Replay: the mended records of a quarantine object are sent to the API again, once."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import msgspec

from bronze.errors import Outage, Unavailable
from bronze.protocol.message import AcceptedSubmission

if TYPE_CHECKING:
    from bronze.servers.bucket import Bucket
from bronze.admin.quarantine import REPLAYED, CommandError, QuarantinedObject, ReplayMark

TIMEOUT = httpx.Timeout(45, connect=5)
ATTEMPTS = 8
BACK_OFF_S_MAX = 8.0


@dataclass(frozen=True, slots=True)
class Replay:
    """The records of one quarantine object, mended; `indices` are those in the body that they came in."""

    aside: QuarantinedObject
    accepted: AcceptedSubmission
    lines: Sequence[bytes]
    indices: Sequence[int | None]

    @property
    def body(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def match_lines(asides: Sequence[QuarantinedObject], lines: Sequence[bytes]) -> list[Replay]:
    """The lines of a mended export, each for its record; an empty one gives its record up. Raises `CommandError`."""
    wanted = sum(len(aside.records) for aside in asides)
    if len(lines) != wanted:
        raise CommandError(
            f"there are {len(lines)} lines, and {wanted} records in quarantine: one line is one record, in the order "
            "of the export; leave the line of a record empty that is to be given up"
        )
    rest = iter(lines)
    found: list[Replay] = []
    for aside in asides:
        if not aside.apart:
            raise CommandError(
                f"the records of {aside.key} cannot be told apart: mend it by hand, and publish it as new"
            )
        if aside.accepted is None:
            raise CommandError(f"nothing is known of the submission of {aside.key}: publish its records as new")
        kept = [(line, one.index) for one in aside.records if (line := next(rest).strip())]
        found.append(Replay(aside, aside.accepted, [line for line, _ in kept], [index for _, index in kept]))
    return found


async def replay(bucket: "Bucket", http: httpx.AsyncClient, again: Replay) -> ReplayMark:
    """Send mended records, once: as one submission, whose key is that of the quarantine object.

    A key for each selection of records would let a second, larger selection send the first one's again. Raises
    `CommandError` where the API refuses them, or has accepted others in their place, and `Unavailable`.
    """
    aside = again.aside
    if aside.replayed:
        if aside.replayed.digest != again.digest:
            raise _replayed_differently(aside.key, aside.replayed.submission_id)
        return aside.replayed
    answer = await _send(http, aside.source, aside.key, again.accepted, again.body)
    said = _said(answer)
    if answer.status_code == httpx.codes.CONFLICT:
        raise _replayed_differently(aside.key, str(said.get("submission_id")))
    if answer.status_code != httpx.codes.ACCEPTED or "submission_id" not in said:
        place = said.get("record")
        index = again.indices[place] if isinstance(place, int) else None
        named = f" (record {index} of its submission)" if index is not None else ""
        told = said.get("detail", f"{answer.url} answers {answer.status_code}")
        raise CommandError(f"{aside.key}: {told}{named}")
    mark = ReplayMark(submission_id=str(said["submission_id"]), records=len(again.lines), digest=again.digest)
    await bucket.create(aside.key + REPLAYED, msgspec.json.encode(mark), {}, "application/json")
    return mark


def _said(answer: httpx.Response) -> dict[str, object]:
    """The body of an answer; nothing where it is none of the API's, but of something on the way to it."""
    try:
        return msgspec.json.decode(answer.content, type=dict[str, object])
    except msgspec.DecodeError:
        return {}


def _replayed_differently(key: str, submission_id: str) -> CommandError:
    return CommandError(
        f"{key} was replayed with other records already, as submission {submission_id}: publish what is missing as new"
    )


async def _send(
    http: httpx.AsyncClient, source: str, key: str, accepted: AcceptedSubmission, body: bytes
) -> httpx.Response:
    """The API's answer, asked for until there is one: the key makes that safe."""
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
    if accepted.classification_default is not None:
        headers["Bronze-Classification-Id"] = quote(accepted.classification_default)
    if accepted.origin is not None:
        headers["Bronze-File-Name"] = quote(accepted.origin)
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(min(2.0 ** (attempt - 2), BACK_OFF_S_MAX))
        try:
            answer = await http.post(f"/v1/ingest/{source}", content=body, headers=headers)
        except httpx.RequestError as error:
            why = f"{type(error).__name__} {error}"
            continue
        if not answer.is_server_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return answer
        why = f"it answers {answer.status_code}"
    raise Unavailable(Outage.UNAVAILABLE, f"the API at {http.base_url} does not take {key}: {why}. Replay it again")
