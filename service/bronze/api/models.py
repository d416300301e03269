"""The API's response bodies; those of look-ups are in `bronze.lineage`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Self

from msgspec.structs import asdict
from pydantic import BaseModel, Field

from bronze.lineage.lookup import LineageRemoval
from bronze.protocol.documents import Contents, Identity, StoredSubmission, SubmissionState, state_of, trace_id_of
from bronze.protocol.message import AcceptedSubmission, MessageKind
from bronze.protocol.removal import Removal
from bronze.servers.bucket import Head


def status_url(submission_id: str) -> str:
    """The URL of a submission's status."""
    return f"/v1/submissions/{submission_id}"


class SubmissionAccepted(BaseModel):
    """A durable submission: each of its records will be in the bucket exactly once."""

    submission_id: str = Field(examples=["01939f4e-6b7c-7cc3-a4f5-0242ac120002"])
    classification_id: str | None = Field(
        description="The classification_id that all records belong to; null if there are several.",
        examples=["2013-02-08-UA-1018-EWR-IAH"],
    )
    classification_count: int = Field(description="Number of classifications that the records belong to.", examples=[1])
    source: str = Field(examples=["status"])
    records: int = Field(description="Number of records that become rows.", examples=[1])
    rejected: int = Field(
        description="Number of records that do not fit the source and go to quarantine, if the request asked for that.",
        examples=[0],
    )
    trace_id: str = Field(examples=["4bf92f3577b34da6a3ce929d0e0e4736"])
    status_url: str = Field(examples=["/v1/submissions/01939f4e-6b7c-7cc3-a4f5-0242ac120002"])

    @classmethod
    def of(cls, accepted: AcceptedSubmission) -> Self:
        return cls.model_validate({**asdict(accepted), "status_url": status_url(accepted.submission_id)})


class ObjectRemoval(BaseModel):
    """Why an object is no longer in the bucket: the code of the reason and a note, by whom, and when."""

    reason: str
    note: str
    by: str
    at: str


class ObjectLink(BaseModel):
    """An object; `removed` is null unless it was removed from the bucket."""

    file_path: str
    url: str
    removed: ObjectRemoval | None = None

    @classmethod
    def of(cls, file_path: str, removal: Removal | None) -> Self:
        removed = LineageRemoval.of(removal) if removal else None
        return cls.model_validate(
            {
                "file_path": file_path,
                "url": f"/v1/objects/{file_path}",
                "removed": dataclasses.asdict(removed) if removed else None,
            }
        )


class SubmissionStatus(BaseModel):
    """Where a submission is: `stored` when all its messages are in objects, `quarantined` if any is in quarantine,
    `removed` when all its objects were removed.

    `rejected` is the number of records in quarantine at the sender's request; `quarantine` lists its quarantine keys.
    """

    submission_id: str
    status: SubmissionState | Literal["removed"]
    source: str
    records: int
    rejected: int
    classification_id: str | None
    classification_count: int
    received_at: str
    trace_id: str
    origin: str | None
    objects: list[ObjectLink]
    quarantine: list[str]
    principal: str | None

    @classmethod
    def of(cls, accepted: AcceptedSubmission, identity: Identity | None, removed: Mapping[str, Removal]) -> Self:
        """The status by the submission's identity, without which nothing of it is stored yet, and by its removed
        objects.
        """
        objects = identity.objects if identity else []
        status: SubmissionState | Literal["removed"] = state_of(identity) if identity else "accepted"
        if status == "stored" and objects and removed.keys() >= set(objects):
            status = "removed"
        return cls.model_validate(
            {
                **asdict(accepted),
                "principal": accepted.principal or None,
                "status": status,
                "objects": [ObjectLink.of(key, removed.get(key)) for key in objects],
                "quarantine": identity.quarantined if identity else [],
            }
        )


class SubmissionInObject(BaseModel):
    """A submission in an object; `records` is the number of its records there."""

    submission_id: str
    records: int
    trace_id: str
    classification_id: str | None
    classification_count: int
    origin: str | None
    url: str
    principal: str | None

    @classmethod
    def of(cls, stored: StoredSubmission) -> Self:
        return cls.model_validate(
            {
                **asdict(stored.accepted),
                "principal": stored.accepted.principal or None,
                "records": stored.records,
                "url": status_url(stored.accepted.submission_id),
            }
        )


class QuarantineLink(BaseModel):
    """A message of an object's range that became no rows; it is in quarantine under `key`."""

    sequence: int
    key: str
    kind: MessageKind
    records: int
    reason: str


class ObjectContents(BaseModel):
    """The contents of an object, from its own metadata and footer. `erased` counts the records of `records` that were
    erased: the file has that many rows less.
    """

    file_path: str
    source: str
    records: int
    messages: int
    bytes: int
    epoch: str
    lane: int
    first: int
    last: int
    writer: str
    sha256: str | None
    traceparent: str
    trace_id: str
    first_received_at: str | None
    last_received_at: str | None
    submissions: list[SubmissionInObject]
    quarantined: list[QuarantineLink]
    duplicates: int
    erased: int

    @classmethod
    def of(cls, contents: Contents, head: Head) -> Self:
        return cls.model_validate(
            {
                **asdict(contents),
                "bytes": head.size,
                "sha256": head.metadata.get("sha256"),
                "trace_id": trace_id_of(contents.traceparent),
                "submissions": [SubmissionInObject.of(stored) for stored in contents.submissions],
                "quarantined": [QuarantineLink.model_validate(asdict(message)) for message in contents.quarantined],
                "duplicates": len(contents.duplicates),
                "erased": contents.erased,
            }
        )


class Problem(BaseModel):
    """An RFC 9457 problem document; `record` (its index, from 0) and `field` are present if they caused the problem."""

    type: str = Field(examples=["/problems/schema-violation"])
    title: str = Field(examples=["Schema violation"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["Record 3, field run_number: Expected `int`, got `str`."])
    record: int | None = Field(default=None, examples=[3])
    field: str | None = Field(default=None, examples=["run_number"])
    trace_id: str | None = None
