"""Keys with compare-and-set, so that one of several writers wins: a JetStream KV bucket (NATS ADR-8).

A process claims a key before it creates a stream: if two processes create streams on one subject at the same moment,
the server creates both (seen with nats-server 2.15.1). A moment later it would refuse the second one.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Mapping
from contextlib import suppress

from bronze.errors import Misconfigured, NotPermitted, Outage, Unavailable
from bronze.protocol.message import Message
from bronze.servers import jetstream as js
from bronze.servers.jetstream import ApiError, JetStream, Outgoing

STREAM = "KV_bronze"
SUBJECT = "$KV.bronze."
#: How long the process that claimed a stream has to create it; after that another process claims it.
CLAIM_S = 5.0
POLL_S = 0.1
#: Options that nobody needs and that would let a user of one key change others.
PROTECTION: Mapping[str, object] = {"allow_rollup_hdrs": False, "deny_delete": True, "deny_purge": True}
#: The beginning of a claim that does not expire; the rest is the command that releases it.
HELD = b"held: "


class KeyChanged(Exception):
    """Another process has written the key since it was read."""


class KeyValueStore:
    """The keys of the queue."""

    def __init__(self, jetstream: JetStream, replicas: int) -> None:
        self._js = jetstream
        self._config = {
            "name": STREAM,  # a fixed name and configuration: to create it again changes nothing
            "subjects": [f"{SUBJECT}>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "num_replicas": replicas,
            "allow_direct": True,
            **PROTECTION,
        }

    async def open(self) -> None:
        """Create the stream of the keys, if there is none. Raises `Misconfigured` if this user may not create it."""
        if await self._js.stream_names(f"{SUBJECT}>"):
            return
        try:
            await self._js.create_stream(self._config)
        except NotPermitted as error:
            raise not_created(f"{SUBJECT}>") from error
        except ApiError as error:
            # it exists, perhaps with other options, such as replicas, which its operator has chosen
            if error.err_code != js.STREAM_NAME_IN_USE:
                raise Misconfigured(f"the queue refuses the stream {STREAM}: {error}") from error

    async def protect(self) -> bool:
        """Give a stream that an older version created the present protection; whether it lacked it."""
        return await self._js.update_stream(STREAM, **PROTECTION)

    async def get(self, key: str) -> tuple[bytes, int]:
        """A key's value and revision, from the leader; an empty value and 0 if it does not exist.

        Raises `Unavailable` if the value was not put there by `put`.
        """
        message = await self._js.get_last(STREAM, f"{SUBJECT}{key}")
        if message is None:
            return b"", 0
        if not _was_put(message):
            raise Unavailable(
                Outage.UNAVAILABLE,
                f"the key {key} in the queue was not written by Bronze: a user of the queue let the server send an "
                "answer to it (docs/security.md). Its last value is lost. To use the key again, delete it with "
                f"`nats kv del bronze {key}`",
            )
        return message.payload, message.sequence

    async def names(self, prefix: str) -> list[str]:
        """The keys with a prefix, as one replica has them; the prefix is removed."""
        subject = f"{SUBJECT}{prefix}"
        messages = await self._js.last_messages(STREAM, [f"{subject}*"])
        return [message.subject.removeprefix(subject) for message in messages]

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """Write a key if it is still at a revision, and return the new revision. Raises `KeyChanged`."""
        headers = {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision), js.EXPECTED_STREAM: STREAM}
        try:
            return await self._js.publish(Outgoing(f"{SUBJECT}{key}", value, headers))
        except ApiError as error:
            if error.err_code in {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}:
                raise KeyChanged from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the key {key}: {error}") from error

    async def open_stream(self, key: str, prefix: str, subjects: list[str], config: Mapping[str, object]) -> str:
        """The name of the only stream on these subjects: `{prefix}_{time of creation}`; created if there is none.

        The process that claims the key creates the stream; the others wait for it, and claim the key if it does not
        appear. Raises `Misconfigured` if two streams have the subjects, and `Unavailable` if there is no stream and
        the key is held by a command that replaces it.
        """
        await self.open()
        seen, seen_s = 0, time.monotonic()
        while True:
            names = await self._js.stream_names(subjects[0])
            if len(names) == 1:
                return names[0]
            if names:
                raise Misconfigured(
                    f"the streams {', '.join(names)} have the subject {subjects[0]}, but only one stream may have it: "
                    "probably two processes created them at the same moment. Remove the empty one (`nats stream info` "
                    "shows the number of messages). If none is empty, save one with `nats stream backup` before you "
                    'remove it: see docs/delivery.md, "When a lane stops"'
                )
            value, revision = await self.get(key)
            if value.startswith(HELD):
                raise Unavailable(
                    Outage.QUEUE_AWAY,
                    f"the stream on {subjects[0]} is being replaced by `{value.removeprefix(HELD).decode()}`. "
                    "If that command is no longer running, run it again",
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
            except NotPermitted as error:
                raise not_created(subjects[0]) from error
            except ApiError as error:
                # the stream of an earlier claim has appeared after all
                if error.err_code != js.SUBJECTS_OVERLAP:
                    raise Misconfigured(f"the queue refuses the stream {name}: {error}") from error

    async def hold_claim(self, key: str, command: str) -> None:
        """From now on only this command creates the key's stream, until `release_claim`."""
        await self._set(key, HELD + command.encode())

    async def release_claim(self, key: str) -> None:
        """End a claim that a command holds."""
        await self._set(key, b"")

    async def _set(self, key: str, value: bytes) -> None:
        while True:
            current, revision = await self.get(key)
            if current == value:
                return
            with suppress(KeyChanged):
                await self.put(key, value, revision)


def not_created(subject: str) -> Misconfigured:
    return Misconfigured(
        f"the queue has no stream on {subject}, and the user of this process may not create one: run `bronze init` as "
        "a user who may (docs/security.md)"
    )


def _was_put(message: Message) -> bool:
    """Whether a message is a value, or deletes one.

    The server sends its answer to a request to whatever subject the request names, whether the user who sent the
    request may publish there or not. What it sends has other headers than what was published.
    """
    headers = message.headers
    if js.ANSWERED_STREAM in headers or js.ANSWERED_STATUS in headers:
        return False
    return not message.payload or headers.get(js.EXPECTED_STREAM) == STREAM


def timestamped_name(prefix: str) -> str:
    """The name of a stream that is created now."""
    return f"{prefix}_{dt.datetime.now(dt.UTC).strftime('%Y%m%dT%H%M%S%f')[:-3]}"
