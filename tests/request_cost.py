"""The CPU that telemetry takes for one small submission, in one process: `python -m tests.request_cost`.

The API's own app and the consumer's telemetry of an upload, on the modelled servers of the tests: no HTTP server, no
queue. Telemetry off and at 100 % sampling in turn, in the same process; all of its threads count. Another process takes
what is exported and forgets it.
"""

import argparse
import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Scope

from benchmarks.rounds import Figures, Found, interleaved
from benchmarks.stand import console, say
from bronze import process
from bronze.api.authentication import ForeignTraces
from bronze.api.guard import Guard
from bronze.api.request_context import OwnContext
from bronze.consumer.upload_telemetry import UploadTelemetry
from bronze.objects.encoder import encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane
from bronze.protocol.message import Message as Stored
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role, Stage, spans
from local.programs import LOOPBACK, free_ports
from tests.contract.making import SOURCES, app_on
from tests.delivery.servers import ModelBucket, ModelJetStream, QueueServer

ROUNDS = 7
REQUESTS = 2_000
#: Submissions of one object.
CUT = 250
CONNECTIONS = 16
CATALOG = "BRONZE_CATALOG_1"
BODY = b'{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}'
API, CONSUMER = "API, us", "consumer, us"
OFF, ON = "off", "100 %"
_SINK = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


@contextmanager
def sink() -> Iterator[str]:
    """A process that takes any OTLP request and forgets it; its address."""
    port = free_ports(1)
    with subprocess.Popen([sys.executable, "-c", _SINK, LOOPBACK, str(port)]) as receiver:
        try:
            yield f"http://{LOOPBACK}:{port}"
        finally:
            receiver.kill()


class Service:
    """API and consumer on modelled servers, with telemetry as the environment says."""

    def __init__(self) -> None:
        self._server = QueueServer(time.time)
        self._server.create({"name": CATALOG, "subjects": SUBJECTS, "metadata": {}})
        self._telemetry = [sdk.start(role, Settings(), log_stream=io.StringIO()) for role in (Role.API, Role.CONSUMER)]
        self._jetstream = ModelJetStream(self._server)

    async def open(self) -> None:
        settings = Settings()
        key_values = KeyValueStore(self._jetstream, 1)
        await key_values.open()
        queue = NatsQueue(self._jetstream, key_values, settings)
        self._lanes = await queue.open(SOURCES)
        catalog = NatsCatalog(self._jetstream, CATALOG)
        app = app_on(settings, self._lanes, queue, ModelBucket({}), catalog, self._telemetry[0])
        self._app = OwnContext(Guard(ForeignTraces(app, None), settings, lambda _: None))

    def close(self) -> None:
        for telemetry in self._telemetry:
            telemetry.shutdown()

    async def run(self, requests: int) -> Figures:
        """The CPU of each role per submission."""
        lane = next(lane for lane in self._lanes if lane.source == "vehicles")
        log = self._server.stream(lane.stream).log
        accepted: list[Stored] = []
        api_s = consumer_s = 0.0
        for _ in range(requests // CUT):
            began_s = time.process_time()
            await asyncio.gather(*(self._send(CUT // CONNECTIONS, log, accepted) for _ in range(CONNECTIONS)))
            api_s += time.process_time() - began_s
        began_s = time.process_time()
        self._telemetry[0].flush()
        api_s += time.process_time() - began_s
        sent = len(accepted)
        while accepted:
            cut = accepted[:CUT]
            del accepted[:CUT]
            consumer_s += self._write(lane, cut)
        began_s = time.process_time()
        self._telemetry[1].flush()
        consumer_s += time.process_time() - began_s
        return {API: 1e6 * api_s / sent, CONSUMER: 1e6 * consumer_s / sent}

    async def _send(self, number: int, log: list[Stored], accepted: list[Stored]) -> None:
        for _ in range(number):
            status = await post(self._app, BODY)
            if status != HTTPStatus.ACCEPTED:
                raise RuntimeError(f"the API answers {status}")
            accepted += log  # the model looks through all that it has
            log.clear()

    def _write(self, lane: Lane, cut: Sequence[Stored]) -> float:
        """The CPU of one upload's telemetry, in seconds."""
        reconciled = reconcile(lane, cut, {})
        began_s = time.process_time()
        upload = UploadTelemetry(self._telemetry[1], lane, reconciled, time.time_ns())
        spent_s = time.process_time() - began_s
        encoded = encode_object(SOURCES["vehicles"], lane, "key", reconciled, upload.traceparent)
        began_s = time.process_time()
        with upload.stage(Stage.ENCODE, spans.encode):
            pass
        with upload.stage(Stage.PUT, spans.put):
            pass
        upload.put_done(encoded.stored)
        with upload.stage(Stage.CATALOG):
            pass
        upload.stored(encoded.stored)
        upload.close()
        return spent_s + time.process_time() - began_s


async def post(app: ASGIApp, body: bytes) -> int:
    """The status of one request, as an HTTP server would hand it to the app."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": "/v1/ingest/vehicles",
        "raw_path": b"/v1/ingest/vehicles",
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"content-type", b"application/x-ndjson"),
            (b"content-length", str(len(body)).encode()),
        ],
        "state": {},
    }
    sent: list[Message] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


def measure(rounds: int, requests: int) -> Found:
    """Telemetry off and on in turn."""
    with sink() as address, asyncio.Runner() as runner:
        services = {}
        for name, env in {
            OFF: {"OTEL_SDK_DISABLED": "true"},
            ON: {"OTEL_SDK_DISABLED": "", "OTEL_TRACES_SAMPLER": "parentbased_always_on"},
        }.items():
            os.environ |= {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": address}
            services[name] = Service()
            runner.run(services[name].open())
        variants = {name: partial(lambda one: runner.run(one.run(requests)), one) for name, one in services.items()}
        for warm_up in variants.values():
            warm_up()
        process.freeze_startup_objects()
        found = interleaved(variants, rounds, lambda n, variant, f: say(f"{n + 1}/{rounds} {variant}: {f}"))
        for service in services.values():
            service.close()
    return Found(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.request_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each variant (%(default)s)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each round (%(default)s)")
    args = parser.parse_args(arguments)
    medians = measure(args.rounds, args.requests).medians
    for name in (API, CONSUMER):
        off, on = medians[OFF][name], medians[ON][name]
        console.print(f"{name}: off {off:.0f}, 100 % {on:.0f}: {on - off:.0f} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
