"""The context of a trace, carried through what is not HTTP: headers of messages, metadata of objects.

W3C Trace Context alone, whatever `OTEL_PROPAGATORS` says: both ends of the queue are ours, and baggage of clients
has no business in it.
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
    """The context that headers carry, whatever the case of their names; an empty one if it is missing or broken."""
    return _PROPAGATOR.extract({name.lower(): value for name, value in headers.items()})


def span_context(of: Context | Span | None = None) -> SpanContext:
    """What identifies the span itself, or the span that a context is in (without an argument the current one)."""
    span = of if isinstance(of, Span) else get_current_span(of)
    return span.get_span_context()


def trace_id_hex(of: Context | Span | None = None) -> str:
    """The trace's id, 32 hexadecimal digits; all of them 0 without a trace."""
    return format_trace_id(span_context(of).trace_id)


def traceparent(of: Context | Span | None = None) -> str:
    """The header of that name, also for a span that is no longer current; ids are 0 without a trace."""
    context = span_context(of)
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
