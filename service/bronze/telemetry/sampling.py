"""Which spans are sampled: those of the configured sampler, and every Bronze write.

A Bronze write stands for many submissions, and is what people look for: at a ratio of 1 % it is sampled all the same,
with its children. `OTEL_TRACES_SAMPLER` decides about all other spans. A sampler that never samples by itself
(`always_off`, `parentbased_always_off`, or a ratio of 0) stays as it is, and so does a disabled SDK.

    span = tracer.start_span("upload vehicles", context=always_sampled(), links=...)
"""

import os
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

_ALWAYS_SAMPLED: Final = create_key("bronze-always-sampled")


def always_sampled() -> Context:
    """The context of a new trace that is sampled at any ratio."""
    return set_value(_ALWAYS_SAMPLED, True, Context())


class WithAlwaysSampled(Sampler):
    """A configured sampler that also samples the traces of `always_sampled`.

    A child of a sampled span of this process is sampled too. Of the standard samplers, only a plain `traceidratio`
    would decide otherwise, and only for these traces.
    """

    def __init__(self, configured: Sampler) -> None:
        self._configured = configured

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = self._configured.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is Decision.RECORD_AND_SAMPLE:
            return result
        parent = get_current_span(parent_context).get_span_context()
        follows = parent.is_valid and not parent.is_remote and parent.trace_flags.sampled
        if follows or get_value(_ALWAYS_SAMPLED, parent_context):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        return f"WithAlwaysSampled{{{self._configured.get_description()}}}"


def always_off() -> bool:
    """Whether the configured sampler never samples a trace of its own. Its variables have been checked."""
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if name.endswith("ratio"):
        return float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1) == 0
    return name.endswith("always_off")
