"""Rejected records: their format in a message, and in the object under `quarantine/` that the message becomes. Pure.

    {"submission_id":"8a2c…", …}                                the accepted submission, on one line
    [{"index":3,"kind":"schema-violation", …, "size":27}, …]    a note per record, all on one line
    {"vehicle_id":7}                                            the records, byte for byte, each followed by a newline
    …

A note states the size of its record in bytes, since a record of a JSON array may contain newlines.
"""

from collections.abc import Sequence

import msgspec

from bronze.errors import DeadLetter

#: The longest first line with its newline, in bytes: three texts of 256 characters, each of 6 bytes, and ids.
HEAD_BYTES_MAX = 6 * 2**10
#: The longest reason in a note, in characters; bounded since a reason may quote a part of the record.
REASON_CHARS_MAX = 300


class RejectionNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a record was rejected: its `index` in the body, the `kind` of the error, and its `size` in bytes.

    `kind` is the code that a refusal for this record would have had; `field` is the field with the error, if any.
    """

    index: int
    kind: str
    reason: str
    size: int
    field: str | None = None


def encode_note(index: int, kind: str, reason: str, field: str | None, record: bytes) -> bytes:
    """The encoded note of a record."""
    return msgspec.json.encode(
        RejectionNote(index=index, kind=kind, reason=reason[:REASON_CHARS_MAX], field=field, size=len(record))
    )


def packed_bytes(note: bytes, record: bytes) -> int:
    """The bytes that a record and its encoded note occupy in a message."""
    return len(note) + 1 + len(record) + 1


def pack(notes: Sequence[bytes], records: Sequence[bytes]) -> bytes:
    """The lines after the first: encoded notes and records."""
    return b"".join([b"[", b",".join(notes), b"]\n", *(record + b"\n" for record in records)])


def unpack(payload: bytes) -> tuple[bytes, list[tuple[RejectionNote, bytes]]]:
    """The first line, and each record with its note; raises `DeadLetter`."""
    first_line, _, rest = payload.partition(b"\n")
    second_line, _, body = rest.partition(b"\n")
    try:
        notes = msgspec.json.decode(second_line, type=list[RejectionNote])
    except (msgspec.DecodeError, RecursionError) as error:
        raise DeadLetter(f"its notes cannot be read: {error}") from error
    records: list[tuple[RejectionNote, bytes]] = []
    start = 0
    for note in notes:
        end = start + note.size
        if note.size < 0 or body[end : end + 1] != b"\n":
            raise DeadLetter(f"record {note.index} does not have the size that its note states")
        records.append((note, body[start:end]))
        start = end + 1
    if start != len(body):
        raise DeadLetter("it holds more bytes than the records of its notes")
    return first_line, records
