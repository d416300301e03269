"""The metrics at each component's `/metrics`; each request is one span and one duration."""

from collections.abc import Mapping

import httpx

from local.machine import limit_s
from tests.system.blackbox import Metrics, System, ndjson, until, vehicles

#: By role: counters that start at 0 and are above 0 after traffic and a failure.
COUNTERS: Mapping[str, list[tuple[str, dict[str, str]]]] = {
    "api": [
        ("bronze_records_total", {"bronze_outcome": "accepted"}),
        ("bronze_records_total", {"bronze_outcome": "rejected", "error_type": "schema-violation"}),
        ("bronze_bytes_total", {"bronze_outcome": "accepted"}),
        ("messaging_client_sent_messages_total", {"messaging_destination_name": "bronze.vehicles"}),
    ],
    "consumer": [
        ("bronze_uploads_total", {"bronze_outcome": "success"}),
        ("bronze_uploads_total", {"bronze_outcome": "failure", "error_type": "denied"}),
        ("bronze_consumer_errors_total", {"bronze_step": "put", "error_type": "denied"}),
        ("bronze_records_total", {"bronze_outcome": "stored"}),
        ("bronze_bytes_total", {"bronze_outcome": "stored"}),
        ("messaging_client_consumed_messages_total", {"messaging_destination_name": "bronze.vehicles"}),
    ],
    "publisher": [
        ("bronze_publisher_submissions_total", {"bronze_outcome": "accepted"}),
        ("bronze_publisher_submissions_total", {"bronze_outcome": "rejected"}),
    ],
}

#: By role: metrics that have no value before the first measurement.
HISTOGRAMS: Mapping[str, list[tuple[str, dict[str, str]]]] = {
    "api": [
        ("http_server_request_duration_seconds", {"http_route": "/v1/ingest/{source}"}),
        ("messaging_client_operation_duration_seconds", {}),
        ("bronze_stage_duration_seconds", {"bronze_stage": "accept"}),
    ],
    "consumer": [
        ("bronze_upload_duration_seconds", {"bronze_outcome": "success"}),
        ("bronze_upload_duration_seconds", {"bronze_outcome": "failure"}),
        ("bronze_delivery_duration_seconds", {}),
        ("bronze_stage_duration_seconds", {"bronze_stage": "encode"}),
        ("bronze_stage_duration_seconds", {"bronze_stage": "put"}),
        ("bronze_stage_duration_seconds", {"bronze_stage": "catalog"}),
        ("bronze_upload_size_bytes", {}),
        ("bronze_upload_records", {}),
        ("messaging_process_duration_seconds", {}),
    ],
    "publisher": [],
}


def check_unique(metrics: Metrics) -> None:
    series = [(name, *sorted(labels.items())) for name, labels, _ in metrics.samples]
    assert len(series) == len(set(series)), f"twice: {[name for name in series if series.count(name) > 1]}"


def check_counted(role: str, metrics: Metrics) -> None:
    """Checks the counters after traffic and a failure."""
    check_unique(metrics)
    for name, labels in COUNTERS[role]:
        assert metrics.sum(name, **labels) > 0, (name, labels)
    for name, labels in HISTOGRAMS[role]:
        assert metrics.sum(f"{name}_count", **labels) > 0, (name, labels)
        assert metrics.sum(f"{name}_sum", **labels) > 0, (name, labels)


def check_zero(role: str, metrics: Metrics) -> None:
    """Checks the counters before any traffic."""
    check_unique(metrics)
    for name, labels in COUNTERS[role]:
        found = metrics.all(name, **labels)
        assert found, f"{name} {labels} is not there before its first count"
        assert not any(found), f"{name} {labels} is {found} before anything has happened"


def test_each_component_counts_traffic_and_failure(branch: System, mark: str) -> None:
    """At the start, `/metrics` of API, consumer and publisher has every counter at 0 and each series once. After
    traffic, a refused submission and a refusing bucket, requests, uploads, failures and durations are above 0.
    """
    with branch.queue(), branch.running(branch.role("api"), branch.role("consumer")):
        check_zero("api", branch.metrics("api"))
        check_zero("consumer", branch.metrics("consumer"))

        with branch.bucket_refuses():
            accepted = branch.post("vehicles", ndjson(vehicles(mark, 3)))
            assert accepted.status_code == 202
            until(
                "the consumer has counted that the bucket refuses",
                lambda: branch.metrics("consumer").sum("bronze_uploads_total", error_type="denied"),
            )
            assert branch.keys() == []
        branch.stored(accepted.json()["submission_id"])
        assert branch.post("vehicles", b'{"vehicle_id": 1}').status_code == 422

        check_counted("api", branch.metrics("api"))
        until(  # counted as soon as the catalog entry exists, at the time of the status `stored` or a moment later
            "the consumer has counted what it stored",
            lambda: branch.metrics("consumer").sum("bronze_records_total", bronze_outcome="stored"),
        )
        check_counted("consumer", branch.metrics("consumer"))
        assert branch.payloads(mark) == sorted(vehicles(mark, 3))


def test_a_publisher_is_scraped_while_it_runs(branch: System, mark: str) -> None:
    """A publisher's `/metrics` has counters at 0 before it sends, and counts submissions while it runs."""
    with branch.queue(), branch.running(branch.role("api")):
        publisher = branch.publisher("vehicles", "-", "--records", "1")
        try:
            assert publisher.stdin

            def metrics() -> Metrics | None:
                try:
                    return branch.metrics("publisher")
                except httpx.ConnectError:
                    return None

            check_zero("publisher", until("the publisher is scraped", metrics))
            publisher.stdin.write(vehicles(mark)[0].decode() + "\n")
            publisher.stdin.flush()
            until(
                "the publisher has counted its submission",
                lambda: branch.metrics("publisher").sum(
                    "bronze_publisher_submissions_total", bronze_outcome="accepted"
                ),
            )
            _, errors = publisher.communicate('{"vehicle_id": 1}\n', timeout=limit_s(20))
            assert publisher.returncode == 1, errors
            assert "line 2" in errors
        finally:
            publisher.kill()
            publisher.communicate()


def test_a_request_is_one_server_span_and_one_duration(system: System, mark: str) -> None:
    """Each request, accepted or refused, is exactly one SERVER span in the trace store and one measured duration.
    Probes and scrapes are neither.
    """
    bodies = [
        ("vehicles", vehicles(mark)[0], 202),
        ("vehicles", b'{"vehicle_id": 1}', 422),
        ("vehicles", b"{", 400),
        ("nowhere", b"{}", 404),
    ]

    def durations() -> float:
        found = system.metrics("api").all("http_server_request_duration_seconds_count", http_request_method="POST")
        return sum(found)

    before = durations()
    traces = []
    for number, (source, body, status) in enumerate(bodies):
        trace = f"{mark.removeprefix('mark-')}{number:020x}"
        answer = system.post(source, body, traceparent=f"00-{trace}-00000000000000aa-01")
        assert answer.status_code == status
        assert answer.headers["traceresponse"].split("-")[1] == trace
        traces.append(trace)
    for probe in ("/livez", "/readyz", "/metrics"):
        assert system.get(probe).status_code == 200
    assert durations() - before == len(bodies)
    routes = {labels.get("http_route") for name, labels, _ in system.metrics("api").samples if name.startswith("http_")}
    assert not routes & {"/livez", "/readyz", "/metrics"}

    def server_spans(trace: str) -> list[str]:
        return [span["name"] for span in system.trace(trace) if span.get("kind") == "SERVER"]

    until("the last request's span", lambda: server_spans(traces[-1]))  # spans are exported in the order of their ends
    assert [server_spans(trace) for trace in traces] == [["post /v1/ingest/{source}"]] * len(bodies)
