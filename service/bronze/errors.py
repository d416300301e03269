"""The errors of this package, grouped by who has to act.

BronzeError
 ├── Refused         the sender corrects the submission and sends it again
 ├── Unavailable     nobody: the cause is temporary, try again later
 │    └── NotPermitted   an operator gives the user the right; until then a running role waits
 ├── DeadLetter      an operator looks at the message in quarantine
 ├── Mismatch        an operator finds out why what was found is not what was sent
 ├── Halted          an operator looks at the lane: to continue could lose or duplicate data
 │    └── Gone       a supervisor restarts the role: its stream was replaced by another stream
 └── Misconfigured   an operator corrects the settings; the role does not start

Pure. Imports: none.
Libraries: none.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """A code from a fixed list: the last part of a problem document's `type`, and the `error.type` of telemetry.

    `status` is the HTTP status of the API's answer.
    """

    status: int

    def __new__(cls, word: str, status: int) -> Self:
        code = str.__new__(cls, word)
        code._value_ = word
        code.status = status
        return code


class Refusal(ErrorCode):
    """Errors that the sender has to correct."""

    UNAUTHENTICATED = "unauthenticated", 401
    FORBIDDEN = "forbidden", 403
    UNKNOWN_SOURCE = "unknown-source", 404
    MALFORMED_JSON = "malformed-json", 400
    INVALID_UTF8 = "invalid-utf8", 400
    SCHEMA_VIOLATION = "schema-violation", 422
    EMPTY_BODY = "empty-body", 400
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type", 415
    UNSUPPORTED_ENCODING = "unsupported-encoding", 415
    CORRUPT_ENCODING = "corrupt-encoding", 400
    UNREADABLE_BODY = "unreadable-body", 400
    BODY_TOO_COSTLY = "body-too-costly", 413
    BODY_TOO_LARGE = "body-too-large", 413
    RECORD_TOO_LARGE = "record-too-large", 413
    INVALID_HEADER = "invalid-header", 400
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused", 409
    CLIENT_GONE = "client-gone", 400
    BODY_TOO_SLOW = "body-too-slow", 408
    TOO_MANY_REJECTED = "too-many-rejected", 422
    MALFORMED_REQUEST = "malformed-request", 400
    HEAD_TOO_LARGE = "head-too-large", 431
    HEAD_TOO_SLOW = "head-too-slow", 408
    UNKNOWN_HOST = "unknown-host", 421
    INVALID_QUERY = "invalid-query", 400
    INVALID_CURSOR = "invalid-cursor", 400
    NOT_FOUND = "not-found", 404
    REMOVED = "removed", 410


class Outage(ErrorCode):
    """Errors that end by themselves or that an operator ends: the same request may succeed later."""

    QUEUE_AWAY = "queue-away", 503
    QUEUE_FULL = "queue-full", 503
    OUTCOME_UNKNOWN = "outcome-unknown", 503
    READERS_BUSY = "readers-busy", 503
    OVERLOADED = "overloaded", 503
    QUOTA_EXCEEDED = "quota-exceeded", 429
    UNDECIDED = "undecided", 503
    UNAVAILABLE = "unavailable", 503
    THROTTLED = "throttled", 503
    TIMEOUT = "timeout", 503
    CONFLICT = "conflict", 503
    DENIED = "denied", 503


class Fault(ErrorCode):
    """Errors inside Bronze that an operator has to look at."""

    POISON = "poison", 500
    UNKNOWN_FORMAT = "unknown-format", 500
    HALTED = "halted", 500
    MISMATCH = "mismatch", 500
    INTERNAL = "internal", 500


def error_code(word: str) -> ErrorCode | None:
    """The code with this value; None if there is none."""
    codes: list[ErrorCode] = [*Refusal, *Outage, *Fault]
    return next((code for code in codes if code == word), None)


class BronzeError(Exception):
    """The base class of every error that this package raises on purpose."""


class Refused(BronzeError):
    """A request that its sender has to correct; becomes an RFC 9457 problem document.

    `members` are the document's extension members, such as the record's index and field; those that are None are left
    out. `status` is given if a server answered with a status other than that of the code.
    """

    def __init__(self, code: ErrorCode, detail: str, *, status: int | None = None, **members: object) -> None:
        super().__init__(detail)
        self.code = code
        self.status = code.status if status is None else status
        self.detail = detail
        self.members: Mapping[str, object] = {name: value for name, value in members.items() if value is not None}


class Unavailable(BronzeError):
    """Something that Bronze depends on is unavailable or full."""

    def __init__(self, code: ErrorCode, detail: str, *, retry_after_s: int = 5, **members: object) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.members: Mapping[str, object] = members


class NotPermitted(Unavailable):
    """A server does not permit the user of this process to do this. Nothing was done."""

    def __init__(self, detail: str) -> None:
        super().__init__(Outage.DENIED, detail)


class DeadLetter(BronzeError):
    """A message that cannot become rows. It goes to quarantine byte for byte, and the chain continues."""


class Mismatch(BronzeError):
    """What a check found is not what it had to find; the message says both."""


class Halted(BronzeError):
    """The queue, the bucket and the catalog contradict each other: the lane stops and changes nothing."""


class Gone(Halted):
    """A lane's or the catalog's stream was replaced: the process ends; after a restart it finds the new stream."""


class Misconfigured(BronzeError):
    """Settings or declarations that cannot work; the message says which setting is wrong and what to do."""
