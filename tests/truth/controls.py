"""Negative controls: losses that are made on purpose, each of which has to be found by the right alert."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import nats
from tests.system.blackbox import vehicles
from tests.truth.bucket import Bucket
from tests.truth.running import CONSUMER, ROLES, Running
from tests.truth.series import Prometheus

#: The bucket is compared each minute, the alert holds for two, and its series arrives some seconds later.
FOUND_S_MAX = 330.0


@dataclass(frozen=True)
class Control:
    """What was done, how it was found, and after how many seconds (None: it was not)."""

    name: str
    found_by: str
    seconds: float | None


def counters_reset(
    whole: Running, read: Callable[[], Mapping[str, float]], settle_s: float
) -> tuple[Control, Mapping[str, float]]:
    """Every counter starts again at 0, since both processes are killed. Returns the numbers that changed."""
    before = read()
    for role in ROLES:
        whole.member(role).end(signal.SIGKILL)
    time.sleep(settle_s)
    whole.wait_ready()
    after = read()
    changed = {name: after.get(name, -1.0) - value for name, value in before.items() if after.get(name) != value}
    return Control("every counter reset (kill -9 of both roles at rest)", "no number may change", settle_s), changed


def losses(whole: Running, prometheus: Prometheus, bucket: Bucket) -> list[Control]:
    """A message that waits in a lane is deleted while no consumer runs, and an object that is stored. Afterwards the
    object is put back.
    """
    system, consumer = whole.system, whole.member(CONSUMER)
    consumer.stop()
    for number in range(5):
        answer = system.post("vehicles", vehicles(f"control-{number}")[0])
        assert answer.status_code == 202, answer.text
    asyncio.run(_delete_message(system.stack.queue_options))
    key = max((o for o in bucket.objects.values() if o.source == "status"), key=lambda o: o.written_at).key
    body = system.body(key)
    system.s3.delete_object(Bucket=system.bucket, Key=key)
    consumer.supervised = True
    seconds = _firing_after(prometheus, [labels for _, labels in _EXPECTED])
    system.s3.put_object(Bucket=system.bucket, Key=key, Body=body)
    return [Control(name, labels, seconds[labels]) for name, labels in _EXPECTED]


#: What is done, and the labels of the alert that has to find it.
_EXPECTED = (
    ("a stored object deleted", 'alertname="BronzeRecordsMissing", missing="objects in the bucket"'),
    ("a waiting message deleted", 'alertname="BronzeRecordsMissing", missing="messages in the queue"'),
    ("the same, when the lane comes to the gap", 'alertname="BronzeLaneHalted", bronze_source="vehicles"'),
)


def _firing_after(prometheus: Prometheus, alerts: Sequence[str]) -> dict[str, float | None]:
    """After how many seconds each alert fires, by its labels."""
    began = time.monotonic()
    seconds: dict[str, float | None] = dict.fromkeys(alerts)
    while None in seconds.values() and time.monotonic() - began < FOUND_S_MAX:
        for labels in alerts:
            if seconds[labels] is None and prometheus.vector(f'ALERTS{{{labels}, alertstate="firing"}}'):
                seconds[labels] = time.monotonic() - began
        time.sleep(1)
    return seconds


async def _delete_message(queue: Mapping[str, str]) -> None:
    """Deletes the middle of the messages that wait in the lane of vehicles."""
    client = await nats.connect(**queue)
    try:
        jetstream = client.jetstream()
        names = [s.config.name or "" for s in await jetstream.streams_info()]
        (name,) = [name for name in names if name.startswith("BRONZE_VEHICLES_")]
        state = (await jetstream.stream_info(name)).state
        await jetstream.delete_msg(name, state.last_seq - 2)
    finally:
        await client.close()
