"""`GET /v1/submissions/{submission_id}`: the status of a submission."""

from fastapi import FastAPI, Request

from bronze.api import problems
from bronze.api.authentication import caller
from bronze.api.models import SubmissionStatus
from bronze.api.openapi_security import reading
from bronze.lineage.submission import SubmissionLookup, not_found
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.principals import Caller


def add(app: FastAPI, submissions: SubmissionLookup) -> None:
    """Add the route that reports where submissions are."""

    @app.get(
        "/v1/submissions/{submission_id}",
        summary="The status of a submission",
        responses=problems.responses(401, 404, 429, 503),
        openapi_extra=reading(),
    )
    async def status(request: Request, submission_id: str) -> SubmissionStatus:
        submission_id = submission_id.lower()  # a UUID (RFC 9562)
        accepted, identity = await submissions.find(submission_id)
        if not _may_see(caller(request), accepted):
            raise not_found(submission_id)
        return SubmissionStatus.of(accepted, identity, await submissions.removed(identity))


def _may_see(found: Caller, accepted: AcceptedSubmission) -> bool:
    """Whether it is the caller's own submission, or of a source that the caller may read."""
    own = accepted.principal == found.principal or not (accepted.principal or found.namespace)
    return own or found.may_read(accepted.source)
