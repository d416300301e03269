"""Simulating: sends the invented records of a vehicle fleet slowly, so that an idle system has data to show."""

import logging
import random
import time
import uuid
from collections.abc import Callable

import msgspec

from bronze.client import connect
from bronze.errors import BronzeError
from bronze.publisher.batches import Batch
from bronze.publisher.fleet import fleet
from bronze.publisher.plan import RETRY_FOR_S
from bronze.publisher.publishing import serve_metrics
from bronze.publisher.sending import Sender
from bronze.publisher.stopping import Stop
from bronze.records import sources
from bronze.settings import Settings
from bronze.telemetry import Telemetry
from bronze.telemetry.signals import Role

INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


def simulate(
    settings: Settings,
    telemetry: Telemetry,
    *,
    stop: Stop,
    interval_s: float = INTERVAL_S,
    dice: random.Random | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Sends one submission per interval until a stop is requested, whether or not the previous one was accepted.

    The caller shuts the telemetry down. Raises `Misconfigured`.
    """
    run = uuid.uuid4().hex
    telemetry.instruments.zero(Role.PUBLISHER, sources.without_canary(sources.load(settings.sources)))
    with connect(settings) as http, serve_metrics(telemetry):
        telemetry.flush()
        sender = Sender(http, telemetry, retry_for_s=RETRY_FOR_S, wait=stop.wait, clock=clock)
        for number, (source, records) in enumerate(fleet(dice or random.Random())):  # noqa: S311  only invents data
            body = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
            batch = Batch(f"{source}.ndjson", body, range(1, len(records) + 1), len(body))
            try:
                sender.send(source, f"{run}-{number}", batch)
            except BronzeError as error:
                if not stop.requested:
                    _log.error("a simulated submission was not accepted: %s", error)
            if stop.wait(interval_s):
                return
