"""The answer to a submission whose ack was lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from bronze.errors import Outage, Unavailable
from bronze.protocol.lane import Lane
from bronze.protocol.message import Message
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import built_in
from bronze.servers.jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue, boot_time_s
from bronze.settings import Settings
from tests import factories


class LostAck:
    """A queue that stores a message and loses its ack, and afterwards answers no look-up."""

    connected = True
    stored = 0

    async def publish(self, message: Outgoing) -> int:
        if self.stored:
            raise ApiError(WRONG_LAST_SEQUENCE, 400, "wrong last sequence")
        self.stored += 1
        raise Unavailable(Outage.QUEUE_AWAY, "the ack was lost")

    @asynccontextmanager
    async def gone_if_replaced(self, stream: str, subject: str) -> AsyncIterator[None]:
        yield

    async def get_last(self, stream: str, subject: str) -> Message | None:
        raise Unavailable(Outage.QUEUE_AWAY, "the leader does not answer")


async def test_stored_submission_is_not_reported_as_refused() -> None:
    """The message is stored, its ack is lost and the look-up fails: the answer says that the outcome is unknown."""
    queue = LostAck()
    intake = JsonIntake(built_in()["vehicles"], body_bytes_max=1000, spool_memory_bytes_max=1000)
    intake.add_lines(b'{"vehicle_id": "N14228"}\n')
    checked = intake.finish()
    accepted = factories.accepted(digest=checked.digest)
    jetstream = cast(JetStream, queue)
    ours = NatsQueue(jetstream, KeyValueStore(jetstream, 1), Settings(deadline_s=0.5))
    with pytest.raises(Unavailable) as told:
        await ours.submit(Lane("vehicles", 0, "20260101T000000000"), accepted, checked, boot_time_s() + 0.5)
    checked.close()
    assert queue.stored == 1
    assert told.value.code == "outcome-unknown"
    assert told.value.members["submission_id"] == accepted.submission_id
