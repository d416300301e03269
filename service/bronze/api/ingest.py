"""Ingest: a checked submission becomes durable in the queue, and is accepted. Knows no HTTP."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.errors import Gone, Outage, Refusal, Refused, Unavailable
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.submission_id import keyed_id, lane_of, new_id
from bronze.records.sources import Source
from bronze.records.spool import CheckedSubmission
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue, Superseded

#: How often a submission is tried whose subject was purged in between: each time its identity is looked up again.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class SubmissionHead:
    """What a sender says beside the body.

    `key` is the `Idempotency-Key`, `classification_id` that of the records which name none, and `file_name` the
    sender's own file, kept as `_origin`.
    """

    received_at: dt.datetime
    key: str | None = None
    classification_id: str | None = None
    file_name: str | None = None


class Ingest:
    """Accepts submissions. `lanes` are by source and number, `now_s` is the clock of the deadline."""

    def __init__(
        self,
        lanes: Mapping[tuple[str, int], Lane],
        lanes_per_source: int,
        queue: Queue,
        catalog: Catalog,
        deadline_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._lanes_per_source = lanes_per_source
        self._queue = queue
        self._catalog = catalog
        self._deadline_s = deadline_s
        self._now_s = now_s

    async def submit(
        self, source: Source, head: SubmissionHead, checked: CheckedSubmission, telemetry: SubmissionTelemetry
    ) -> AcceptedSubmission:
        """Make a submission durable; of one that was accepted before under its key, give that one.

        Raises `Refused` where the key belongs to another body, `Unavailable`, and `Gone`.
        """
        accepted, classifications = _accepted(source, head, checked, telemetry)
        telemetry.describe(accepted, checked, classifications)
        lane = self._lanes[source.name, lane_of(accepted.submission_id, self._lanes_per_source)]
        with telemetry.sending(lane, accepted, checked) as send:
            # the consumer's span is a child of the sending, whose traceparent goes with the messages
            earlier = await self._publish(
                lane, msgspec.structs.replace(accepted, traceparent=send.traceparent), checked
            )
            send.done(replayed=earlier is not None)
        if earlier is None:
            telemetry.accepted(accepted, checked)
            return accepted
        if earlier.digest != checked.digest:
            raise Refused(
                Refusal.IDEMPOTENCY_KEY_REUSED,
                f"The Idempotency-Key belongs to submission {earlier.submission_id}, which had another body. "
                "Use a new key for new data.",
                submission_id=earlier.submission_id,
            )
        telemetry.replayed(earlier)
        return earlier

    async def _publish(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission
    ) -> AcceptedSubmission | None:
        """Rule 2: the identity first, then the subject. What was there and is purged is found at the identity."""
        superseded = False
        for _ in range(ATTEMPTS):
            deadline_s = self._now_s() + self._deadline_s
            try:
                look = accepted.keyed or superseded
                identity = await self._catalog.identity(accepted.submission_id) if look else None
            except (Unavailable, Gone):
                if superseded:
                    break  # it is stored, and only its identity could tell as what
                raise
            if identity is not None:
                return identity.accepted
            try:
                return await self._queue.submit(lane, accepted, checked, deadline_s)
            except Superseded:
                superseded = True
        raise Unavailable(
            Outage.OUTCOME_UNKNOWN,
            f"Submission {accepted.submission_id} could not be settled. Send it again under the same Idempotency-Key.",
            submission_id=accepted.submission_id,
        )


def _accepted(
    source: Source, head: SubmissionHead, checked: CheckedSubmission, telemetry: SubmissionTelemetry
) -> tuple[AcceptedSubmission, list[str]]:
    """The submission as it will be accepted, and the classification_ids that its records belong to."""
    classifications = list(checked.classifications)
    default = None
    # a rejected record may be corrected and replayed: then it belongs to the default, too
    if checked.unclassified or checked.rejected:
        default = head.classification_id or new_id()
    if default is not None and (checked.unclassified or not classifications) and default not in classifications:
        classifications.append(default)
    accepted = AcceptedSubmission(
        submission_id=keyed_id(source.name, head.key) if head.key else new_id(),
        source=source.name,
        digest=checked.digest,
        records=checked.records,
        classification_id=classifications[0] if len(classifications) == 1 else None,
        classification_default=default,
        classification_count=len(classifications),
        received_at=head.received_at.isoformat(timespec="microseconds"),
        trace_id=telemetry.trace_id,
        traceparent="",
        keyed=head.key is not None,
        origin=head.file_name,
        schema_version=source.version,
        rejected=checked.rejected,
    )
    return accepted, classifications
