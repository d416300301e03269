"""Answers of Tempo, in the two forms of its JSON, and answers that no trace store gives."""

import json
from collections.abc import Callable

import httpx
import pytest

from bronze.errors import Outage, Unavailable
from bronze.servers.trace_store import Span, Tempo, TraceStore, Zipkin

TRACE = "00ab" + "c1" * 14
KEY = "bronze/source=status/date=2026-01-02/hour=03/e-0-000000000001.parquet"
SPANS = [
    Span("POST", "00b79bfd8ba57a67", None, "publisher", {}, 1767323045.0, 0.25),
    Span(
        "upload status",
        "eee19b7ec3c1b100",
        "00b79bfd8ba57a67",
        "consumer",
        {
            "bronze.file_path": KEY,
            "bronze.records": "3",
            "bronze.submission_trace_id": '["00ab", "cd"]',
            "sampled": "true",
        },
        1767323046.0,
        0.5,
    ),
]
#: What Tempo 2 and 3 answer: OTLP's Protobuf as JSON, in which bytes are base64. Resources are in no order.
BASE64 = {
    "trace": {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "consumer"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "bronze"},
                        "spans": [
                            {
                                "traceId": "AKvBwcHBwcHBwcHBwcHBwQ==",
                                "spanId": "7uGbfsPBsQA=",
                                "parentSpanId": "ALeb/Yulemc=",
                                "name": "upload status",
                                "kind": "SPAN_KIND_CONSUMER",
                                "startTimeUnixNano": "1767323046000000000",
                                "endTimeUnixNano": "1767323046500000000",
                                "attributes": [
                                    {"key": "bronze.file_path", "value": {"stringValue": KEY}},
                                    {"key": "bronze.records", "value": {"intValue": "3"}},
                                    {
                                        "key": "bronze.submission_trace_id",
                                        "value": {
                                            "arrayValue": {"values": [{"stringValue": "00ab"}, {"stringValue": "cd"}]}
                                        },
                                    },
                                    {"key": "sampled", "value": {"boolValue": True}},
                                ],
                                "status": {},
                            }
                        ],
                    }
                ],
            },
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "publisher"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "bronze"},
                        "spans": [
                            {
                                "traceId": "AKvBwcHBwcHBwcHBwcHBwQ==",
                                "spanId": "ALeb/Yulemc=",
                                "parentSpanId": "",
                                "name": "POST",
                                "startTimeUnixNano": "1767323045000000000",
                                "endTimeUnixNano": "1767323045250000000",
                            }
                        ],
                    }
                ],
            },
        ]
    },
    "metrics": {},
}
_BASE64_TO_HEX = {"7uGbfsPBsQA=": "eee19b7ec3c1b100", "ALeb/Yulemc=": "00b79bfd8ba57a67"}
#: OTLP's own JSON has hex.
HEX = json.loads(json.dumps(BASE64))
for _resource in HEX["trace"]["resourceSpans"]:
    for _span in _resource["scopeSpans"][0]["spans"]:
        _span |= {name: _BASE64_TO_HEX.get(_span.get(name, ""), "") for name in ("spanId", "parentSpanId")}


def answering(answer: httpx.Response) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://store", transport=httpx.MockTransport(lambda _: answer))


@pytest.mark.parametrize("answer", [BASE64, HEX], ids=["base64", "hex"])
async def test_a_trace_of_tempo(answer: object) -> None:
    """Spans are in the order of their start, ids are hex with their zeros, and attributes are texts."""
    async with answering(httpx.Response(200, json=answer)) as client:
        assert await Tempo(client).trace(TRACE) == SPANS


@pytest.mark.parametrize(
    ("store", "answer"),
    [
        (Tempo, httpx.Response(404)),
        (Tempo, httpx.Response(200, json={"trace": {}, "metrics": {}})),
        (Zipkin, httpx.Response(404, text="trace not found")),
        (Zipkin, httpx.Response(200, json=[])),
    ],
)
async def test_a_trace_that_is_not_there_is_none(
    store: Callable[[httpx.AsyncClient], TraceStore], answer: httpx.Response
) -> None:
    async with answering(answer) as client:
        assert await store(client).trace(TRACE) is None


@pytest.mark.parametrize("store", [Tempo, Zipkin])
@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (httpx.Response(500, text="no live nodes"), "answers 500: no live nodes"),
        (httpx.Response(200, text="hello"), "the server that answers at http://store is not (Tempo|Zipkin)"),
        (httpx.Response(200, json={"a": 1}), "the server that answers at http://store is not (Tempo|Zipkin)"),
        (httpx.Response(200, json=["a"]), "the server that answers at http://store is not (Tempo|Zipkin)"),
    ],
)
async def test_another_answer_is_an_outage(
    store: Callable[[httpx.AsyncClient], TraceStore], answer: httpx.Response, detail: str
) -> None:
    async with answering(answer) as client:
        with pytest.raises(Unavailable, match=detail) as unavailable:
            await store(client).trace(TRACE)
    assert unavailable.value.code == Outage.UNAVAILABLE


async def test_a_trace_store_that_does_not_answer_in_time() -> None:
    def late(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late", request=request)

    async with httpx.AsyncClient(base_url="http://store", transport=httpx.MockTransport(late)) as client:
        with pytest.raises(Unavailable, match="Zipkin does not answer in time") as unavailable:
            await Zipkin(client).trace(TRACE)
    assert unavailable.value.code == Outage.TIMEOUT
