"""Traces, read from the trace store: Tempo or Zipkin."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from bronze.servers.http_json import get_json, other_server


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a trace. Ids are lower-case hex with leading zeros, and attributes are texts, as the store has them.

    Zipkin stores names of spans and services in lower case.
    """

    name: str
    span_id: str
    #: None: the span is the root of its trace
    parent_id: str | None
    service: str
    attributes: Mapping[str, str]
    #: in seconds since the epoch
    start_s: float
    duration_s: float


class TraceStore(Protocol):
    """A trace store. `name` is the program's name, in lower case."""

    name: str

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        """The spans of a trace that have arrived so far, by their start; None if the store has none of them.

        A store may have a part of a trace for some seconds. Raises `Unavailable`.
        """
        ...


class Tempo:
    """Tempo 2 or 3. The client's base address is that of its HTTP API."""

    name = "tempo"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        answer = await get_json(self._client, "Tempo", f"/api/v2/traces/{trace_id}", {})
        if answer is None:
            return None
        try:
            spans = sorted(_otlp_spans(answer["trace"]), key=lambda span: span.start_s)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise other_server(self._client, "Tempo") from error
        return spans or None  # 200 with an empty trace: its spans are not there yet


def _otlp_spans(trace: Mapping[str, Any]) -> Iterator[Span]:
    """The spans of OTLP as JSON."""
    for resource in trace.get("resourceSpans", ()):
        service = _otlp_attributes(resource["resource"]).get("service.name", "")
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                start_ns, end_ns = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
                yield Span(
                    span["name"],
                    _hex(span["spanId"]),
                    _hex(span["parentSpanId"]) if span.get("parentSpanId") else None,
                    service,
                    _otlp_attributes(span),
                    start_ns / 1e9,
                    (end_ns - start_ns) / 1e9,
                )


def _hex(span_id: str) -> str:
    """A span id as hex. Tempo encodes its 8 bytes as base64, as Protobuf's JSON does; OTLP's JSON has hex."""
    return span_id.lower() if len(span_id) == 16 else base64.b64decode(span_id).hex()


def _otlp_attributes(owner: Mapping[str, Any]) -> Mapping[str, str]:
    return {attribute["key"]: _otlp_text(attribute["value"]) for attribute in owner.get("attributes", ())}


def _otlp_text(value: Mapping[str, Any]) -> str:
    """The text of an attribute's value: JSON if it is not a string, as the collector sends it to Zipkin."""
    for kind, content in value.items():
        match kind:
            case "stringValue" | "intValue":  # a 64-bit integer is a string in Protobuf's JSON
                return str(content)
            case "arrayValue":
                return json.dumps([_otlp_text(item) for item in content.get("values", ())])
            case _:
                return json.dumps(content)
    return ""


class Zipkin:
    """Zipkin 2 or 3. The client's base address is that of its HTTP API."""

    name = "zipkin"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        answer = await get_json(self._client, "Zipkin", f"/api/v2/trace/{trace_id}", {})
        if answer is None:
            return None
        try:
            spans = [
                Span(
                    span.get("name", ""),
                    span["id"],
                    span.get("parentId"),
                    span.get("localEndpoint", {}).get("serviceName", ""),
                    span.get("tags", {}),
                    span.get("timestamp", 0) / 1e6,
                    span.get("duration", 0) / 1e6,
                )
                for span in answer
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise other_server(self._client, "Zipkin") from error
        return sorted(spans, key=lambda span: span.start_s) or None
