"""The ingestion API: one POST is one submission, accepted or refused as a whole.

A 202 is sent after the queue's durable ack, never before; nothing of what is refused is kept.
"""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Span, Status, StatusCode, get_current_span
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from bronze import __version__
from bronze.api import source_schema
from bronze.api.columnar_reader import Body, Readers
from bronze.api.page import Page
from bronze.api.source_schema import DeclaredSources, SourceSchema
from bronze.errors import Fault, Gone, Halted, Outage, Refusal, Refused, Unavailable
from bronze.lineage.lookup import LIMIT, LIMIT_MAX, By, Chain, Lookups
from bronze.objects.reader import read_contents
from bronze.protocol.documents import CLASSIFICATIONS_LISTED_MAX, Identity, State, state_of, trace_id_of
from bronze.protocol.keys import may_be_object
from bronze.protocol.lane import Lane
from bronze.protocol.message import FILE_NAME_CHARS_MAX, Accepted
from bronze.protocol.submission_id import keyed_id, lane_of, new_id
from bronze.records.encodings import ENCODINGS
from bronze.records.json_intake import JsonIntake
from bronze.records.media import Format
from bronze.records.refusals import too_large
from bronze.records.sources import CLASSIFICATION_ID_CHARS_MAX, Source
from bronze.records.spool import Checked
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue, Superseded
from bronze.settings import Settings
from bronze.telemetry.context import trace_id_hex, traceparent
from bronze.telemetry.sdk import FASTAPI_TELEMETRY_OFF, Telemetry
from bronze.telemetry.signals import NATS, OTHER_SOURCE, Outcome, Stage, attribute, error_type, spans

log = logging.getLogger(__name__)

INGEST = "/v1/ingest/{source}"
NDJSON = "application/x-ndjson"
JSON = "application/json"
PROBLEM = "application/problem+json"
#: What a body may be, by its media type.
MEDIA: Mapping[str, str] = {
    NDJSON: "one JSON object a line",
    JSON: "an object or an array of objects",
    Format.ARROW_STREAM: "an Arrow IPC stream",
    Format.PARQUET: "a Parquet file",
}
KEY_CHARS_MAX = 255
#: A piece beyond this, about a millisecond's work, is checked in a thread, so that others are served meanwhile; so is
#: all that may inflate. Below it, the thread would cost more than the work.
INLINE_BYTES_MAX = 256 * 2**10
PIECE_BYTES = 2**20
#: What `?on_invalid=` may say.
REFUSE = "refuse"
QUARANTINE = "quarantine"
SEND = "send"
READY_TIMEOUT_S = 3.0
#: What is still read of a body that is refused already.
DRAIN_BYTES_MAX = 64 * 2**20
DRAIN_S_MAX = 10.0

T = TypeVar("T")


# --- what the API answers


class SubmissionAccepted(BaseModel):
    """A submission that is durable: each of its records will be in the bucket exactly once."""

    submission_id: str = Field(examples=["01939f4e-6b7c-7cc3-a4f5-0242ac120002"])
    classification_id: str | None = Field(
        description="The run that all records belong to; null where there are several.", examples=["2013-01-01-UA-1545"]
    )
    classification_count: int = Field(description="How many runs the records belong to.", examples=[1])
    source: str = Field(examples=["status"])
    records: int = Field(description="How many become rows.", examples=[1])
    rejected: int = Field(
        description="How many do not fit the source and are kept in quarantine, where the request asked for that.",
        examples=[0],
    )
    trace_id: str = Field(examples=["4bf92f3577b34da6a3ce929d0e0e4736"])
    status_url: str = Field(examples=["/v1/submissions/01939f4e-6b7c-7cc3-a4f5-0242ac120002"])


class ObjectLink(BaseModel):
    file_path: str
    url: str


class SubmissionStatus(BaseModel):
    """Where a submission is: `stored` when all its messages are in objects, `quarantined` if any was set aside.

    `rejected` records are set aside at the sender's request; `quarantine` has the keys of all that is set aside so far.
    """

    submission_id: str
    status: State
    source: str
    records: int
    rejected: int
    classification_id: str | None
    classification_count: int
    received_at: str
    trace_id: str
    origin: str | None
    objects: list[ObjectLink]
    quarantine: list[str]


class ObjectContents(BaseModel):
    """What an object holds, by its own metadata and footer."""

    file_path: str
    source: str
    records: int
    messages: int
    bytes: int
    epoch: str
    lane: int
    first: int
    last: int
    writer: str
    sha256: str | None
    traceparent: str
    trace_id: str
    first_received_at: str | None
    last_received_at: str | None
    submissions: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    duplicates: int


class Problem(BaseModel):
    """An RFC 9457 problem document; `record` and `field` are there where one is to blame."""

    type: str = Field(examples=["/problems/schema-violation"])
    title: str = Field(examples=["Schema violation"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["Record 3, field run_number: Expected `int`, got `str`."])
    record: int | None = Field(default=None, examples=[3])
    field: str | None = Field(default=None, examples=["run_number"])
    trace_id: str | None = None


def _header(name: str, description: str) -> Mapping[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", "minLength": 1}}


#: What a submission is made of, told here: declared as the handler's parameters, FastAPI would take them apart at each
#: request, for a tenth of its time.
_INGEST: Mapping[str, Any] = {
    "parameters": [
        _header("Idempotency-Key", "A retry under the same key is the same submission: same 202, nothing twice."),
        _header(
            "Bronze-Classification-Id", "The run that records without a `classification_id` of their own belong to."
        ),
        _header("Bronze-File-Name", "The client's own file, kept as `_origin`; percent-encoded UTF-8."),
        {
            "name": "on_invalid",
            "in": "query",
            "description": "What becomes of a JSON record that does not fit the source: `refuse` refuses the "
            "submission, `quarantine` keeps the record byte for byte and takes the others.",
            "schema": {"type": "string", "enum": [REFUSE, QUARANTINE], "default": REFUSE},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            NDJSON: {
                "schema": {"type": "string"},
                "example": '{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}\n'
                '{"vehicle_id": "N24211", "manufacturer": "BOEING", "seats": 149}\n',
            },
            JSON: {
                "schema": {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
                "example": [{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}],
            },
            **{str(form): {"schema": {"type": "string", "contentMediaType": str(form)}} for form in Format},
        },
    },
}


def _ingest(sources: Sequence[str]) -> dict[str, Any]:
    source = {"name": "source", "in": "path", "required": True, "schema": {"type": "string", "enum": sources}}
    return {**_INGEST, "parameters": [source, *_INGEST["parameters"]]}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "content": {PROBLEM: {}}} for status in statuses}


class Api:
    """The API's work, apart from HTTP routing."""

    def __init__(
        self,
        settings: Settings,
        sources: Mapping[str, Source],
        lanes: Mapping[tuple[str, int], Lane],
        queue: Queue,
        bucket: Bucket,
        catalog: Catalog,
        telemetry: Telemetry,
        now_s: Callable[[], float],
        fatal: Callable[[Gone], None],
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._lanes = lanes
        self._queue = queue
        self._bucket = bucket
        self._catalog = catalog
        self._telemetry = telemetry
        self._now_s = now_s
        self._fatal = fatal
        self._readers = Readers(settings)

    # --- ingest

    async def ingest(self, source_name: str, request: Request) -> Accepted:
        """Take a submission: checked whole, then durable in the queue. Raises `Refused` and `Unavailable`."""
        received_at = dt.datetime.now(dt.UTC)
        span = get_current_span()
        source = self.source(source_name)
        span.set_attribute(attribute.bronze_source, source.name)
        key = _key(request)
        classification = _text(request, "Bronze-Classification-Id", CLASSIFICATION_ID_CHARS_MAX)
        origin = _text(request, "Bronze-File-Name", FILE_NAME_CHARS_MAX)
        checked = await self._check(source, request, keep_invalid=_keep_invalid(request))
        request.state.records = checked.records + checked.rejected
        try:
            submission_id = keyed_id(source.name, key) if key else new_id()
            listed = list(checked.classifications)
            default = None
            if checked.unclassified or checked.rejected:  # what was rejected may be mended, and is of this run then
                default = classification or new_id()
            if default is not None and (checked.unclassified or not listed) and default not in listed:
                listed.append(default)
            accepted = Accepted(
                submission_id=submission_id,
                source=source.name,
                digest=checked.digest,
                records=checked.records,
                classification_id=listed[0] if len(listed) == 1 else None,
                classification_default=default,
                classification_count=len(listed),
                received_at=received_at.isoformat(timespec="microseconds"),
                trace_id=trace_id_hex(span),
                traceparent=traceparent(span),
                keyed=key is not None,
                origin=origin,
                schema_version=source.version,
                rejected=checked.rejected,
            )
            self._describe(span, accepted, checked, listed)
            earlier = await self._submit(accepted, checked)
        finally:
            checked.close()
        if earlier is None:
            self._count_taken(accepted, Outcome.ACCEPTED, checked.body_bytes)
            for kind, records in checked.invalid.items():
                self._telemetry.instruments.records_invalid.add(
                    records, {attribute.bronze_source: source.name, attribute.error_type: kind}
                )
            return accepted
        if earlier.digest != checked.digest:
            raise Refused(
                Refusal.IDEMPOTENCY_KEY_REUSED,
                f"The Idempotency-Key belongs to submission {earlier.submission_id}, which had another body. "
                "Use a new key for new data.",
                submission_id=earlier.submission_id,
            )
        self._count_taken(earlier, Outcome.REPLAYED, checked.body_bytes)
        return earlier

    async def _check(self, source: Source, request: Request, *, keep_invalid: bool) -> Checked:
        """Read, decode and check the whole body, within a memory bound and off the event loop where it is large."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in MEDIA:
            forms = ", ".join(f"{name} ({what})" for name, what in MEDIA.items())
            raise Refused(
                Refusal.UNSUPPORTED_MEDIA_TYPE,
                f"The Content-Type {media!r} is not taken. Send one of: {forms}.",
                accepted=[*MEDIA],
            )
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ENCODINGS:
            raise Refused(
                Refusal.UNSUPPORTED_ENCODING,
                f"The Content-Encoding {encoding!r} is not taken. Send gzip, zstd, or none.",
                accepted=list(ENCODINGS),
            )
        if media in [*Format]:
            if keep_invalid:
                raise Refused(
                    Refusal.INVALID_HEADER,
                    f"?on_invalid={QUARANTINE} is for JSON records ({NDJSON} or {JSON}): a body of columns is "
                    "taken or refused as a whole.",
                    header="on_invalid",
                )
            return await self._check_columnar(source, Format(media), encoding, request)
        decoder = ENCODINGS[encoding]()
        limit = self._settings.json_body_bytes_max if media == JSON else self._settings.body_bytes_max
        intake = JsonIntake(
            source,
            body_bytes_max=limit,
            spool_memory_bytes_max=self._settings.spool_memory_bytes_max,
            keep_invalid=keep_invalid,
        )
        document = bytearray()

        def take(piece: bytes) -> None:
            for decoded in decoder.feed(piece):
                if media == NDJSON:
                    intake.lines(decoded)
                    continue
                document.extend(decoded)
                if len(document) > limit:
                    raise too_large(limit, "Send NDJSON (application/x-ndjson), which is streamed.")

        def finish() -> Checked:
            decoder.finish()
            if media == JSON:
                intake.document(bytes(document))
            return intake.finish()

        small = INLINE_BYTES_MAX if not keep_invalid else 0  # a bad record takes many times what a good one does
        stream = request.stream()
        try:
            async for piece in _pieces(stream):
                await _run(take, piece, inline=encoding == "identity" and len(piece) <= small)
            return await _run(finish, inline=len(document) <= small)
        except BaseException as error:
            request.state.records = max(1, intake.records)
            intake.close()
            if isinstance(error, Refused):
                await _drain(stream)
            raise

    async def _check_columnar(self, source: Source, form: Format, encoding: str, request: Request) -> Checked:
        """Spool the whole body, decoded, and have it read where it can do no harm."""
        decoder = ENCODINGS[encoding]()
        body = Body(form, self._settings.body_bytes_max)

        def take(piece: bytes) -> None:
            for decoded in decoder.feed(piece):
                body.take(decoded)

        stream = request.stream()
        try:
            async for piece in _pieces(stream):
                await _run(take, piece, inline=encoding == "identity" and len(piece) <= INLINE_BYTES_MAX)
            decoder.finish()
            return await self._readers.read(source, body)
        except Refused:
            await _drain(stream)
            raise
        finally:
            body.close()

    async def _submit(self, accepted: Accepted, checked: Checked) -> Accepted | None:
        """Make it durable; None: done. An `Accepted`: what the same key was accepted as before."""
        source = accepted.source
        lane = self._lanes[source, lane_of(accepted.submission_id, self._settings.lanes)]
        messaging = {
            attribute.messaging_system: NATS,
            attribute.messaging_destination_name: f"bronze.{source}",
            attribute.messaging_operation_name: SEND,
        }
        instruments = self._telemetry.instruments
        failed: dict[str, str] = {}
        with self._telemetry.tracer.start_as_current_span(
            spans.send.name(source),
            kind=spans.send.kind,
            attributes={
                **messaging,
                attribute.messaging_operation_type: SEND,
                attribute.messaging_batch_message_count: checked.messages,
                attribute.messaging_message_body_size: checked.body_bytes,
                attribute.bronze_source: source,
                attribute.bronze_lane: str(lane.number),
                attribute.bronze_submission_id: accepted.submission_id,
                attribute.bronze_records: checked.records,
            },
        ) as span:
            began_s = time.perf_counter()
            try:
                earlier = await self._publish(
                    lane, msgspec.structs.replace(accepted, traceparent=traceparent(span)), checked
                )
            except BaseException as error:  # a request that was cancelled, too
                failed = {attribute.error_type: error_type(error)}
                span.set_attributes(failed)
                raise
            finally:
                took_s = time.perf_counter() - began_s
                instruments.messaging_client_sent_messages.add(checked.messages, messaging | failed)
                instruments.messaging_client_operation_duration.record(
                    took_s, {**messaging, attribute.messaging_operation_type: SEND, **failed}
                )
                instruments.stage_duration.record(
                    took_s, {attribute.bronze_source: source, attribute.bronze_stage: Stage.ACCEPT}
                )
            span.set_attribute(attribute.bronze_outcome, Outcome.REPLAYED if earlier else Outcome.ACCEPTED)
            return earlier

    async def _publish(self, lane: Lane, accepted: Accepted, checked: Checked) -> Accepted | None:
        """Rule 2: the identity first, then the subject. What was there and is purged is found at the identity."""
        superseded = False
        for _ in range(3):
            deadline_s = self._now_s() + self._settings.deadline_s
            try:
                look = accepted.keyed or superseded
                identity = await self._catalog.identity(accepted.submission_id) if look else None
            except (Unavailable, Gone):
                if superseded:
                    break  # it is stored, and only its identity could tell as what
                raise
            if identity is not None:
                return identity.accepted
            try:
                return await self._queue.submit(lane, accepted, checked, deadline_s)
            except Superseded:
                superseded = True
        raise Unavailable(
            Outage.OUTCOME_UNKNOWN,
            f"Submission {accepted.submission_id} could not be settled. Send it again under the same Idempotency-Key.",
            submission_id=accepted.submission_id,
        )

    def _describe(self, span: Span, accepted: Accepted, checked: Checked, classifications: list[str]) -> None:
        span.set_attributes(
            {
                attribute.bronze_submission_id: accepted.submission_id,
                attribute.bronze_classification_id: classifications[:CLASSIFICATIONS_LISTED_MAX],
                attribute.bronze_classification_count: accepted.classification_count,
                attribute.bronze_records: checked.records,
                attribute.bronze_bytes: checked.body_bytes,
            }
        )

    # --- look-ups

    def source(self, name: str) -> Source:
        """A declared source. Raises `Refused` (404) that lists the known ones."""
        source = self._sources.get(name)
        if source is None:
            raise Refused(
                Refusal.UNKNOWN_SOURCE,
                f"There is no source {name!r}. The sources are: {', '.join(self._sources)}.",
                sources=list(self._sources),
            )
        return source

    def sources(self) -> DeclaredSources:
        """All declared sources."""
        return source_schema.listed(self._sources.values())

    async def whereabouts(self, submission_id: str) -> tuple[Accepted, Identity | None]:
        """A submission, by its identity, else (None) by its lane's subject. Raises `Refused` (404)."""
        try:
            lane_number = lane_of(submission_id, self._settings.lanes)
        except ValueError as error:
            raise _no_submission(submission_id) from error
        identity = await self._catalog.identity(submission_id)
        if identity is not None:
            return identity.accepted, identity
        for source in self._sources:
            accepted = await self._queue.submitted(self._lanes[source, lane_number], submission_id)
            if accepted is not None:
                return accepted, None
        raise _no_submission(submission_id)

    async def status(self, submission_id: str) -> SubmissionStatus:
        """Where a submission is. Raises `Refused` (404)."""
        accepted, identity = await self.whereabouts(submission_id)
        if identity is None:
            return _status_of(accepted, "accepted", [], [])
        return _status_of(identity.accepted, state_of(identity), identity.objects, identity.quarantined)

    async def object(self, file_path: str) -> ObjectContents:
        """What an object holds. Raises `Refused` (404)."""
        missing = Refused(Refusal.NOT_FOUND, f"There is no object {file_path!r} in the bucket.")
        if not may_be_object(self._settings.prefix, file_path):
            raise missing
        head = await self._bucket.head(file_path)
        try:
            contents = await read_contents(self._bucket, file_path) if head else None
        except Halted as error:
            raise Refused(Refusal.NOT_FOUND, f"{error}.") from error
        if head is None or contents is None:
            raise missing
        return ObjectContents(
            file_path=contents.file_path,
            source=contents.source,
            records=contents.records,
            messages=contents.messages,
            bytes=head.size,
            epoch=contents.epoch,
            lane=contents.lane,
            first=contents.first,
            last=contents.last,
            writer=contents.writer,
            sha256=head.metadata.get("sha256"),
            traceparent=contents.traceparent,
            trace_id=trace_id_of(contents.traceparent),
            first_received_at=contents.first_received_at,
            last_received_at=contents.last_received_at,
            submissions=[
                {
                    "submission_id": one.accepted.submission_id,
                    "records": one.records,
                    "trace_id": one.accepted.trace_id,
                    "classification_id": one.accepted.classification_id,
                    "classification_count": one.accepted.classification_count,
                    "origin": one.accepted.origin,
                    "url": _status_url(one.accepted.submission_id),
                }
                for one in contents.submissions
            ],
            quarantined=[
                {
                    "sequence": one.sequence,
                    "key": one.key,
                    "kind": one.kind,
                    "records": one.records,
                    "reason": one.reason,
                }
                for one in contents.quarantined
            ],
            duplicates=len(contents.duplicates),
        )

    async def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether submissions can be taken, which the queue decides; the bucket's absence is told, and waited out.

        Raises `Gone`: this is how an idle API learns of it.
        """

        async def answers() -> None:
            lane = next(iter(self._lanes.values()))
            await self._queue.state(lane)
            await self._catalog.position(lane)

        queue, bucket = await asyncio.gather(_probe(answers()), _probe(self._bucket.check()))
        ready = queue == "ok"
        status = "ready" if ready else "not ready: the queue is away"
        return ready, {
            "status": status,
            "service_instance_id": self._telemetry.instance_id,
            "queue": queue,
            "bucket": bucket,
        }

    def gone(self, error: Gone) -> Unavailable:
        """The queue or the catalog was replaced: the API ends, and one that is started anew finds the others."""
        self._fatal(error)
        return Unavailable(
            Outage.QUEUE_AWAY, "The queue or the catalog was replaced, and the API starts anew. Nothing was stored."
        )

    # --- outcomes, counted

    def _count_taken(self, accepted: Accepted, outcome: Outcome, body_bytes: int) -> None:
        of = {attribute.bronze_source: accepted.source, attribute.bronze_outcome: outcome}
        self._telemetry.instruments.records.add(accepted.records + accepted.rejected, of)
        if outcome is Outcome.ACCEPTED:
            self._telemetry.instruments.bytes.add(body_bytes, of)
        get_current_span().set_attribute(attribute.bronze_outcome, outcome)

    def count_refused(self, request: Request, kind: str) -> None:
        """A submission that was not taken; that its outcome is unknown is not the same as that it was rejected."""
        named = request.path_params.get("source")
        outcome = Outcome.UNKNOWN if kind == Outage.OUTCOME_UNKNOWN else Outcome.REJECTED
        self._telemetry.instruments.records.add(
            getattr(request.state, "records", 1),
            {
                attribute.bronze_source: named if named in self._sources else OTHER_SOURCE,
                attribute.bronze_outcome: outcome,
                attribute.error_type: kind,
            },
        )
        span = get_current_span()
        span.set_attributes({attribute.bronze_outcome: outcome, attribute.error_type: kind})


# --- HTTP


def create_app(api: Api, lookups: Lookups, page: Page, telemetry: Telemetry) -> FastAPI:
    """The HTTP face of the API."""
    app = FastAPIOffline(
        title="Bronze ingestion API",
        version=__version__,
        description="Raw data in, Parquet in the bucket out: each accepted record exactly once, every write traceable.",
        telemetry=FASTAPI_TELEMETRY_OFF,
    )

    @app.post(
        INGEST,
        status_code=202,
        summary="Send one submission",
        responses={202: {"model": SubmissionAccepted}, **_problems(400, 404, 409, 413, 415, 422, 503)},
        openapi_extra=_ingest([source.name for source in api.sources().sources]),
    )
    async def ingest(request: Request) -> Response:
        accepted = await api.ingest(request.path_params["source"], request)
        url = _status_url(accepted.submission_id)
        body = SubmissionAccepted(
            submission_id=accepted.submission_id,
            classification_id=accepted.classification_id,
            classification_count=accepted.classification_count,
            source=accepted.source,
            records=accepted.records,
            rejected=accepted.rejected,
            trace_id=accepted.trace_id,
            status_url=url,
        )
        return Response(
            body.model_dump_json(),
            status_code=202,
            media_type=JSON,
            headers={"Location": url, "traceresponse": traceparent()},
        )

    @app.get("/v1/sources", summary="The declared sources")
    async def sources() -> DeclaredSources:
        return api.sources()

    @app.get("/v1/sources/{source}/schema", summary="What a source's records look like", responses=_problems(404))
    async def schema(source: str) -> SourceSchema:
        return source_schema.described(api.source(source))

    @app.get("/v1/submissions/{submission_id}", summary="Where a submission is", responses=_problems(404, 503))
    async def submission(submission_id: str) -> SubmissionStatus:
        return await api.status(submission_id)

    @app.get("/v1/objects/{file_path:path}", summary="What an object holds", responses=_problems(404, 503))
    async def stored_object(file_path: str) -> ObjectContents:
        return await api.object(file_path)

    @app.get(
        "/v1/lineage",
        summary="The whole chain of an id or a path: submissions and objects, in both directions",
        responses=_problems(400, 404, 422, 503),
    )
    async def lineage(
        id: Annotated[str | None, Query(description="Whichever of the four it is.")] = None,  # noqa: A002 - its name
        classification_id: Annotated[str | None, Query(description="The run of some records.")] = None,
        file_path: Annotated[str | None, Query(description="The key of an object.")] = None,
        submission_id: Annotated[str | None, Query(description="Of a 202.")] = None,
        trace_id: Annotated[str | None, Query(description="Of a request or of an upload.")] = None,
        limit: Annotated[
            int, Query(ge=1, le=LIMIT_MAX, description="Bound of the submissions and of the objects.")
        ] = LIMIT,
    ) -> Chain:
        by: dict[By, str | None] = {
            "classification_id": classification_id,
            "file_path": file_path,
            "submission_id": submission_id,
            "trace_id": trace_id,
        }
        asked = [(kind, value) for kind, value in by.items() if value]
        if len(asked) + bool(id) != 1:
            raise Refused(
                Refusal.INVALID_QUERY,
                f"Give exactly one of {', '.join(by)}; or id, where it may be any of these.",
            )
        return await (lookups.any(id, limit) if id else lookups.chain(*asked[0], limit))

    @app.get("/", include_in_schema=False)
    async def root(q: str = "") -> HTMLResponse:
        shown = await page.show(q)
        return HTMLResponse(shown.html, shown.status, page.headers)

    @app.get("/livez", summary="Whether the process runs")
    async def livez() -> dict[str, str]:
        return telemetry.alive()

    @app.get("/readyz", summary="Whether submissions can be taken", responses={503: {"description": "They cannot"}})
    async def readyz() -> JSONResponse:
        ready, body = await api.ready()
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.get(
        "/metrics",
        summary="This process's metrics, in Prometheus' text format",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        body, content_type = await asyncio.to_thread(telemetry.metrics)
        return Response(body, media_type=content_type)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        if request.method == "POST":
            api.count_refused(request, error.code)
        return _problem(error.status, error.code, error.detail, error.members)

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Unavailable) -> Response:
        span = get_current_span()
        span.set_status(Status(StatusCode.ERROR, error.detail))
        if request.method == "POST":
            api.count_refused(request, error.code)
        log.warning("503 %s: %s", error.code, error.detail)
        return _problem(503, error.code, error.detail, error.members, {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(Gone)
    async def replaced(request: Request, error: Gone) -> Response:
        return await unavailable(request, api.gone(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        api.count_refused(request, Refusal.CLIENT_GONE)
        return _problem(400, Refusal.CLIENT_GONE, "The connection was closed before the body's end.", {})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http")
        return _problem(
            error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}.", {}, error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(422, "invalid-request", f"{where}: {first['msg']}.", {})

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        if request.method == "POST":
            api.count_refused(request, Fault.INTERNAL)
        return _problem(500, Fault.INTERNAL, "Something unforeseen happened; the log tells, by the trace id.", {})

    # routes are tried in turn, by the instrumentation too: what most requests want comes first
    app.router.routes.sort(key=lambda route: getattr(route, "path", None) != INGEST)
    telemetry.instrument(app)
    return app


class OwnContext:
    """Runs each request in a context of its own.

    On asyncio's own loop, uvicorn reads on from within the task of a request with a large body; the next request of
    that connection would begin in the context, and so in the trace, of the one before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.get_running_loop().create_task(self._run(scope, receive, send), context=Context())

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _problem(
    status: int,
    kind: str,
    detail: str,
    members: Mapping[str, object],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An RFC 9457 problem document."""
    body = {
        "type": f"/problems/{kind}",
        "title": kind.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "trace_id": trace_id_hex(),
        **members,
    }
    return JSONResponse(body, status, media_type=PROBLEM, headers={**(headers or {}), "traceresponse": traceparent()})


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not key.strip() or len(key) > KEY_CHARS_MAX:
        raise Refused(
            Refusal.INVALID_HEADER,
            f"Idempotency-Key has 1 to {KEY_CHARS_MAX} characters; make a new UUID for each submission.",
            header="Idempotency-Key",
        )
    return key


def _text(request: Request, header: str, chars_max: int) -> str | None:
    """A header of ours, in percent-encoded UTF-8, or its query equivalent; the header wins."""
    query = header.removeprefix("Bronze-").replace("-", "_").lower()
    raw = request.headers.get(header)
    value = unquote(raw) if raw is not None else request.query_params.get(query)
    if value is not None and not 1 <= len(value) <= chars_max:
        raise Refused(
            Refusal.INVALID_HEADER, f"{header} (or ?{query}=) has 1 to {chars_max} characters.", header=header
        )
    return value


def _keep_invalid(request: Request) -> bool:
    """Whether records that do not fit their source are kept apart, and do not refuse the submission."""
    value = request.query_params.get("on_invalid", REFUSE)
    if value not in {REFUSE, QUARANTINE}:
        raise Refused(
            Refusal.INVALID_HEADER,
            f"?on_invalid={value} is not known: say {REFUSE} (as without it) or {QUARANTINE}.",
            header="on_invalid",
        )
    return value == QUARANTINE


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a thread."""
    waiting = bytearray()
    async for chunk in stream:
        waiting += chunk
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _run(work: Callable[..., T], *args: object, inline: bool) -> T:
    """CPU work, in a thread unless it is small."""
    return work(*args) if inline else await asyncio.to_thread(work, *args)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read on, within bounds: a client that is still sending would not see the answer."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_S_MAX):
            async for chunk in stream:
                size += len(chunk)
                if size > DRAIN_BYTES_MAX:
                    return


async def _probe(answer: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await answer
    except (Unavailable, TimeoutError) as error:
        return f"away: {error}"
    return "ok"


def _status_url(submission_id: str) -> str:
    return f"/v1/submissions/{submission_id}"


def _status_of(
    accepted: Accepted,
    status: State,
    objects: list[str],
    quarantine: list[str],
) -> SubmissionStatus:
    return SubmissionStatus(
        submission_id=accepted.submission_id,
        status=status,
        source=accepted.source,
        records=accepted.records,
        rejected=accepted.rejected,
        classification_id=accepted.classification_id,
        classification_count=accepted.classification_count,
        received_at=accepted.received_at,
        trace_id=accepted.trace_id,
        origin=accepted.origin,
        objects=[ObjectLink(file_path=key, url=f"/v1/objects/{key}") for key in objects],
        quarantine=quarantine,
    )


def _no_submission(submission_id: str) -> Refused:
    return Refused(
        Refusal.NOT_FOUND,
        f"Nothing is known of submission {submission_id!r}. It was never accepted, or its identity has expired: "
        "24 hours after it was stored, 30 days where it had an Idempotency-Key. Its records are in the bucket all the "
        "same, with its id in `_submission_id`.",
    )
