"""Rejected records: how a message, and the object under `quarantine/` that it becomes, holds them. Pure.

    {"submission_id":"8a2c…", …}                                what was accepted, on one line
    [{"index":3,"kind":"schema-violation", …, "size":27}, …]    a note for each record, on one line
    {"vehicle_id":7}                                            the records, byte for byte, each followed by a newline
    …

A note says how many bytes its record has, since a record of a JSON array may have newlines in it.
"""

from collections.abc import Sequence

import msgspec

from bronze.errors import DeadLetter

#: Bound of the first line with its newline, in bytes: three texts of 256 characters, of 6 bytes each, and ids.
HEAD_BYTES_MAX = 6 * 2**10
#: Bound of a note's reason, in characters: it may repeat a piece of the record.
REASON_CHARS_MAX = 300


class RejectionNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a record was rejected: its `index` in the body, the `kind` of what is wrong with it, and its `size` in bytes.

    `kind` is the word that a refusal would have had; `field` is there where one is to blame.
    """

    index: int
    kind: str
    reason: str
    size: int
    field: str | None = None


def encode_note(index: int, kind: str, reason: str, field: str | None, record: bytes) -> bytes:
    """A record's note, encoded."""
    return msgspec.json.encode(
        RejectionNote(index=index, kind=kind, reason=reason[:REASON_CHARS_MAX], field=field, size=len(record))
    )


def size(noted: bytes, record: bytes) -> int:
    """What a record and its note take of a message, in bytes."""
    return len(noted) + 1 + len(record) + 1


def pack(notes: Sequence[bytes], records: Sequence[bytes]) -> bytes:
    """All but the first line."""
    return b"".join([b"[", b",".join(notes), b"]\n", *(record + b"\n" for record in records)])


def unpack(payload: bytes) -> tuple[bytes, list[tuple[RejectionNote, bytes]]]:
    """The first line, and each record with its note; raises `DeadLetter`."""
    head, _, rest = payload.partition(b"\n")
    noted, _, body = rest.partition(b"\n")
    try:
        notes = msgspec.json.decode(noted, type=list[RejectionNote])
    except (msgspec.DecodeError, RecursionError) as error:
        raise DeadLetter(f"its notes cannot be read: {error}") from error
    records: list[tuple[RejectionNote, bytes]] = []
    at = 0
    for one in notes:
        end = at + one.size
        if one.size < 0 or body[end : end + 1] != b"\n":
            raise DeadLetter(f"record {one.index} is not where its note says")
        records.append((one, body[at:end]))
        at = end + 1
    if at != len(body):
        raise DeadLetter("it holds more than its notes say")
    return head, records
