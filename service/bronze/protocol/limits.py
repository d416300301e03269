"""The bounds of an object, and the cut of waiting messages that fits them (rule 3: any cut is valid)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bronze.protocol.message import FORMAT, Message, format_version, schema_version, unix_time_s


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one object: message bytes, messages, submissions, and the age in seconds at which it is due."""

    bytes_max: int
    messages_max: int
    submissions_max: int
    age_s_max: float


def full(pending: Sequence[Message], limits: Limits) -> bool:
    return (
        len(pending) >= limits.messages_max
        or sum(message.size for message in pending) >= limits.bytes_max
        or len({message.subject for message in pending}) >= limits.submissions_max
    )


def due(pending: Sequence[Message], now_s: float, limits: Limits) -> bool:
    """Whether the waiting messages have to become an object now: by their size, or by the age of the oldest."""
    if not pending:
        return False
    return full(pending, limits) or now_s - unix_time_s(pending[0].time) >= limits.age_s_max


def next_cut(pending: Sequence[Message], limits: Limits) -> list[Message]:
    """The most messages from the first on that fit into one object; at least one message."""
    cut: list[Message] = []
    size = 0
    subjects: set[str] = set()
    for message in pending:
        size += message.size
        subjects.add(message.subject)
        if cut and (
            len(cut) >= limits.messages_max or size > limits.bytes_max or len(subjects) > limits.submissions_max
        ):
            break
        cut.append(message)
    return cut


def readable_prefix(messages: Sequence[Message], version: int) -> list[Message]:
    """The messages before the first that has a newer format, or a newer version of the source than `version`.

    That message, and all after it, are left to a newer consumer.
    """
    readable: list[Message] = []
    for message in messages:
        if (format_version(message.headers) or 0) > FORMAT or (schema_version(message.headers) or 0) > version:
            break
        readable.append(message)
    return readable


def digest(messages: Sequence[Message]) -> str:
    """SHA-256 over the facts that identify each message of a range: sequence, subject, stored time."""
    sha = hashlib.sha256()
    for message in messages:
        sha.update(f"{message.sequence} {message.subject} {message.time}\n".encode())
    return sha.hexdigest()
