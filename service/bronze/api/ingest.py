"""Ingest: make a checked submission durable in the queue, and accept it. Independent of HTTP."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.errors import Gone, Outage, Refusal, Refused, Unavailable
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.principals import OPEN, Caller
from bronze.protocol.submission_id import keyed_id, lane_of, new_id
from bronze.records.sources import Source
from bronze.records.spool import CheckedSubmission
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue, Superseded

#: How often a submission is tried if its subject was purged meanwhile; its identity is looked up before each retry.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class SubmissionHead:
    """The headers of a submission.

    `caller` is who sends it, and `key` the `Idempotency-Key`. `classification_id` is for the records that have none of
    their own, and `file_name` is the sender's own file, stored as `_origin`.
    """

    received_at: dt.datetime
    key: str | None = None
    classification_id: str | None = None
    file_name: str | None = None
    caller: Caller = OPEN


class Ingest:
    """Accepts submissions. The keys of `lanes` are source and number; `now_s` is the clock of the deadline."""

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
        """Make a submission durable. If its key was used before, return the earlier submission.

        Raises `Refused` if that one had another body, `Unavailable`, and `Gone`.
        """
        accepted, classifications = _accepted(source, head, checked, telemetry)
        telemetry.describe(accepted, checked, classifications)
        lane = self._lanes[source.name, lane_of(accepted.submission_id, self._lanes_per_source)]
        with telemetry.sending(lane, accepted, checked) as send:
            # the messages carry the traceparent of the send span, so that the consumer's span is its child
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
        """Rule 2: check the identity, then the subject. A purged submission still has its identity."""
        superseded = False
        for _ in range(ATTEMPTS):
            deadline_s = self._now_s() + self._deadline_s
            try:
                may_exist = accepted.keyed or superseded
                identity = await self._catalog.identity(accepted.submission_id) if may_exist else None
            except (Unavailable, Gone):
                if superseded:
                    break  # it is stored, but its answer is known from its identity only
                raise
            if identity is not None:
                return identity.accepted
            try:
                return await self._queue.submit(lane, accepted, checked, deadline_s)
            except Superseded:
                superseded = True
        raise Unavailable(
            Outage.OUTCOME_UNKNOWN,
            f"It is not known whether submission {accepted.submission_id} was accepted. If it had an "
            "Idempotency-Key, send it again with the same key. If not, ask for its status before you send it again.",
            submission_id=accepted.submission_id,
        )


def _accepted(
    source: Source, head: SubmissionHead, checked: CheckedSubmission, telemetry: SubmissionTelemetry
) -> tuple[AcceptedSubmission, list[str]]:
    """The submission as it will be accepted, and the classification_ids of its records."""
    classifications = list(checked.classifications)
    default = None
    # a rejected record may be corrected and replayed; its replay needs the default
    if checked.unclassified or checked.rejected:
        default = head.classification_id or new_id()
    if default is not None and (checked.unclassified or not classifications) and default not in classifications:
        classifications.append(default)
    accepted = AcceptedSubmission(
        submission_id=keyed_id(source.name, head.key, head.caller.namespace) if head.key else new_id(),
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
        principal=head.caller.principal,
    )
    return accepted, classifications
