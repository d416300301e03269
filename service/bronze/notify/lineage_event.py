"""The OpenLineage events of a Bronze write (https://openlineage.io, version 2-0-2 of its specification)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.generated.base_subset_dataset import LocationSubsetCondition, OutputSubsetOutputDatasetFacet
from openlineage.client.generated.job_type_job import JobTypeJobFacet
from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet

from bronze.notify.event import event_id
from bronze.protocol.feed_event import ObjectEvent

#: The name of our facet of a run, and its schema, which each API serves.
WRITE_FACET = "bronze_write"
WRITE_SCHEMA = "schemas/1-0-0/BronzeWriteRunFacet.json#/$defs/BronzeWriteRunFacet"
#: Submissions that the facet lists.
SUBMISSIONS_MAX = 100


class WriteSubmission(msgspec.Struct, frozen=True):
    """A submission in an object, as `GET /v1/lineage` states it."""

    submission_id: str
    trace_id: str
    records: int
    classification_id: str | None = None
    origin: str | None = None
    principal: str | None = None


class WrittenObject(msgspec.Struct, frozen=True):
    """An object, as `GET /v1/lineage` states it."""

    ended_at: str | None = None
    submissions: int | None = None


class WriteLineage(msgspec.Struct, frozen=True):
    """What `GET /v1/lineage?file_path=` states of a Bronze write."""

    submissions: Sequence[WriteSubmission] = ()
    objects: Sequence[WrittenObject] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """The system whose writes these are: its bucket and prefix, the address of its API (ending with /), and the
    namespace of its jobs.
    """

    bucket: str
    prefix: str
    api_url: str
    namespace: str


def run_events(event: ObjectEvent, lineage: WriteLineage, site: Site) -> tuple[RunEvent, RunEvent]:
    """The begin and the end of the run that wrote an object. They are the same, however often they are made: the id of
    the run is made from the object's address.
    """
    began_at = event.written_at or event.last_received_at or "1970-01-01T00:00:00Z"
    ended_at = next((written.ended_at for written in lineage.objects if written.ended_at), None) or began_at
    job = Job(
        site.namespace,
        f"write.{event.source}",
        {"jobType": JobTypeJobFacet("BATCH", "BRONZE", "WRITE", producer=site.api_url)},
    )
    run_id = str(event_id(event, site.bucket))
    start = RunEvent(eventType=RunState.START, eventTime=began_at, run=Run(run_id), job=job, producer=site.api_url)
    facets: Any = {WRITE_FACET: _write_facet(event, lineage, site)}  # the API serves the class of our own facet
    complete = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=ended_at,
        run=Run(run_id, facets),
        job=job,
        inputs=[InputDataset(site.api_url.rstrip("/"), f"v1/ingest/{event.source}")],
        outputs=[_output(event, site)],
        producer=site.api_url,
    )
    return start, complete


def _output(event: ObjectEvent, site: Site) -> OutputDataset:
    """The objects of the source, of which this write added one: a dataset per object would have no other reader, and
    would not lead from one job to the next.
    """
    location = f"s3://{site.bucket}/{event.file_path}"
    return OutputDataset(
        f"s3://{site.bucket}",
        f"{site.prefix}/source={event.source}",
        outputFacets={
            "outputStatistics": OutputStatisticsOutputDatasetFacet(
                event.records, event.bytes, 1, producer=site.api_url
            ),
            "subset": OutputSubsetOutputDatasetFacet(LocationSubsetCondition([location]), producer=site.api_url),
        },
    )


def _write_facet(event: ObjectEvent, lineage: WriteLineage, site: Site) -> Mapping[str, Any]:
    listed = lineage.submissions[:SUBMISSIONS_MAX]
    facet = {
        "_producer": site.api_url,
        "_schemaURL": f"{site.api_url}{WRITE_SCHEMA}",
        "filePath": event.file_path,
        "traceId": event.trace_id,
        "traceparent": event.traceparent,
        "epoch": event.epoch,
        "lane": event.lane,
        "firstMessage": event.first,
        "lastMessage": event.last,
        "classificationCount": event.classification_count,
        "classificationLeast": event.classification_least,
        "classificationGreatest": event.classification_greatest,
        "submissionCount": next((written.submissions for written in lineage.objects), None),
        "submissions": [
            _without_nulls(
                {
                    "submissionId": submission.submission_id,
                    "traceId": submission.trace_id,
                    "classificationId": submission.classification_id,
                    "origin": submission.origin,
                    "principal": submission.principal,
                }
            )
            for submission in listed
        ],
    }
    return _without_nulls(facet)


def _without_nulls(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
