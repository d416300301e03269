"""Refusals that are common to JSON and columnar bodies."""

from bronze.errors import Refusal, Refused
from bronze.protocol.message import MESSAGES_MAX
from bronze.records.media import ColumnarType
from bronze.records.sources import CLASSIFICATION_ID, Source

#: How much of a library's error text is repeated, in characters.
ERROR_CHARS_MAX = 300
#: Begins the advice that follows the reason of a violation.
NOTHING_ACCEPTED = "Nothing of the submission was accepted"


def violation(source: Source, reason: str, *, record: int | None = None, field: str | None = None) -> Refused:
    """The refusal of a body of which a field, a record or a whole column does not fit the source."""
    named = {"record": record, "field": field}
    place = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "record"
    return Refused(
        Refusal.SCHEMA_VIOLATION,
        f"{place[:1].upper()}{place[1:]}: {reason}. {NOTHING_ACCEPTED}: correct it to fit the declared fields of the "
        f"source {source.name}, and send it again.",
        record=record,
        field=field,
    )


def record_too_large(record: int, limit: int) -> Refused:
    return Refused(
        Refusal.RECORD_TOO_LARGE,
        f"Record {record} is larger than {limit} bytes. Split it, or store large values elsewhere and refer to them.",
        record=record,
    )


def too_many_messages() -> Refused:
    return Refused(
        Refusal.BODY_TOO_LARGE,
        f"The body needs more than {MESSAGES_MAX} messages of 1 MiB. Send it as several submissions.",
    )


def empty(advice: str) -> Refused:
    return Refused(Refusal.EMPTY_BODY, f"The body contains no record. {advice}")


def too_large(limit: int, setting: str, advice: str = "Send it as several submissions.") -> Refused:
    return Refused(
        Refusal.BODY_TOO_LARGE,
        f"The decoded body is larger than {limit} bytes ({setting}). {advice}",
        limit=limit,
        setting=setting,
    )


def too_many_classifications(limit: int) -> Refused:
    return Refused(
        Refusal.BODY_TOO_LARGE,
        f"The body has more than {limit} different values of {CLASSIFICATION_ID} (BRONZE_CLASSIFICATIONS_MAX). Send it "
        "as several submissions.",
        limit=limit,
        setting="BRONZE_CLASSIFICATIONS_MAX",
    )


def too_many_rejected(amount: str, limit: int, setting: str) -> Refused:
    return Refused(
        Refusal.TOO_MANY_REJECTED,
        f"More than {amount} do not fit the source ({setting}). Check that source and format are the right ones, or "
        "send the body as several submissions.",
        limit=limit,
        setting=setting,
    )


def too_costly(reason: str, limit: float, setting: str, advice: str = "") -> Refused:
    """The refusal of a body whose work is out of proportion to its size."""
    return Refused(Refusal.BODY_TOO_COSTLY, f"{reason} ({setting}). {advice}".rstrip(), limit=limit, setting=setting)


def not_utf8(reason: str, *, record: int | None = None) -> Refused:
    place = "The body" if record is None else f"Record {record}"
    return Refused(
        Refusal.INVALID_UTF8, f"{place} is not UTF-8: {reason}. JSON has to be UTF-8 (RFC 8259).", record=record
    )


def unreadable_body(media_type: ColumnarType, reason: str) -> Refused:
    """The refusal of a columnar body that is incomplete, or not of its media type."""
    detail = " ".join(reason[:ERROR_CHARS_MAX].split()).rstrip(".")
    return Refused(
        Refusal.UNREADABLE_BODY,
        f"The body cannot be read as {media_type}: {detail}. Check that it is complete and that its format matches the "
        "Content-Type.",
    )
