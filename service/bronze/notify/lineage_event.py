"""The OpenLineage events of a Bronze write and of a commit to a table (https://openlineage.io, specification 2-0-2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.generated.base_subset_dataset import LocationSubsetCondition, OutputSubsetOutputDatasetFacet
from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
from openlineage.client.generated.job_type_job import JobTypeJobFacet
from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet
from openlineage.client.generated.symlinks_dataset import Identifier, SymlinksDatasetFacet

from bronze.notify.event import SnapshotEvent, event_id
from bronze.protocol.feed_event import ObjectEvent

#: The names of our facets of a run, and their schemas, which each API serves.
WRITE_FACET = "bronze_write"
WRITE_SCHEMA = "schemas/1-0-0/BronzeWriteRunFacet.json#/$defs/BronzeWriteRunFacet"
COMMIT_FACET = "bronze_commit"
COMMIT_SCHEMA = "schemas/1-0-0/BronzeCommitRunFacet.json#/$defs/BronzeCommitRunFacet"
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
    namespace of its jobs; and the address of the catalog of its tables, and their namespace there.
    """

    bucket: str
    prefix: str
    api_url: str
    namespace: str
    tables_address: str = ""
    tables_namespace: str = ""


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


def commit_events(event: SnapshotEvent, site: Site) -> tuple[RunEvent, RunEvent]:
    """The begin and the end of the run that committed a snapshot, both at the time of the commit."""
    job = Job(
        site.namespace,
        f"table.{event.source}",
        {"jobType": JobTypeJobFacet("BATCH", "BRONZE", "COMMIT", producer=site.api_url)},
    )
    run_id = str(event_id(event, site.bucket))
    facet = {
        "_producer": site.api_url,
        "_schemaURL": f"{site.api_url}{COMMIT_SCHEMA}",
        "snapshotId": event.snapshot_id,
        "parentSnapshotId": event.parent_snapshot_id,
        "operation": event.operation,
        "objects": event.objects,
        "traceparent": event.traceparent,
    }
    facets: Any = {COMMIT_FACET: _without_nulls(facet)}
    # another program's snapshot does not say where its rows come from
    inputs = [] if event.objects is None else [InputDataset(*_objects_of(event.source, site))]
    start = RunEvent(
        eventType=RunState.START, eventTime=event.committed_at, run=Run(run_id), job=job, producer=site.api_url
    )
    complete = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=event.committed_at,
        run=Run(run_id, facets),
        job=job,
        inputs=inputs,
        outputs=[_table(event, site)],
        producer=site.api_url,
    )
    return start, complete


def _table(event: SnapshotEvent, site: Site) -> OutputDataset:
    """Named by where its files are, as OpenLineage's integration of Spark names tables; its name in the catalog is a
    link to it.
    """
    place = urlsplit(event.location)
    namespace = f"{place.scheme}://{place.netloc}" if place.netloc else "file"
    link = Identifier(site.tables_address, f"{site.tables_namespace}.{event.source}", "TABLE")
    return OutputDataset(
        namespace,
        place.path.strip("/") if place.netloc else place.path,
        facets={
            "symlinks": SymlinksDatasetFacet([link], producer=site.api_url),
            "version": DatasetVersionDatasetFacet(event.snapshot_id, producer=site.api_url),
        },
        outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(event.records, producer=site.api_url)},
    )


def _objects_of(source: str, site: Site) -> tuple[str, str]:
    """The namespace and the name of the dataset of a source's objects."""
    return f"s3://{site.bucket}", f"{site.prefix}/source={source}"


def _output(event: ObjectEvent, site: Site) -> OutputDataset:
    """The objects of the source, of which this write added one: a dataset per object would have no other reader, and
    would not lead from one job to the next.
    """
    location = f"s3://{site.bucket}/{event.file_path}"
    return OutputDataset(
        *_objects_of(event.source, site),
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
