"""What is in quarantine, and how it comes out: `bronze quarantine list | export | replay`.

It needs the bucket, and to replay the API; neither the queue nor the catalog. An object under `quarantine/` is what a
message holds, byte for byte: rejected records with the reasons (`.rejected`), or one that could not become rows
(`.message`), whose headers stand in the object that lists it. Nothing is removed: what was replayed gets a mark beside
it.
"""

import argparse
import asyncio
import datetime as dt
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import httpx
import msgspec

from bronze import rejected
from bronze.errors import Halted, Poison, Unavailable
from bronze.settings import Settings
from bronze.submission import GAP, Accepted, Kind, Part, records_of

if TYPE_CHECKING:
    from bronze.bucket import Bucket, Head

FOLDER = "quarantine/"
REJECTED = ".rejected"
MESSAGE = ".message"
#: The end of the mark's key, after that of what was replayed.
REPLAYED = ".replayed"
TIMEOUT = httpx.Timeout(45, connect=5)
ATTEMPTS = 8
BACK_OFF_S_MAX = 8.0


class Mistaken(Exception):
    """What was asked for cannot be done; the message says why, and what can."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The mark of what was replayed: as which submission, how many records, and their digest (SHA-256)."""

    submission_id: str
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record in quarantine; its index in the body that it came in, and what is wrong with it, where that is known."""

    raw: bytes
    index: int | None = None
    kind: str | None = None
    field: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Aside:
    """An object of the quarantine. `accepted` is None where nobody can tell any more what its submission was."""

    key: str
    source: str
    submission_id: str
    stored_at: str
    reason: str
    accepted: Accepted | None
    records: Sequence[Record]
    #: whether the records are told apart: else the only one is the whole message, whatever it is
    apart: bool
    replayed: Replayed | None

    def listed(self) -> dict[str, object]:
        """All but the records' bytes."""
        return {
            "key": self.key,
            "source": self.source,
            "submission_id": self.submission_id,
            "stored_at": self.stored_at,
            "reason": self.reason,
            "replayed_as": self.replayed.submission_id if self.replayed else None,
            "records": [
                {"index": one.index, "kind": one.kind, "field": one.field, "reason": one.reason} for one in self.records
            ],
        }

    def text(self) -> Iterator[str]:
        """The same, to be read."""
        again = f", replayed as {self.replayed.submission_id}" if self.replayed else ""
        yield f"{self.key}\n  submission {self.submission_id}, {self.stored_at}{again}\n  {self.reason}"
        for one in self.records:
            if one.reason:
                place = f"record {one.index}" + (f", field {one.field}" if one.field else "")
                yield f"  {place}: {one.reason} ({one.kind})"

    def lines(self) -> list[bytes]:
        """Each record as one line: a line's end is a blank to JSON outside of strings, and an error inside."""
        if not self.apart:
            return [self.records[0].raw]
        return [b" ".join(one.raw.splitlines()) for one in self.records]


# --- what is there


async def find(
    bucket: "Bucket", *, source: str | None = None, since: str = "", submission_id: str | None = None
) -> AsyncIterator[Aside]:
    """What is in quarantine, by source and in the order of its lanes; `since` is a server's time, or its beginning."""
    keys = [key async for key in bucket.keys(f"{FOLDER}source={source}/" if source else FOLDER)]
    marked = {key for key in keys if key.endswith(REPLAYED)}
    for key in keys:
        head = await bucket.head(key) if key.endswith((REJECTED, MESSAGE)) else None
        if head and _stored_at(head) >= since and submission_id in {None, _submission_id(head)}:
            yield await _aside(bucket, key, head, replayed=key + REPLAYED in marked)


async def load(bucket: "Bucket", key: str) -> Aside:
    """What lies under a key; raises `Mistaken`."""
    head = await bucket.head(key) if key.startswith(FOLDER) and key.endswith((REJECTED, MESSAGE)) else None
    if head is None:
        raise Mistaken(f"{key} is not in quarantine; `bronze quarantine list` says what is")
    return await _aside(bucket, key, head, replayed=await bucket.head(key + REPLAYED) is not None)


def _stored_at(head: "Head") -> str:
    return head.metadata.get("bronze-time", "")


def _submission_id(head: "Head") -> str:
    return head.metadata.get("bronze-subject", "").rpartition(".")[2]


async def _aside(bucket: "Bucket", key: str, head: "Head", *, replayed: bool) -> Aside:
    payload = await bucket.read(key, 0, head.size) if head.size else b""
    accepted, records = await _records(bucket, key, payload, unquote(head.metadata.get("bronze-file-path", "")))
    return Aside(
        key=key,
        source=key.removeprefix(f"{FOLDER}source=").partition("/")[0],
        submission_id=_submission_id(head),
        stored_at=_stored_at(head),
        reason=head.metadata.get("bronze-reason", ""),
        accepted=accepted,
        records=records or [Record(payload)],
        apart=bool(records),
        replayed=await _mark(bucket, key) if replayed else None,
    )


async def _records(bucket: "Bucket", key: str, payload: bytes, file_path: str) -> tuple[Accepted | None, list[Record]]:
    """The submission, if it is known, and its records, if they can be told apart."""
    if key.endswith(REJECTED):
        try:
            first_line, noted = rejected.unpack(payload)
            said = msgspec.json.decode(first_line, type=Accepted)
        except (Poison, msgspec.DecodeError):
            return None, []
        return said, [Record(raw, note.index, note.kind, note.field, note.reason) for note, raw in noted]
    part = await _part(bucket, key, file_path)
    accepted = part.accepted if part else None
    try:
        raws = records_of(part.kind if part else Kind.RECORDS, payload)
    except (msgspec.DecodeError, RecursionError):
        return accepted, []
    first = part.first_record if part else None
    return accepted, [
        Record(raw, None if first is None else first + place) for place, raw in enumerate(raws) if raw != GAP
    ]


async def _part(bucket: "Bucket", key: str, file_path: str) -> Part | None:
    """The part that a message was, by the headers that the object which lists it has kept."""
    from bronze.bucket import read_contents  # a publisher, whose command line is ours too, does without what it loads

    try:
        contents = await read_contents(bucket, file_path) if file_path else None
        headers = next((one.headers for one in contents.quarantined if one.key == key), None) if contents else None
        return Part.parse(headers) if headers else None
    except (Halted, Poison):
        return None


async def _mark(bucket: "Bucket", key: str) -> Replayed | None:
    head = await bucket.head(key + REPLAYED)
    return msgspec.json.decode(await bucket.read(key + REPLAYED, 0, head.size), type=Replayed) if head else None


# --- sent again


@dataclass(frozen=True, slots=True)
class Again:
    """The records of one quarantine object, mended; `indices` are those in the body that they came in."""

    aside: Aside
    accepted: Accepted
    lines: Sequence[bytes]
    indices: Sequence[int | None]

    @property
    def body(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def mended(asides: Sequence[Aside], lines: Sequence[bytes]) -> list[Again]:
    """The lines of a mended export, each for its record; an empty one gives its record up. Raises `Mistaken`."""
    wanted = sum(len(aside.records) for aside in asides)
    if len(lines) != wanted:
        raise Mistaken(
            f"there are {len(lines)} lines, and {wanted} records in quarantine: one line is one record, in the order "
            "of the export; leave the line of a record empty that is to be given up"
        )
    rest = iter(lines)
    found: list[Again] = []
    for aside in asides:
        if not aside.apart:
            raise Mistaken(f"the records of {aside.key} cannot be told apart: mend it by hand, and publish it as new")
        if aside.accepted is None:
            raise Mistaken(f"nothing is known of the submission of {aside.key}: publish its records as new")
        kept = [(line, one.index) for one in aside.records if (line := next(rest).strip())]
        found.append(Again(aside, aside.accepted, [line for line, _ in kept], [index for _, index in kept]))
    return found


async def replay(bucket: "Bucket", http: httpx.AsyncClient, again: Again) -> Replayed:
    """Send mended records, once: as one submission, whose key is that of the quarantine object.

    A key for each selection of records would let a second, larger selection send the first one's again. Raises
    `Mistaken` where the API refuses them, or has accepted others in their place, and `Unavailable`.
    """
    aside = again.aside
    if aside.replayed:
        if aside.replayed.digest != again.digest:
            raise _otherwise(aside.key, aside.replayed.submission_id)
        return aside.replayed
    answer = await _send(http, aside.source, aside.key, again.accepted, again.body)
    said = _said(answer)
    if answer.status_code == httpx.codes.CONFLICT:
        raise _otherwise(aside.key, str(said.get("submission_id")))
    if answer.status_code != httpx.codes.ACCEPTED or "submission_id" not in said:
        place = said.get("record")
        index = again.indices[place] if isinstance(place, int) else None
        named = f" (record {index} of its submission)" if index is not None else ""
        told = said.get("detail", f"{answer.url} answers {answer.status_code}")
        raise Mistaken(f"{aside.key}: {told}{named}")
    mark = Replayed(submission_id=str(said["submission_id"]), records=len(again.lines), digest=again.digest)
    await bucket.create(aside.key + REPLAYED, msgspec.json.encode(mark), {}, "application/json")
    return mark


def _said(answer: httpx.Response) -> dict[str, object]:
    """The body of an answer; nothing where it is none of the API's, but of something on the way to it."""
    try:
        return msgspec.json.decode(answer.content, type=dict[str, object])
    except msgspec.DecodeError:
        return {}


def _otherwise(key: str, submission_id: str) -> Mistaken:
    return Mistaken(
        f"{key} was replayed with other records already, as submission {submission_id}: publish what is missing as new"
    )


async def _send(http: httpx.AsyncClient, source: str, key: str, accepted: Accepted, body: bytes) -> httpx.Response:
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
    raise Unavailable("unavailable", f"the API at {http.base_url} does not take {key}: {why}. Replay it again")


# --- the command


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze quarantine`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="what is in quarantine, record by record, and why")
    show.add_argument("--source", help="of one source only")
    show.add_argument("--since", type=_time, help="set aside from this time on (ISO 8601, UTC if unsaid)")
    show.add_argument("--json", action="store_true", help="one JSON object a line")
    export = actions.add_parser("export", help="the records as they came, one a line, to be mended")
    _which(export)
    export.add_argument("-o", "--output", type=Path, help="a file instead of standard output")
    again = actions.add_parser("replay", help="sends records again, once, under the run and file that they came with")
    _which(again)
    again.add_argument(
        "-f", "--file", type=Path, help="the mended export; an empty line gives a record up (default: as they are)"
    )


def _which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY", help="an object under quarantine/, as `list` names it")
    parser.add_argument("--submission", metavar="ID", help="all that is in quarantine of one submission")


def _time(text: str) -> str:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: say 2026-11-27 or 2026-11-27T10:00") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


async def run(args: argparse.Namespace, settings: Settings, bucket: "Bucket") -> int:
    """Do what the command line says; the exit code is 1 where it cannot be done."""
    try:
        match args.action:
            case "list":
                await _list(args, bucket)
            case "export":
                _export(args.output, await _chosen(args, bucket))
            case _:
                await _replay(args.file, await _chosen(args, bucket), settings, bucket)
    except (Mistaken, OSError) as error:
        print(f"bronze quarantine: {error}", file=sys.stderr)
        return 1
    return 0


async def _chosen(args: argparse.Namespace, bucket: "Bucket") -> list[Aside]:
    """What the command line names."""
    if bool(args.keys) == bool(args.submission):
        raise Mistaken("name keys, or a submission with --submission")
    if args.keys:
        return [await load(bucket, key) for key in dict.fromkeys(args.keys)]
    found = [aside async for aside in find(bucket, submission_id=args.submission)]
    if not found:
        raise Mistaken(f"nothing of submission {args.submission} is in quarantine")
    return found


async def _list(args: argparse.Namespace, bucket: "Bucket") -> None:
    async for aside in find(bucket, source=args.source, since=args.since or ""):
        if args.json:
            print(msgspec.json.encode(aside.listed()).decode())
        else:
            print(*aside.text(), sep="\n")


def _export(output: Path | None, asides: Sequence[Aside]) -> None:
    content = b"".join(line + b"\n" for aside in asides for line in aside.lines())
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)


async def _replay(file: Path | None, asides: Sequence[Aside], settings: Settings, bucket: "Bucket") -> None:
    lines = _lines(file) if file else [line for aside in asides for line in aside.lines()]
    async with httpx.AsyncClient(base_url=settings.api_url, timeout=TIMEOUT) as http:
        for again in mended(asides, lines):
            if not again.lines:
                print(f"{again.aside.key}: given up, every line is empty")
                continue
            mark = await replay(bucket, http, again)
            done = "replayed before" if again.aside.replayed else "replayed"
            print(f"{again.aside.key}: {mark.records} records {done}, as submission {mark.submission_id}")


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().removesuffix(b"\n").split(b"\n")
