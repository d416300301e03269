"""`GET /v1/submissions/{submission_id}`: where a submission is."""

from fastapi import FastAPI

from bronze.api import problems
from bronze.api.models import SubmissionStatus
from bronze.lineage.submission import SubmissionLookup


def add(app: FastAPI, submissions: SubmissionLookup) -> None:
    """Tell where submissions are."""

    @app.get("/v1/submissions/{submission_id}", summary="Where a submission is", responses=problems.responses(404, 503))
    async def status(submission_id: str) -> SubmissionStatus:
        return SubmissionStatus.of(*await submissions.find(submission_id))
