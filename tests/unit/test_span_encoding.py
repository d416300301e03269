"""The encoding of spans is that of the library, whatever the spans have."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from bronze.telemetry.signals import Outcome
from bronze.telemetry.span_encoding import encode

RESOURCES = [Resource({"service.name": "api"}), Resource({"service.name": "consumer"}, "https://schema.example/1")]
SCOPES = [InstrumentationScope("bronze", "1"), InstrumentationScope("library", "2", "https://schema.example/2")]

texts = st.text(max_size=200)
values = st.one_of(
    texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, False, True, 127, 128, Outcome.ACCEPTED, "accepted"]),
    st.floats(allow_nan=False),
    st.binary(max_size=10),
    st.none(),
    st.lists(st.one_of(texts, st.integers(0, 300), st.booleans()), max_size=3).map(tuple),
    st.just((("nested",),)),
    st.just("\ud800"),
)
attributes = st.dictionaries(st.sampled_from(["a", "b", "bronze.source", "é"]), values, max_size=4)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
    st.sampled_from([TraceState(), TraceState([("vendor", "1")])]),
)
spans = st.builds(
    ReadableSpan,
    name=texts,
    context=contexts,
    parent=st.none() | contexts,
    resource=st.sampled_from(RESOURCES),
    attributes=attributes,
    events=st.lists(st.builds(Event, st.just("retry"), st.just({"a": "b"}), st.integers(0, 2**63)), max_size=1),
    links=st.lists(st.builds(Link, contexts, st.none() | st.just({"a": "b"})), max_size=3),
    kind=st.sampled_from(SpanKind),
    status=st.one_of(
        st.builds(Status, st.sampled_from(StatusCode)), st.builds(Status, st.just(StatusCode.ERROR), texts)
    ),
    start_time=st.integers(0, 2**64 - 1),
    end_time=st.integers(0, 2**64 - 1),
    instrumentation_scope=st.sampled_from(SCOPES),
)


def decoded(body: bytes) -> Sequence[Any]:
    """Each span of a request with its resource and scope, in no order."""
    request = ExportTraceServiceRequest.FromString(body)
    return sorted(
        (str(group.resource), group.schema_url, str(scope.scope), scope.schema_url, str(span))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    )


@given(st.lists(spans, max_size=5))
def test_spans_are_encoded_as_by_the_library(batch: Sequence[ReadableSpan]) -> None:
    assert decoded(encode(batch)) == decoded(encode_spans(batch).SerializeToString())
