"""The checks of the telemetry: it says of the submission exactly what happened."""

import asyncio
import math
import time
from collections.abc import Sequence

from bronze.canary.checks import POLL_S, CanaryCheck, Run, found, within
from bronze.errors import Mismatch, Outage, Unavailable
from bronze.servers.prometheus import Prometheus
from bronze.servers.trace_store import Span, TraceStore
from bronze.telemetry.promql import counted
from bronze.telemetry.signals import Check, Role, attribute, spans

#: How long telemetry may take to arrive. Exports, their queues and the batches of the stores take some seconds.
ARRIVED_S_MAX = 45.0
#: Longer than an interval of exports and of the consumer's reports: a value that is the same for so long is the last.
SETTLED_S = 12.0

_CANARY = 'job="bronze/consumer", bronze_source="canary"'
_STORED = f'{_CANARY}, bronze_outcome="stored"'
_LEDGER = f"max(bronze_ledger_records{{{_STORED}}})"
_WAITING = f"sum(max by (bronze_lane) (bronze_queue_depth{{{_CANARY}}}))"
_UPLOADS = f'bronze_upload_duration_seconds_bucket{{{_CANARY}, bronze_outcome="success"}}'


class LedgerCheck(CanaryCheck):
    """The ledger and the counter of stored records grow by exactly the records that were sent."""

    name = Check.LEDGER
    needs = frozenset({Check.ONCE})

    def __init__(
        self, prometheus: Prometheus, *, settled_s: float = SETTLED_S, arrived_s_max: float = ARRIVED_S_MAX
    ) -> None:
        self._prometheus = prometheus
        self._settled_s = settled_s
        self._arrived_s_max = arrived_s_max
        self._before = 0.0
        #: What the ledger says after a run that was checked; None if it is not known.
        self._after: float | None = None

    async def prepare(self, run: Run) -> None:  # noqa: ARG002
        known, self._after = self._after, None
        self._before = await self._settled() if known is None else known

    async def _settled(self) -> float:
        """What the ledger says when nothing waits in the queue."""
        until_s = time.monotonic() + self._arrived_s_max
        same, since_s = math.nan, 0.0
        while time.monotonic() < until_s:
            ledger, waiting = await self._prometheus.value(_LEDGER), await self._prometheus.value(_WAITING)
            if ledger is None or ledger != same or waiting:
                same, since_s = math.nan if ledger is None or waiting else ledger, time.monotonic()
            elif time.monotonic() - since_s >= self._settled_s:
                return ledger
            await asyncio.sleep(POLL_S)
        raise Unavailable(
            Outage.TIMEOUT, "the ledger of the canary is not in Prometheus, or records of the canary wait in the queue"
        )

    async def check(self, run: Run) -> None:
        sent = len(run.lines)

        async def look() -> float:
            window = f"{math.ceil(time.time() - run.sent_s)}s"
            ledger = await self._prometheus.value(_LEDGER)
            counter = await self._prometheus.value(counted(f"bronze_records_total{{{_STORED}}}", window))
            if ledger is None or counter is None:
                raise Unavailable(Outage.TIMEOUT, "Prometheus has no records of the canary from any consumer")
            if ledger - self._before != sent or counter != sent:
                raise Mismatch(
                    f"{sent} records were stored, but the ledger grew by {ledger - self._before:g} and the counter by "
                    f"{counter:g}"
                )
            return ledger

        self._after = await within(self._arrived_s_max, look)


class TraceCheck(CanaryCheck):
    """The trace is whole: from the canary through API and consumer to the bucket, and each parent is in it."""

    name = Check.TRACE
    needs = frozenset({Check.OBJECT})

    def __init__(self, store: TraceStore, *, arrived_s_max: float = ARRIVED_S_MAX) -> None:
        self._store = store
        self._arrived_s_max = arrived_s_max

    async def check(self, run: Run) -> None:
        trace_id, upload_trace_id = found(run.accepted).trace_id, found(run.upload_trace_id)
        of_submission = {
            (Role.CANARY, spans.publish.name("canary")),
            (Role.API, spans.ingest.name("canary")),
            (Role.API, spans.send.name("canary")),
            (Role.CONSUMER, spans.process.name("canary")),
        }
        of_upload = {(Role.CONSUMER, spans.upload.name("canary")), (Role.CONSUMER, spans.put.name())}
        if upload_trace_id == trace_id:
            of_submission |= of_upload
        else:  # the object contains an older submission too
            await within(self._arrived_s_max, lambda: self._whole(upload_trace_id, of_upload))
        await within(self._arrived_s_max, lambda: self._whole(trace_id, of_submission))

    async def _whole(self, trace_id: str, expected: set[tuple[Role, str]]) -> None:
        trace = await trace_of(self._store, trace_id)
        # Zipkin has names in lower case
        names = {(span.service, span.name.lower()) for span in trace}
        missing = {(role.value, name.lower()) for role, name in expected} - names
        if missing:
            raise Mismatch(f"trace {trace_id} has {len(trace)} spans, but not {sorted(missing)}")
        ids = {span.span_id for span in trace}
        lost = [span.name for span in trace if span.parent_id and span.parent_id not in ids]
        roots = [span.name for span in trace if not span.parent_id]
        if lost or len(roots) != 1:
            raise Mismatch(f"trace {trace_id}: the parents of {lost} are missing, and its roots are {roots}")


class ExemplarCheck(CanaryCheck):
    """An exemplar of the upload's duration leads to the trace of the upload, which names the object."""

    name = Check.EXEMPLAR
    needs = frozenset({Check.TRACE})

    def __init__(self, prometheus: Prometheus, store: TraceStore, *, arrived_s_max: float = ARRIVED_S_MAX) -> None:
        self._prometheus = prometheus
        self._store = store
        self._arrived_s_max = arrived_s_max

    async def check(self, run: Run) -> None:
        file_path, upload_trace_id = found(run.file_path), found(run.upload_trace_id)

        async def look() -> str:
            exemplars = await self._prometheus.exemplars(_UPLOADS, run.sent_s - 1, time.time() + 1)
            traces = {exemplar.trace_id for exemplar in exemplars}
            if upload_trace_id not in traces:
                raise Mismatch(f"no exemplar leads to trace {upload_trace_id}; there are {sorted(traces)}")
            return upload_trace_id

        trace = await trace_of(self._store, await within(self._arrived_s_max, look))
        if file_path not in {span.attributes.get(attribute.bronze_file_path) for span in trace}:
            raise Mismatch(f"trace {upload_trace_id}, to which an exemplar leads, does not name {file_path}")


async def trace_of(store: TraceStore, trace_id: str) -> Sequence[Span]:
    trace = await store.trace(trace_id)
    if trace is None:
        raise Unavailable(Outage.TIMEOUT, f"{store.name} does not have trace {trace_id} in time")
    return trace
