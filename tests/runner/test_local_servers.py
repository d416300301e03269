"""The real servers: each is ready only if it is ours and keeps to its ports; telemetry gets through the collector."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from local import servers
from local.builds import REPOSITORY, Built, build_all
from local.evidence import Prometheus, Tempo, Trace
from local.programs import LOOPBACK, NotReady, Process, Program, free_ports, get_json, http_get, start
from tests.system.blackbox import until

TRACE_ID = "00ab" + "c1" * 14  # leading zeros get lost easily
SPAN_ID = "0d" * 8


@pytest.fixture(scope="module")
def built() -> Built:
    return build_all()


def zipkin(built: Built, port: int, name: str = "ours") -> Program:
    return servers.zipkin(port, name, jar=built.zipkin)


def prometheus(built: Built, state: Path, port: int) -> Program:
    return servers.prometheus(state, port, {}, executable=built.prometheus)


def collector(built: Built, state: Path, port: int, *, prometheus: int, zipkin: int, name: str = "ours") -> Program:
    return servers.collector(
        state,
        port,
        name,
        executable=built.collector,
        env={
            "PROMETHEUS_OTLP_ENDPOINT": f"http://{LOOPBACK}:{prometheus}/api/v1/otlp",
            "ZIPKIN_SPANS_ENDPOINT": f"http://{LOOPBACK}:{zipkin}/api/v2/spans",
        },
    )


def send(port: int, signal_name: str, document: object) -> None:
    body = json.dumps(document).encode()
    http_get(port, f"/v1/{signal_name}", method="POST", body=body, Content_Type="application/json")


RESOURCE = {
    "attributes": [
        {"key": "service.namespace", "value": {"stringValue": "bronze"}},
        {"key": "service.name", "value": {"stringValue": "consumer"}},
        {"key": "service.instance.id", "value": {"stringValue": "c-1"}},
    ]
}


def send_upload(port: int) -> None:
    """An upload's span."""
    now = time.time_ns()
    span = {
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
        "name": "upload status",
        "kind": 1,
        "startTimeUnixNano": str(now - 300_000_000),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": "bronze.file_path", "value": {"stringValue": "bronze/x.parquet"}}],
    }
    send(port, "traces", {"resourceSpans": [{"resource": RESOURCE, "scopeSpans": [{"spans": [span]}]}]})


def send_duration(port: int) -> None:
    """The upload's duration of 0.3 s, with its span as exemplar."""
    now = time.time_ns()
    point = {
        "startTimeUnixNano": str(now - 10**9),
        "timeUnixNano": str(now),
        "count": "1",
        "sum": 0.3,
        "bucketCounts": ["0", "1", "0"],
        "explicitBounds": [0.1, 2],
        "exemplars": [{"timeUnixNano": str(now), "asDouble": 0.3, "traceId": TRACE_ID, "spanId": SPAN_ID}],
    }
    metric = {
        "name": "bronze.upload.duration",
        "unit": "s",
        "histogram": {"aggregationTemporality": 2, "dataPoints": [point]},
    }
    send(port, "metrics", {"resourceMetrics": [{"resource": RESOURCE, "scopeMetrics": [{"metrics": [metric]}]}]})


def spans_stored(port: int) -> list[str]:
    try:
        return [span["name"] for span in json.loads(http_get(port, f"/api/v2/trace/{TRACE_ID}"))]
    except NotReady:
        return []


def test_delivers_through_an_outage(built: Built, tmp_path: Path) -> None:
    """Both backends are away, the collector is killed: later, span, metric and exemplar are there, once."""
    otlp, at_prometheus, at_zipkin = free_ports(servers.COLLECTOR_PORTS), free_ports(), free_ports()
    program = collector(built, tmp_path / "collector", otlp, prometheus=at_prometheus, zipkin=at_zipkin)
    with start(program, tmp_path / "collector.log") as process:
        send_upload(otlp)
        send_duration(otlp)
        process.signal(signal.SIGKILL)
        process.restart()
        with (
            start(zipkin(built, at_zipkin), tmp_path / "zipkin.log"),
            start(prometheus(built, tmp_path / "prometheus", at_prometheus), tmp_path / "prometheus.log"),
        ):
            metrics = Prometheus(at_prometheus)
            bucket = 'bronze_upload_duration_seconds_bucket{job="bronze/consumer",instance="c-1"}'
            until("the trace", lambda: spans_stored(at_zipkin), timeout_s=90)
            until("the exemplar", lambda: metrics.exemplars(bucket, time.time() - 600, time.time() + 600), timeout_s=90)
            assert spans_stored(at_zipkin) == ["upload status"]
            assert metrics.exemplars(bucket, time.time() - 600, time.time() + 600) == [(0.3, TRACE_ID)]
            assert metrics.vector(f"sum by (le) ({bucket})") == {"0.1": 0, "2": 1, "+Inf": 1}


def test_a_strangers_nats_is_not_ours(tmp_path: Path) -> None:
    """A queue server of another name never counts as ready."""
    port = free_ports()
    with start(servers.nats(tmp_path / "theirs", port, "theirs"), tmp_path / "log") as process:
        assert_only_loopback(process)
        with pytest.raises(NotReady, match="'theirs', not 'ours'"):
            servers.nats(tmp_path / "ours", port, "ours").ready()


def test_a_strangers_backends_are_not_ours(built: Built, tmp_path: Path) -> None:
    """Another checkout's Prometheus, Zipkin or collector never counts as ready."""
    at_prometheus, at_zipkin, otlp = free_ports(), free_ports(), free_ports(servers.COLLECTOR_PORTS)
    theirs = collector(built, tmp_path / "c", otlp, prometheus=at_prometheus, zipkin=at_zipkin, name="theirs")
    ours = collector(built, tmp_path / "d", otlp, prometheus=at_prometheus, zipkin=at_zipkin)
    with (
        start(prometheus(built, tmp_path / "theirs", at_prometheus), tmp_path / "prometheus.log") as first,
        start(zipkin(built, at_zipkin, "theirs"), tmp_path / "zipkin.log") as second,
        start(theirs, tmp_path / "collector.log") as third,
    ):
        for process in (first, second, third):
            assert_only_loopback(process)
        for program in (prometheus(built, tmp_path / "ours", at_prometheus), zipkin(built, at_zipkin), ours):
            with pytest.raises(NotReady, match="not "):
                program.ready()


def test_zipkin_has_memory_for_all_spans_of_its_bound(built: Built, tmp_path: Path) -> None:
    """It takes spans beyond the bound and forgets the oldest traces; with too little memory it answers with 500."""
    port = free_ports()
    program = zipkin(built, port)
    bound = int(program.env["MEM_MAX_SPANS"])
    per_request = 500
    with start(program, tmp_path / "zipkin.log"):
        for first in range(0, bound + 10_000, per_request):
            spans = [zipkin_span(number) for number in range(first, first + per_request)]
            body = json.dumps(spans).encode()
            http_get(port, "/api/v2/spans", method="POST", body=body, Content_Type="application/json")
        newest, oldest = zipkin_span(first)["traceId"], zipkin_span(0)["traceId"]
        until("the newest trace", lambda: get_json(port, f"/api/v2/trace/{newest}"))
        with pytest.raises(NotReady, match="404"):
            get_json(port, f"/api/v2/trace/{oldest}")


def zipkin_span(number: int) -> dict[str, object]:
    """One of the four spans of a trace, with about as many attributes as those of the service."""
    trace_id = f"{number // 4 + 1:032x}"
    return {
        "traceId": trace_id,
        "id": f"{number + 1:016x}",
        "name": "upload vehicles",
        "timestamp": time.time_ns() // 1000,
        "duration": 1000,
        "localEndpoint": {"serviceName": "consumer"},
        "tags": {f"bronze.attribute_{tag}": f"{number}-{tag}-{'value' * 3}" for tag in range(14)},
    }


@pytest.mark.skipif(shutil.which("tempo") is None, reason="no `tempo` on PATH")
def test_a_strangers_tempo_is_not_ours(built: Built, tmp_path: Path) -> None:
    """Another checkout's Tempo never counts as ready; ours gives a trace back, leading zeros and all."""
    assert built.tempo
    port = free_ports(servers.TEMPO_PORTS)
    theirs = servers.tempo(tmp_path / "theirs", port, executable=built.tempo, prometheus=free_ports())
    with start(theirs, tmp_path / "log") as process:
        assert_only_loopback(process)
        with pytest.raises(NotReady, match="not the Tempo of"):
            servers.tempo(tmp_path / "ours", port, executable=built.tempo, prometheus=free_ports()).ready()
        send_upload(port + 1)
        until(
            "Tempo's trace",
            lambda: Tempo(port).trace(TRACE_ID) == Trace(1, ("consumer",), "bronze/x.parquet"),
            timeout_s=90,
        )


@pytest.mark.skipif(shutil.which("grafana") is None, reason="no `grafana` on PATH")
def test_grafana_comes_with_its_dashboards(built: Built, tmp_path: Path) -> None:
    """To whoever looks, without an account; another checkout's Grafana never counts as ready."""
    assert built.grafana
    port = free_ports()

    def grafana(name: str) -> Program:
        return servers.grafana(
            tmp_path / name,
            port,
            name,
            executable=built.grafana or Path(),
            prometheus=free_ports(),
            tempo=free_ports(),
            public_url="http://127.0.0.1:9",
        )

    with start(grafana("theirs"), tmp_path / "log") as process:
        assert_only_loopback(process)
        with pytest.raises(NotReady, match="not the Grafana of"):
            grafana("ours").ready()
        files = (REPOSITORY / "grafana" / "provisioning" / "dashboards").glob("*.json")
        ours = {json.loads(file.read_text())["uid"] for file in files}
        until(
            "the dashboards",
            lambda: {found["uid"] for found in get_json(port, "/api/search?type=dash-db")} == ours,
            timeout_s=90,
        )


def test_a_strangers_bucket_is_not_ours(tmp_path: Path) -> None:
    """An S3 that does not know our keys never counts as ready, even for a bucket of the same name."""
    port = free_ports(servers.SEAWEEDFS_PORTS)
    theirs = servers.s3_account(tmp_path / "theirs", port)
    with start(servers.seaweedfs(tmp_path / "theirs", theirs), tmp_path / "log") as process:
        assert_only_loopback(process)
        ours = servers.s3_account(tmp_path / "ours", port)
        with pytest.raises(NotReady, match="403"):
            servers.seaweedfs(tmp_path / "ours", ours).ready()


def assert_only_loopback(process: Process) -> None:
    """A server listens on its declared ports, on the loopback address, and nowhere else."""
    assert listeners(process.pid) == {f"{LOOPBACK}:{port}" for port in process.program.ports.values()}


def listeners(pid: int) -> set[str]:
    """The TCP addresses that a process listens on, as the kernel lists them."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(link.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                address, port = local.split(":")
                octets = bytes.fromhex(address)[-4:][::-1]
                found.add(f"{'.'.join(map(str, octets))}:{int(port, 16)}")
    return found
