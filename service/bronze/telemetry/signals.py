"""The names and closed words of the telemetry schema, typed, for those who write spans and metrics.

    span.set_attribute(attribute.bronze_file_path, key)
    with tracer.start_as_current_span(spans.upload.name(source), kind=spans.upload.kind): ...

What the registry declares and what stands here are the same, or the import fails: a name cannot be mistyped, nor
declared and forgotten. The registry is read at import, since it is part of the code and not of the environment.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind

from bronze.errors import DeadLetter, ErrorCode, Fault, Halted, Misconfigured, Outage, Refused, Unavailable
from bronze.telemetry import schema

#: `bronze.source` where a client named a source that is not declared: its word is unbounded.
OTHER_SOURCE = "_OTHER"

#: `messaging.system` of the queue.
NATS = "nats"

#: The SDK keeps so many links of a span and drops further ones without a word.
LINKS_MAX = 128


class Role(StrEnum):
    """`service.name`: what kind of process this is."""

    API = "api"
    CONSUMER = "consumer"
    PUBLISHER = "publisher"


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REPLAYED = "replayed"
    UNKNOWN = "unknown"
    STORED = "stored"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"
    SUCCESS = "success"
    FAILURE = "failure"


class Stage(StrEnum):
    ACCEPT = "accept"
    WAIT = "wait"
    ENCODE = "encode"
    PUT = "put"
    CATALOG = "catalog"


class Step(StrEnum):
    LOCK = "lock"
    POSITION = "position"
    READ = "read"
    IDENTITIES = "identities"
    ENCODE = "encode"
    QUARANTINE = "quarantine"
    PUT = "put"
    CATALOG = "catalog"
    PURGE = "purge"


class Operation(StrEnum):
    """`messaging.operation.name`, and `.type` too."""

    SEND = "send"
    RECEIVE = "receive"
    PROCESS = "process"


def error_type(error: BaseException) -> ErrorCode:
    """The `error.type` of an error; of what is not foreseen it is `internal`."""
    match error:
        case Refused(code=code) | Unavailable(code=code):
            return code
        case DeadLetter():
            return Fault.POISON
        case Halted():
            return Fault.HALTED
        case TimeoutError():
            return Outage.TIMEOUT
        case _:
            return Fault.INTERNAL


@dataclass(frozen=True)
class Attributes:
    """Every attribute of the schema: its name with underscores for dots."""

    # ours
    bronze_source: str
    bronze_outcome: str
    bronze_stage: str
    bronze_step: str
    bronze_lane: str
    bronze_submission_id: str
    bronze_classification_id: str
    bronze_classification_count: str
    bronze_file_path: str
    bronze_records: str
    bronze_bytes: str
    bronze_messages: str
    bronze_submissions: str
    bronze_duplicates: str
    bronze_quarantined: str
    bronze_epoch: str
    bronze_sequence_first: str
    bronze_sequence_last: str

    # of the semantic conventions
    error_type: str
    messaging_system: str
    messaging_destination_name: str
    messaging_operation_name: str
    messaging_operation_type: str
    messaging_batch_message_count: str
    messaging_message_body_size: str
    http_request_method: str
    http_request_resend_count: str
    http_response_status_code: str
    http_route: str
    network_protocol_version: str
    url_full: str
    url_scheme: str
    server_address: str
    server_port: str
    rpc_system_name: str
    rpc_method: str
    aws_s3_bucket: str
    aws_s3_key: str

    # of the resource
    service_namespace: str
    service_name: str
    service_instance_id: str
    service_version: str
    deployment_environment_name: str


@dataclass(frozen=True)
class SpanSignal:
    """A span of the schema: its kind, and its name, which may hold the source."""

    kind: SpanKind
    template: str

    def name(self, source: str = "") -> str:
        return self.template.replace(schema.SOURCE, source)


@dataclass(frozen=True)
class Spans:
    """Every span of the schema, in the order of the data's way."""

    publish: SpanSignal
    ingest: SpanSignal  # made by the FastAPI instrumentation
    send: SpanSignal
    process: SpanSignal
    upload: SpanSignal
    encode: SpanSignal
    put: SpanSignal


@dataclass(frozen=True)
class Events:
    """Every event on a span."""

    retry: str


_Names = TypeVar("_Names", Attributes, Spans, Events)


def _attributes() -> Attributes:
    return _same(Attributes, {key.replace(".", "_"): key for key in schema.registry().attributes})


def _spans() -> Spans:
    return _same(
        Spans,
        {
            span.type.removeprefix("bronze."): SpanSignal(SpanKind[span.kind.upper()], span.name)
            for span in schema.registry().spans.values()
        },
    )


def _events() -> Events:
    return _same(Events, {name.removeprefix("bronze."): name for name in schema.registry().events})


def _same(kind: type[_Names], declared: dict[str, Any]) -> _Names:
    typed = {field.name for field in fields(kind)}
    if typed != set(declared):
        raise Misconfigured(f"telemetry registry and {kind.__name__} differ in {sorted(typed ^ set(declared))}")
    return kind(**declared)


attribute = _attributes()
spans = _spans()
events = _events()
