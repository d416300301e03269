"""The names and values of the telemetry schema as typed constants, for code that records spans and metrics.

    span.set_attribute(attribute.bronze_file_path, key)
    with tracer.start_as_current_span(spans.upload.name(source), kind=spans.upload.kind): ...

The import fails if the registry and this module differ, so no name can be mistyped, or declared and then not used. The
registry is read at import, since it is part of the code and not of the environment.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind

from bronze.errors import DeadLetter, ErrorCode, Fault, Halted, Misconfigured, Mismatch, Outage, Refused, Unavailable
from bronze.telemetry import schema

#: `bronze.source` if a client named a source that is not declared: client values are unbounded.
OTHER_SOURCE = "_OTHER"

#: `enduser.id` of all principals of a source but the first ones that a process has seen.
OTHER_PRINCIPAL = "_OTHER"

#: `bronze.field` of undeclared fields after the first ones of a source: client values are unbounded.
OTHER_FIELD = "_OTHER"

#: `messaging.system` of the queue.
NATS = "nats"

#: The SDK keeps this number of links per span, and drops further links without an error.
LINKS_MAX = 128


class Role(StrEnum):
    """`service.name`: what kind of process this is."""

    API = "api"
    CONSUMER = "consumer"
    PUBLISHER = "publisher"
    VERIFY = "verify"
    CANARY = "canary"
    TABLE = "table"
    NOTIFY = "notify"
    RETAIN = "retain"


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
    SKIPPED = "skipped"


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


class FieldValue(StrEnum):
    PRESENT = "present"
    NULL = "null"


class VerifyCheck(StrEnum):
    """The checks of `bronze verify`, in their order."""

    EXEMPLAR = "exemplar"
    ENTRY = "entry"
    CHAIN = "chain"
    OBJECT = "object"


class Check(StrEnum):
    """The checks of the canary, in their order."""

    ACCEPTED = "accepted"
    OBJECT = "object"
    ONCE = "once"
    LEDGER = "ledger"
    TRACE = "trace"
    EXEMPLAR = "exemplar"
    LINEAGE = "lineage"


class Operation(StrEnum):
    """`messaging.operation.name` and `messaging.operation.type`."""

    SEND = "send"
    RECEIVE = "receive"
    PROCESS = "process"


def error_type(error: BaseException) -> ErrorCode:
    """The `error.type` of an error; `internal` for an unexpected error."""
    match error:
        case Refused(code=code) | Unavailable(code=code):
            return code
        case DeadLetter():
            return Fault.POISON
        case Halted():
            return Fault.HALTED
        case Mismatch():
            return Fault.MISMATCH
        case TimeoutError():
            return Outage.TIMEOUT
        case _:
            return Fault.INTERNAL


@dataclass(frozen=True)
class Attributes:
    """All attributes of the schema. A field is the attribute's name with underscores for dots."""

    # Bronze's own
    bronze_source: str
    bronze_outcome: str
    bronze_stage: str
    bronze_step: str
    bronze_verify_check: str
    bronze_check: str
    bronze_field: str
    bronze_value: str
    bronze_expectation: str
    bronze_lane: str
    bronze_receiver: str
    bronze_cluster_server: str
    bronze_replica_state: str
    bronze_submission_id: str
    bronze_classification_id: str
    bronze_classification_count: str
    bronze_file_path: str
    bronze_records: str
    bronze_objects: str
    bronze_table_snapshot_id: str
    bronze_bytes: str
    bronze_messages: str
    bronze_submissions: str
    bronze_submission_trace_id: str
    bronze_duplicates: str
    bronze_quarantined: str
    bronze_epoch: str
    bronze_sequence_first: str
    bronze_sequence_last: str

    # of the semantic conventions
    enduser_id: str
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
    """A span of the schema: its kind, and its name, which may contain the source."""

    kind: SpanKind
    template: str

    def name(self, source: str = "") -> str:
        return self.template.replace(schema.SOURCE, source)


@dataclass(frozen=True)
class Spans:
    """All spans of the schema, in the order in which data passes them."""

    publish: SpanSignal
    ingest: SpanSignal  # made by the FastAPI instrumentation
    send: SpanSignal
    process: SpanSignal
    upload: SpanSignal
    encode: SpanSignal
    put: SpanSignal
    commit: SpanSignal
    notify: SpanSignal


@dataclass(frozen=True)
class Events:
    """All events on spans."""

    retry: str


_Names = TypeVar("_Names", Attributes, Spans, Events)


def _attributes() -> Attributes:
    return _checked(Attributes, {key.replace(".", "_"): key for key in schema.registry().attributes})


def _spans() -> Spans:
    return _checked(
        Spans,
        {
            span.type.removeprefix("bronze."): SpanSignal(SpanKind[span.kind.upper()], span.name)
            for span in schema.registry().spans.values()
        },
    )


def _events() -> Events:
    return _checked(Events, {name.removeprefix("bronze."): name for name in schema.registry().events})


def _checked(kind: type[_Names], declared: dict[str, Any]) -> _Names:
    """The names as `kind`. Raises `Misconfigured` if its fields and the registry differ."""
    names = {field.name for field in fields(kind)}
    if names != set(declared):
        raise Misconfigured(f"telemetry registry and {kind.__name__} differ in {sorted(names ^ set(declared))}")
    return kind(**declared)


attribute = _attributes()
spans = _spans()
events = _events()
