"""The span and the measurements of commits to tables."""

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, use_span
from opentelemetry.util.types import AttributeValue

from bronze.errors import ErrorCode
from bronze.servers.catalog_feed import FeedEntry
from bronze.servers.iceberg import TableSize
from bronze.table.committer import Commit
from bronze.telemetry.context import extract, span_context, traceparent
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import LINKS_MAX, Outcome, attribute, spans


class CommitTelemetry:
    """One commit to a table."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.commit: Commit | None = None
        self.error: ErrorCode | None = None

    @property
    def traceparent(self) -> str:
        return traceparent(self._span)


class TableTelemetry:
    """The telemetry of the role."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._instruments = telemetry.instruments

    @contextmanager
    def committing(self, source: str) -> Iterator[CommitTelemetry]:
        """Record a commit that the caller makes: it says what was committed, or the error. Nothing is recorded of one
        that had nothing to commit.
        """
        of_source: dict[str, AttributeValue] = {attribute.bronze_source: source}
        span = self._tracer.start_span(
            spans.commit.name(source), context=Context(), kind=spans.commit.kind, attributes=of_source
        )
        began_s = time.perf_counter()
        with use_span(span, end_on_exit=True):
            telemetry = CommitTelemetry(span)
            yield telemetry
            if telemetry.commit is None and telemetry.error is None:
                return
            error = {attribute.error_type: telemetry.error} if telemetry.error else {}
            outcome = Outcome.FAILURE if telemetry.error else Outcome.SUCCESS
            ended = {**of_source, attribute.bronze_outcome: outcome}
            span.set_attributes({**ended, **error})
            self._instruments.table_commits.add(1, {**ended, **error})
            self._instruments.table_commit_duration.record(time.perf_counter() - began_s, ended)
            if telemetry.commit is not None:
                self._describe(span, telemetry.commit)
                self._instruments.table_records.add(telemetry.commit.rows, of_source)
                now_s = time.time()
                for accepted_at in telemetry.commit.accepted_at:
                    self._instruments.table_delivery_duration.record(
                        max(0.0, now_s - accepted_at.timestamp()), of_source
                    )

    def _describe(self, span: Span, commit: Commit) -> None:
        span.set_attributes(
            {
                attribute.bronze_table_snapshot_id: str(commit.snapshot_id),
                attribute.bronze_objects: len(commit.entries),
                attribute.bronze_records: commit.rows,
            }
        )
        for waiting in commit.entries[:LINKS_MAX]:
            upload = span_context(extract({"traceparent": waiting.entry.traceparent}))
            if upload.is_valid:
                span.add_link(upload)

    def count_maintenance(self, source: str, error: ErrorCode | None) -> None:
        """Count a run of the maintenance of a table; `error` is the first one."""
        outcome = Outcome.FAILURE if error else Outcome.SUCCESS
        failed = {attribute.error_type: error} if error else {}
        self._instruments.table_maintenance_runs.add(
            1, {attribute.bronze_source: source, attribute.bronze_outcome: outcome, **failed}
        )

    def report(self, source: str, oldest: FeedEntry | None, size: TableSize) -> None:
        """Report a table as it is, and the object that waits longest for it."""
        of_source = {attribute.bronze_source: source}
        age_s = 0.0 if oldest is None else time.time() - dt.datetime.fromisoformat(oldest.stored_at).timestamp()
        self._instruments.table_objects_oldest_age.set(max(0.0, age_s), of_source)
        self._instruments.table_files.set(size.files, of_source)
        self._instruments.table_size.set(size.bytes, of_source)
        self._instruments.table_snapshots.set(size.snapshots, of_source)
        if size.snapshot_s is not None:
            self._instruments.table_snapshot_time.set(size.snapshot_s, of_source)
