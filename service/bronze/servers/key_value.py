"""Keys that one of several writers gets, by compare-and-set: a JetStream KV bucket (NATS ADR-8).

Streams are made through them: a server that is asked for two streams on one subject at the same moment makes both
(seen with nats-server 2.15.1), though it refuses the second a moment later.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Mapping
from contextlib import suppress

from bronze.errors import Misconfigured, Outage, Unavailable
from bronze.servers import jetstream as js
from bronze.servers.jetstream import ApiError, JetStream, Outgoing

STREAM = "KV_bronze"
SUBJECT = "$KV.bronze."
#: How long who has claimed a stream may take to make it; then another claims it.
CLAIM_S = 5.0
POLL_S = 0.1
#: The beginning of a claim that does not lapse; the rest is the command that ends it.
HELD = b"held: "


class KeyChanged(Exception):
    """Another has written the key since it was read."""


class KeyValueStore:
    """The keys; made where they are not."""

    def __init__(self, jetstream: JetStream, replicas: int) -> None:
        self._js = jetstream
        self._config = {
            "name": STREAM,  # a fixed name and configuration: making it twice is making it once
            "subjects": [f"{SUBJECT}>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "num_replicas": replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
        }

    async def open(self) -> None:
        try:
            await self._js.create_stream(self._config)
        except ApiError as error:
            # there already; with other replicas, for example, which is its operator's choice
            if error.err_code != js.STREAM_NAME_IN_USE:
                raise Misconfigured(f"the queue refuses the stream {STREAM}: {error}") from error

    async def get(self, key: str) -> tuple[bytes, int]:
        """A key's value and revision, from the leader; nothing and 0 where there is none."""
        message = await self._js.get_last(STREAM, f"{SUBJECT}{key}")
        return (message.payload, message.sequence) if message else (b"", 0)

    async def names(self, prefix: str) -> list[str]:
        """What follows the prefix in each key that has it, as one replica sees them."""
        subject = f"{SUBJECT}{prefix}"
        return [found.subject.removeprefix(subject) for found in await self._js.last_messages(STREAM, [f"{subject}*"])]

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """Write a key that is still at a revision, and give the new one. Raises `KeyChanged`."""
        headers = {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision), js.EXPECTED_STREAM: STREAM}
        try:
            return await self._js.publish(Outgoing(f"{SUBJECT}{key}", value, headers))
        except ApiError as error:
            if error.err_code in {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}:
                raise KeyChanged from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the key {key}: {error}") from error

    async def stream(self, key: str, prefix: str, subjects: list[str], config: Mapping[str, object]) -> str:
        """The one stream on these subjects, named `{prefix}_{when it was made}`; made where there is none.

        Who claims the key makes the stream; the others wait for it, and claim it where it does not come. Raises
        `Misconfigured` where two streams hold the subjects, and `Unavailable` where there is none and a command that
        replaces it holds the key.
        """
        await self.open()
        seen, seen_s = 0, time.monotonic()
        while True:
            names = await self._js.stream_names(subjects[0])
            if len(names) == 1:
                return names[0]
            if names:
                raise Misconfigured(f"the streams {', '.join(names)} share {subjects[0]}: remove the empty one")
            value, revision = await self.get(key)
            if value.startswith(HELD):
                raise Unavailable(
                    Outage.QUEUE_AWAY,
                    f"the stream on {subjects[0]} is being replaced by `{value.removeprefix(HELD).decode()}`: "
                    "if that does not run any more, run it again",
                )
            if revision != seen:
                seen, seen_s = revision, time.monotonic()
            if revision and time.monotonic() - seen_s < CLAIM_S:
                await asyncio.sleep(POLL_S)
                continue
            name = timestamped_name(prefix)
            try:
                await self.put(key, name.encode(), revision)
                await self._js.create_stream({**config, "name": name, "subjects": subjects})
            except KeyChanged:
                continue
            except ApiError as error:
                # a claim of before came through after all
                if error.err_code != js.SUBJECTS_OVERLAP:
                    raise Misconfigured(f"the queue refuses the stream {name}: {error}") from error

    async def hold_claim(self, key: str, command: str) -> None:
        """From now on nobody makes the key's stream but the command that holds it; `give` ends that."""
        await self._set(key, HELD + command.encode())

    async def release_claim(self, key: str) -> None:
        """The command is done with the key."""
        await self._set(key, b"")

    async def _set(self, key: str, value: bytes) -> None:
        while True:
            there, revision = await self.get(key)
            if there == value:
                return
            with suppress(KeyChanged):
                await self.put(key, value, revision)


def timestamped_name(prefix: str) -> str:
    """The name of a stream that is made now."""
    return f"{prefix}_{dt.datetime.now(dt.UTC).strftime('%Y%m%dT%H%M%S%f')[:-3]}"
