"""Refusals that bodies of each form have."""

from bronze.errors import Refused
from bronze.protocol.message import MESSAGES_MAX
from bronze.records.media import Format
from bronze.records.sources import Source


def violation(source: Source, said: str, *, record: int | None = None, field: str | None = None) -> Refused:
    """What does not fit the source: a field of a record, a record, or a whole column."""
    names = {"record": record, "field": field}
    members = {name: value for name, value in names.items() if value is not None}
    place = ", ".join(f"{name} {value}" for name, value in members.items()) or "record"
    return Refused(
        422,
        "schema-violation",
        f"{place[:1].upper()}{place[1:]}: {said}. The source {source.name} declares its fields; mend the record and "
        "send the submission again: nothing of it was kept.",
        **members,
    )


def record_too_large(record: int, limit: int) -> Refused:
    return Refused(
        413,
        "record-too-large",
        f"Record {record} is larger than {limit} bytes. Split it, or refer to what it carries.",
        record=record,
    )


def too_many_messages() -> Refused:
    return Refused(
        413,
        "body-too-large",
        f"The body makes more than {MESSAGES_MAX} messages of 1 MiB. Send it as several submissions.",
    )


def empty(advice: str) -> Refused:
    return Refused(400, "empty-body", f"The body holds no record. {advice}")


def too_large(limit: int, advice: str = "Send it as several submissions.") -> Refused:
    return Refused(
        413,
        "body-too-large",
        f"The body is larger than {limit} bytes, decoded. {advice}",
        limit=limit,
    )


def not_utf8(reason: str, **members: object) -> Refused:
    place = f"Record {members['record']}" if "record" in members else "The body"
    return Refused(400, "invalid-utf8", f"{place} is not UTF-8: {reason}. JSON is UTF-8 (RFC 8259).", **members)


SAID_CHARS_MAX = 300


def unreadable(form: Format, why: str) -> Refused:
    """A body that is no whole body of its form."""
    said = " ".join(why[:SAID_CHARS_MAX].split()).rstrip(".")
    return Refused(
        400,
        "unreadable-body",
        f"The body cannot be read as {form}: {said}. Check that it is whole, and written as its Content-Type says.",
    )
