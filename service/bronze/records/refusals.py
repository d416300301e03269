"""Refusals that bodies of each form have."""

from bronze.errors import Refusal, Refused
from bronze.protocol.message import MESSAGES_MAX
from bronze.records.media import ColumnarType
from bronze.records.sources import Source

#: How much of a library's error is repeated, in characters.
SAID_CHARS_MAX = 300


def violation(source: Source, said: str, *, record: int | None = None, field: str | None = None) -> Refused:
    """What does not fit the source: a field of a record, a record, or a whole column."""
    named = {"record": record, "field": field}
    place = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "record"
    return Refused(
        Refusal.SCHEMA_VIOLATION,
        f"{place[:1].upper()}{place[1:]}: {said}. The source {source.name} declares its fields; mend the record and "
        "send the submission again: nothing of it was kept.",
        record=record,
        field=field,
    )


def record_too_large(record: int, limit: int) -> Refused:
    return Refused(
        Refusal.RECORD_TOO_LARGE,
        f"Record {record} is larger than {limit} bytes. Split it, or refer to what it carries.",
        record=record,
    )


def too_many_messages() -> Refused:
    return Refused(
        Refusal.BODY_TOO_LARGE,
        f"The body makes more than {MESSAGES_MAX} messages of 1 MiB. Send it as several submissions.",
    )


def empty(advice: str) -> Refused:
    return Refused(Refusal.EMPTY_BODY, f"The body holds no record. {advice}")


def too_large(limit: int, advice: str = "Send it as several submissions.") -> Refused:
    return Refused(
        Refusal.BODY_TOO_LARGE,
        f"The body is larger than {limit} bytes, decoded. {advice}",
        limit=limit,
    )


def not_utf8(reason: str, *, record: int | None = None) -> Refused:
    place = "The body" if record is None else f"Record {record}"
    return Refused(Refusal.INVALID_UTF8, f"{place} is not UTF-8: {reason}. JSON is UTF-8 (RFC 8259).", record=record)


def unreadable(form: ColumnarType, why: str) -> Refused:
    """A body that is no whole body of its form."""
    said = " ".join(why[:SAID_CHARS_MAX].split()).rstrip(".")
    return Refused(
        Refusal.UNREADABLE_BODY,
        f"The body cannot be read as {form}: {said}. Check that it is whole, and written as its Content-Type says.",
    )
