"""Submission ids: computed from the `Idempotency-Key` if there is one, else a UUIDv7; the id decides the lane."""

from uuid import UUID, uuid5

import uuid_utils

_KEYED = UUID("b2f0c1de-6a51-5d0e-9b1c-0d4e5b1c7a11")


def new_id() -> str:
    """The id of a submission without a key: a UUIDv7 (RFC 9562)."""
    return str(uuid_utils.uuid7())


def keyed_id(source: str, key: str, principal: str = "") -> str:
    """The id of a submission with an `Idempotency-Key`: a function of principal, source and key."""
    return str(uuid5(_KEYED, f"{principal}\0{source}\0{key}"))


def lane_of(submission_id: str, lanes: int) -> int:
    """The number of the lane that a submission goes to."""
    return UUID(submission_id).int % lanes
