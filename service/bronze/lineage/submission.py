"""Find a submission by its id: by its identity, or else in the queue."""

from collections.abc import Mapping

from bronze.errors import Refusal, Refused, Unavailable
from bronze.protocol.documents import Identity
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.removal import Removal
from bronze.protocol.submission_id import lane_of
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue


class SubmissionLookup:
    """Finds submissions. The keys of `lanes` are source and number."""

    def __init__(
        self,
        lanes: Mapping[tuple[str, int], Lane],
        lanes_per_source: int,
        queue: Queue,
        catalog: Catalog,
        bucket: Bucket,
    ) -> None:
        self._lanes = lanes
        self._lanes_per_source = lanes_per_source
        self._queue = queue
        self._catalog = catalog
        self._bucket = bucket

    async def find(self, submission_id: str) -> tuple[AcceptedSubmission, Identity | None]:
        """A submission with its identity, which is None if nothing of it is stored yet. Raises `Refused` (404)."""
        try:
            number = lane_of(submission_id, self._lanes_per_source)
        except ValueError as error:
            raise not_found(submission_id) from error
        identity = await self._catalog.identity(submission_id)
        if identity is not None:
            return identity.accepted, identity
        for lane in self._lanes.values():
            if lane.number == number:
                accepted = await self._queue.find_submission(lane, submission_id)
                if accepted is not None:
                    return accepted, None
        raise not_found(submission_id)

    async def removed(self, identity: Identity | None) -> Mapping[str, Removal]:
        """The objects of a submission that were removed, by path.

        Only objects with a removal record are looked for in the bucket, since one that was restored is not removed. If
        the bucket does not answer, the record counts.
        """
        published = await self._catalog.removals(identity.objects) if identity else {}
        return {path: removal for path, removal in published.items() if await self._is_gone(path, removal)}

    async def _is_gone(self, file_path: str, removal: Removal) -> bool:
        try:
            head = await self._bucket.head(file_path)
        except Unavailable:
            return True
        return head is None or removal.bytes not in {None, head.stored_size}


def not_found(submission_id: str) -> Refused:
    """The error for a submission that is not known, or that the caller may not see."""
    return Refused(
        Refusal.NOT_FOUND,
        f"Submission {submission_id!r} is not known. Either it was never accepted, or its identity has expired "
        "(24 hours after it was stored; 30 days if it had an Idempotency-Key). If it has expired, its records are "
        "still in the bucket: search the column `_submission_id` for this id.",
    )
