"""`GET /v1/submissions/{submission_id}`: the status of a submission."""

from fastapi import FastAPI

from bronze.api import problems
from bronze.api.models import SubmissionStatus
from bronze.lineage.submission import SubmissionLookup


def add(app: FastAPI, submissions: SubmissionLookup) -> None:
    """Add the route that reports where submissions are."""

    @app.get(
        "/v1/submissions/{submission_id}", summary="The status of a submission", responses=problems.responses(404, 503)
    )
    async def status(submission_id: str) -> SubmissionStatus:
        accepted, identity = await submissions.find(submission_id)
        return SubmissionStatus.of(accepted, identity, await submissions.removed(identity))
