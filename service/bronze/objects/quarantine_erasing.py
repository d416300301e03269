"""Erasing records from a message in quarantine. Pure: its content in, and the content that is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import or_

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from bronze.errors import DeadLetter
from bronze.objects.selection import RECEIVED_AT, Chosen
from bronze.protocol import rejected_records
from bronze.protocol.message import PLACEHOLDER, AcceptedSubmission, MessageKind, Part, split_records
from bronze.protocol.quarantine import REJECTED


class NotSearchable(Exception):
    """Whether a message has chosen records cannot be said: none was found, and not all of it can be read."""


@dataclass(frozen=True, slots=True)
class ErasedContent:
    """The content that is left of a message, and how many records were erased; None if it cannot be read and was erased
    as a whole. `not_searched` records cannot be read, and were left.
    """

    content: bytes
    records: int | None
    not_searched: int = 0

    @property
    def nothing_left(self) -> bool:
        return not self.content

    def has_no_records(self, key: str) -> bool:
        """Whether no record is left. Of rejected records, the submission's line stays."""
        return self.nothing_left or (key.endswith(REJECTED) and not rejected_records.unpack(self.content)[1])


def erase_records(key: str, content: bytes, part: Part | None, chosen: Chosen) -> ErasedContent | None:
    """The content of the message under a key in quarantine without the chosen records; None if it has none.

    `part` is what its headers say; None if that is not known. Raises `NotSearchable`.
    """
    if not content:
        return None
    accepted = part.accepted if part else None
    if chosen.is_too_new(accepted):
        return None
    try:
        if key.endswith(REJECTED):
            return _erase_rejected(content, chosen)
        if part and part.kind is MessageKind.COLUMNAR:
            return _erase_columnar(content, accepted, chosen)
        return _erase_json(content, part, chosen)
    except (DeadLetter, msgspec.DecodeError, RecursionError, pa.ArrowException, OSError, KeyError):
        if chosen.has_all_of(accepted) or chosen.mentions(content):
            return ErasedContent(b"", None)
        if chosen.classification_id is None or (part and part.kind is MessageKind.COLUMNAR):
            raise NotSearchable from None
        return None


def _erase_rejected(content: bytes, chosen: Chosen) -> ErasedContent | None:
    first_line, rejected = rejected_records.unpack(content)
    accepted = msgspec.json.decode(first_line, type=AcceptedSubmission)
    chosen_ones, unreadable = _choose([record for _, record in rejected], accepted, chosen)
    left = [item for item, is_chosen in zip(rejected, chosen_ones, strict=True) if not is_chosen]
    # the first line stays as it is if the classification is that of other records, which an erasure leaves
    cleared = chosen.cleared(accepted, all_erased=bool(rejected) and not left)
    if len(left) == len(rejected) and cleared == accepted:
        if unreadable:
            raise NotSearchable
        return None
    notes = [msgspec.json.encode(note) for note, _ in left]
    head = msgspec.json.encode(cleared) + b"\n"
    content = head + rejected_records.pack(notes, [record for _, record in left])
    return ErasedContent(content, sum(chosen_ones), unreadable)


def _erase_json(content: bytes, part: Part | None, chosen: Chosen) -> ErasedContent | None:
    kind = part.kind if part else _guessed_kind(content)
    accepted = part.accepted if part else None
    records = split_records(kind, content)
    # an empty line is what is left of a record that was erased before, as a placeholder is
    is_left_over = [record in {PLACEHOLDER, b""} for record in records]
    chosen_ones, unreadable = _choose(records, accepted, chosen, is_left_over)
    if not any(chosen_ones):
        if unreadable:
            raise NotSearchable
        return None
    if all(map(or_, chosen_ones, is_left_over)):
        return ErasedContent(b"", sum(chosen_ones))
    lines = kind is MessageKind.LINES
    # what is left keeps its place, which is its index
    empty = b"" if lines else PLACEHOLDER
    left = [empty if is_chosen else record for record, is_chosen in zip(records, chosen_ones, strict=True)]
    new = b"\n".join(left) if lines else b"[" + b",".join(left) + b"]"
    return ErasedContent(new, sum(chosen_ones), unreadable)


def _guessed_kind(content: bytes) -> MessageKind:
    return MessageKind.RECORDS if content.lstrip()[:1] == b"[" else MessageKind.LINES


def _erase_columnar(content: bytes, accepted: AcceptedSubmission | None, chosen: Chosen) -> ErasedContent | None:
    with pa.ipc.open_stream(content) as stream:
        rows = stream.read_all()
    rows.validate(full=True)
    filled = rows
    if accepted and accepted.classification_default is not None and "classification_id" in rows.column_names:
        number = rows.schema.get_field_index("classification_id")
        ids = rows.column(number).fill_null(accepted.classification_default)
        filled = rows.set_column(number, "classification_id", ids)
    if accepted:
        filled = filled.append_column(RECEIVED_AT, pa.array([accepted.received_at] * rows.num_rows, pa.string()))
    mask = chosen.mask(filled)
    erased: int = pc.sum(mask).as_py() or 0
    if not erased:
        return None
    if erased == rows.num_rows:
        return ErasedContent(b"", erased)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.filter(pc.invert(mask)))
    return ErasedContent(sink.getvalue().to_pybytes(), erased)


def _choose(
    records: Sequence[bytes],
    accepted: AcceptedSubmission | None,
    chosen: Chosen,
    is_left_over: Sequence[bool] | None = None,
) -> tuple[list[bool], int]:
    """For each record whether it is chosen, and how many cannot be read: whether they are cannot be said."""
    found = [
        False if is_empty else chosen.has_record(record, accepted)
        for record, is_empty in zip(records, is_left_over or [False] * len(records), strict=True)
    ]
    return [bool(is_chosen) for is_chosen in found], found.count(None)
