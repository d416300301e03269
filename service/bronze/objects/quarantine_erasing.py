"""Erasing records from a message in quarantine. Pure: its content in, and the content that is left out."""

from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from bronze.errors import DeadLetter
from bronze.objects.selection import RECEIVED_AT, Chosen
from bronze.protocol import rejected_records
from bronze.protocol.message import PLACEHOLDER, AcceptedSubmission, MessageKind, Part, split_records
from bronze.protocol.quarantine import REJECTED


class NotSearchable(Exception):
    """Whether a message has chosen records cannot be said: its content cannot be read."""


@dataclass(frozen=True, slots=True)
class ErasedContent:
    """The content that is left of a message, and how many records were erased; None if it cannot be read and was erased
    as a whole.
    """

    content: bytes
    records: int | None

    @property
    def nothing_left(self) -> bool:
        return not self.content


def erase_records(key: str, content: bytes, part: Part | None, chosen: Chosen) -> ErasedContent | None:
    """The content of the message under a key in quarantine without the chosen records; None if it has none.

    `part` is what its headers say; None if that is not known. Raises `NotSearchable`.
    """
    if not content:
        return None
    accepted = part.accepted if part else None
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
    chosen_ones = [_is_chosen(record, accepted, chosen) for _, record in rejected]
    left = [item for item, is_chosen in zip(rejected, chosen_ones, strict=True) if not is_chosen]
    # the first line stays as it is if the classification is that of other records, which an erasure leaves
    cleared = chosen.cleared(accepted, all_erased=bool(rejected) and not left)
    if len(left) == len(rejected) and cleared == accepted:
        return None
    notes = [msgspec.json.encode(note) for note, _ in left]
    head = msgspec.json.encode(cleared) + b"\n"
    return ErasedContent(head + rejected_records.pack(notes, [record for _, record in left]), sum(chosen_ones))


def _erase_json(content: bytes, part: Part | None, chosen: Chosen) -> ErasedContent | None:
    kind = part.kind if part else _guessed_kind(content)
    accepted = part.accepted if part else None
    records = split_records(kind, content)
    # an empty line is what is left of a record that was erased before, as a placeholder is
    chosen_ones = [record not in {PLACEHOLDER, b""} and _is_chosen(record, accepted, chosen) for record in records]
    if not any(chosen_ones):
        return None
    if all(is_chosen or record in {PLACEHOLDER, b""} for record, is_chosen in zip(records, chosen_ones, strict=True)):
        return ErasedContent(b"", sum(chosen_ones))
    lines = kind is MessageKind.LINES
    # what is left keeps its place, which is its index
    empty = b"" if lines else PLACEHOLDER
    left = [empty if is_chosen else record for record, is_chosen in zip(records, chosen_ones, strict=True)]
    return ErasedContent(b"\n".join(left) if lines else b"[" + b",".join(left) + b"]", sum(chosen_ones))


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


def _is_chosen(record: bytes, accepted: AcceptedSubmission | None, chosen: Chosen) -> bool:
    is_chosen = chosen.has_record(record, accepted)
    if is_chosen is None:
        raise NotSearchable
    return is_chosen
