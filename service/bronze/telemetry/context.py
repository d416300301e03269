"""The trace context in headers of queue messages and in metadata of objects.

Uses only W3C Trace Context and ignores `OTEL_PROPAGATORS`: both ends of the queue are Bronze's own processes, and the
baggage of clients must not get into the queue.
"""

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, format_span_id, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def inject(context: Context | None = None) -> dict[str, str]:
    """`traceparent`, and `tracestate` if there is one, of the given or the current context; empty without a trace."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The context in headers with names in any case; an empty context if the header is missing or invalid."""
    return _PROPAGATOR.extract({name.lower(): value for name, value in headers.items()})


def span_context(holder: Context | Span | None = None) -> SpanContext:
    """The ids of a span, or of the span of a context (without an argument, the current context)."""
    span = holder if isinstance(holder, Span) else get_current_span(holder)
    return span.get_span_context()


def trace_id_hex(holder: Context | Span | None = None) -> str:
    """The trace id as 32 hexadecimal digits; all 0 without a trace."""
    return format_trace_id(span_context(holder).trace_id)


def traceparent(holder: Context | Span | None = None) -> str:
    """The value of the header `traceparent`, also for a span that is no longer current; ids are 0 without a trace."""
    context = span_context(holder)
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
