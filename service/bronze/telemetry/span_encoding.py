"""Encodes spans for OTLP, as `opentelemetry-exporter-otlp-proto-common` does, in a fraction of the time.

The library makes two message objects per attribute, which takes longer than everything else about a span. Most
attributes repeat from span to span, so here their bytes are kept. The fields of a protobuf message may be concatenated
in any order, and so may two requests: a span with anything unusual, such as an event, is encoded by the library.
`tests/unit/test_span_encoding.py` compares the result with the library's.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct, pack
from types import MappingProxyType
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanKind, Status
from opentelemetry.util.types import AnyValue

#: Attributes and names whose bytes are kept.
_KEPT: Final = 2048
#: The field `flags` says whether it is known that the parent is of another process, and whether it is.
_REMOTE_IS_KNOWN, _REMOTE = 0x100, 0x200
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8

# How the values of fields are encoded.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class _Unusual(Exception):
    """The library has to encode this span."""


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """The body of a request that exports the spans."""
    by_resource: dict[int, dict[int, tuple[ReadableSpan, list[bytes]]]] = {}
    unusual: list[ReadableSpan] = []
    for span in spans:
        try:
            encoded = _bytes(2, _span(span))
        except (_Unusual, UnicodeEncodeError):
            unusual.append(span)
        else:
            by_scope = by_resource.setdefault(id(span.resource), {})
            by_scope.setdefault(id(span.instrumentation_scope), (span, []))[1].append(encoded)
    requests = [_resource_spans(by_scope.values()) for by_scope in by_resource.values()]
    if unusual:
        requests.append(encode_spans(unusual).SerializeToString())
    return b"".join(requests)


def _resource_spans(scopes: Iterable[tuple[ReadableSpan, list[bytes]]]) -> bytes:
    """The spans of one resource; of each scope, one span as it is, and all spans encoded."""
    resource = b""
    encoded: list[bytes] = []
    for span, spans in scopes:
        (of_resource,) = encode_spans([span]).resource_spans
        (of_scope,) = of_resource.scope_spans
        of_scope.ClearField("spans")
        encoded.append(_bytes(2, b"".join([of_scope.SerializeToString(), *spans])))
        of_resource.ClearField("scope_spans")
        resource = of_resource.SerializeToString()
    return _bytes(1, b"".join([resource, *encoded]))


def _span(span: ReadableSpan) -> bytes:
    context, parent = span.get_span_context(), span.parent
    if (
        context is None
        or context.trace_state
        or span.events
        or span.dropped_attributes
        or span.dropped_events
        or span.dropped_links
        or span.start_time is None
        or span.end_time is None
    ):
        raise _Unusual
    attributes = MappingProxyType(span.attributes or {}).copy()  # the SDK's mapping takes much longer to iterate
    return b"".join(
        [
            _TRACE_ID,
            context.trace_id.to_bytes(_TRACE_ID_BYTES),
            _SPAN_ID,
            context.span_id.to_bytes(_SPAN_ID_BYTES),
            _PARENT_ID + parent.span_id.to_bytes(_SPAN_ID_BYTES) if parent else b"",
            _name(span.name),
            _KINDS[span.kind],
            _TIMES.pack(_START, span.start_time, _END, span.end_time),
            *map(_attribute, attributes, attributes.values()),
            *[_link(link) for link in span.links],
            _status(span.status),
            _SPAN_FLAGS[bool(parent and parent.is_remote)],
        ]
    )


def _link(link: Link) -> bytes:
    if link.attributes or link.dropped_attributes:
        raise _Unusual
    context = link.context
    return _bytes(
        13,
        b"".join(
            [
                _TRACE_ID,
                context.trace_id.to_bytes(_TRACE_ID_BYTES),
                _SPAN_ID,
                context.span_id.to_bytes(_SPAN_ID_BYTES),
                _LINK_FLAGS[context.is_remote],
            ]
        ),
    )


def _status(status: Status) -> bytes:
    code = status.status_code.value
    text = _text(2, status.description) if status.description else b""
    return _bytes(15, text + _number(3, code)) if code else _bytes(15, text)


@lru_cache(_KEPT)
def _name(name: str) -> bytes:
    return _text(5, name)


@lru_cache(_KEPT, typed=True)
def _attribute(name: str, value: AnyValue) -> bytes:
    return _bytes(9, _text(1, name) + _bytes(2, _value(value)))


def _value(value: AnyValue) -> bytes:
    match value:
        case str():
            return _text(1, value)
        case bool():
            return _number(2, int(value))
        case int():
            return _number(3, value)
        case tuple() if all(isinstance(member, str) for member in value):  # (True,) and (1,) are one key of the cache
            return _bytes(5, b"".join(_bytes(1, _value(member)) for member in value))
        case _:
            raise _Unusual


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return _tag(field, _LENGTH) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _tag(field, _VARINT) + _varint(number)


@lru_cache(_KEPT)
def _tag(field: int, encoding: int) -> bytes:
    return _varint(field << 3 | encoding)


@lru_cache(_KEPT)
def _varint(number: int) -> bytes:
    if not 0 <= number < 1 << 63:
        raise _Unusual
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _flags(field: int) -> tuple[bytes, bytes]:
    """The field for a parent of this process, and of another one."""
    tag = _tag(field, _FIXED32)
    return tag + pack("<I", _REMOTE_IS_KNOWN), tag + pack("<I", _REMOTE_IS_KNOWN | _REMOTE)


_TRACE_ID: Final = _tag(1, _LENGTH) + _varint(_TRACE_ID_BYTES)
_SPAN_ID: Final = _tag(2, _LENGTH) + _varint(_SPAN_ID_BYTES)
_PARENT_ID: Final = _tag(4, _LENGTH) + _varint(_SPAN_ID_BYTES)
_KINDS: Final = {
    kind: _number(6, number)
    for number, kind in enumerate(
        (SpanKind.INTERNAL, SpanKind.SERVER, SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER), start=1
    )
}
_TIMES: Final = Struct("<cQcQ")
_START, _END = _tag(7, _FIXED64), _tag(8, _FIXED64)
_SPAN_FLAGS, _LINK_FLAGS = _flags(16), _flags(6)
