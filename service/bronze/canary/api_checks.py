"""The checks of the API: the submission is accepted, and its lineage is found by each id."""

from bronze.canary.api import Api, By
from bronze.canary.checks import CanaryCheck, Run, found, within
from bronze.errors import Mismatch, Refusal, Refused
from bronze.telemetry.signals import Check

#: How long a look-up is repeated. The API's catalog index follows the catalog within a second.
FOUND_S_MAX = 15.0


class AcceptedCheck(CanaryCheck):
    """The submission gets a 202, by the publisher's own sender, whose retries have a deadline."""

    name = Check.ACCEPTED

    def __init__(self, api: Api) -> None:
        self._api = api

    async def check(self, run: Run) -> None:
        run.accepted = await self._api.send(run.key, run.lines)


class LineageCheck(CanaryCheck):
    """The submission and its object are found by each of their ids."""

    name = Check.LINEAGE
    needs = frozenset({Check.OBJECT})

    def __init__(self, api: Api, *, found_s_max: float = FOUND_S_MAX) -> None:
        self._api = api
        self._found_s_max = found_s_max

    async def check(self, run: Run) -> None:
        accepted, file_path = found(run.accepted), found(run.file_path)
        ids: dict[By, str] = {
            "submission_id": accepted.submission_id,
            "trace_id": accepted.trace_id,
            "classification_id": run.key,
            "file_path": file_path,
        }

        async def look(by: By, value: str) -> None:
            try:
                lineage = await self._api.lineage(by, value)
            except Refused as error:
                if error.code is not Refusal.NOT_FOUND:
                    raise
                raise Mismatch(f"the API finds nothing by {by} {value}") from error
            submissions = {submission.submission_id for submission in lineage.submissions}
            objects = {written.file_path for written in lineage.objects}
            if accepted.submission_id not in submissions or file_path not in objects:
                raise Mismatch(f"by {by} {value} the API finds {sorted(submissions)} and {sorted(objects)}")

        for by, value in ids.items():
            await within(self._found_s_max, lambda by=by, value=value: look(by, value))  # type: ignore[misc]
