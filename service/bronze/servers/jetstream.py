"""JetStream, as far as the chain protocol needs it: the one place that imports the NATS client.

Requests are made by hand where nats-py 2.16 has no call (atomic batches, batched direct gets, last messages of many
subjects) or loses what the protocol rests on (it cuts stored times to microseconds and drops the server's clock).
Sources: NATS ADR-8 (KV), ADR-31 (direct get), ADR-43 (message TTL), ADR-50 (atomic batch publishing).

Every wait is bounded. A timeout means "unknown", never "no": a request may be applied after its caller gave up.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from bronze.errors import Gone, Misconfigured, Outage, Unavailable
from bronze.protocol.message import Message

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0
#: The commit of a large batch is written and synced before it is answered.
COMMIT_TIMEOUT_S = 10
#: Subjects whose last messages are read at once.
LAST_MAX = 1_000
#: Every so many messages of a batch one asks for an answer. It comes once the server has written them: what is under
#: way stays far below the 128 MiB of a stream's inbox, past which the server drops messages without a word.
BATCH_ASK_MESSAGES = 16

EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"

#: The status of an answer that no one gives.
NO_RESPONDERS = "503"

#: What a direct get adds to the stored headers.
_ANSWER_HEADERS = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
        "Nats-UpTo-Sequence",
    }
)

# err_code of the server's API errors
WRONG_LAST_SEQUENCE = 10071
SUBJECT_WRITE_IN_FLIGHT = 10164
STREAM_FULL = 10077
TOO_MANY_OPEN_BATCHES = 10210
WRONG_STREAM = 10060
NO_MESSAGE = 10037
STREAM_NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
STREAM_NOT_FOUND = 10059
SEALED = 10109


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be stored."""

    subject: str
    payload: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as its leader sees it now; `now` is the server's clock. A sealed one takes and drops nothing."""

    name: str
    metadata: Mapping[str, str]
    sealed: bool
    first: int
    last: int
    messages: int
    now: str


class Missing(Unavailable):
    """No stream answers to this name or subject now: nothing was done. It may come back, or be replaced."""

    def __init__(self, what: str) -> None:
        super().__init__(Outage.QUEUE_AWAY, f"the queue has no stream that answers to {what}")


class ApiError(Exception):
    """The server's own "no", with its `err_code`."""

    def __init__(self, err_code: int, code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.err_code = err_code
        self.code = code


class JetStream:
    """A connection to one named server or cluster. All calls raise `Unavailable` where there is no answer in time."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, url: str, *, server_name: str | None = None, name: str = "bronze") -> Self:
        """Connect and keep reconnecting from then on.

        Raises `Unavailable` where nothing answers and `Misconfigured` where another server does.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):  # the client itself would go on trying for ever
                client = await nats.connect(
                    url,
                    name=name,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,
                    pending_size=0,  # disconnected, a request fails at once instead of being sent after we gave up
                    error_cb=_log_error,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unavailable(
                Outage.QUEUE_AWAY, f"the queue at {url} does not answer: {error or type(error).__name__}"
            ) from error
        stream = cls(client)
        if server_name is not None:
            found = client._server_info.get("server_name")  # noqa: SLF001 - nats-py has no public way
            if found != server_name:
                await client.close()
                raise Misconfigured(
                    f"the queue at {url} is the server {found!r}, not {server_name!r} (BRONZE_NATS_SERVER_NAME)"
                )
        return stream

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def close(self) -> None:
        await self._client.close()

    async def _request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Msg:
        try:
            return await self._client.request(
                subject, payload, timeout=timeout_s, headers=dict(headers) if headers else None
            )
        except nats.errors.MaxPayloadError:
            raise
        except nats.errors.NoRespondersError as error:
            raise Missing(subject) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unavailable(
                Outage.QUEUE_AWAY, f"the queue does not answer: {error or type(error).__name__}"
            ) from error

    async def api(self, call: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One JetStream API call, such as `STREAM.INFO.name`; raises `ApiError`."""
        reply = await self._request(f"$JS.API.{call}", msgspec.json.encode(payload) if payload else b"")
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        _raise_error(answer)
        return answer

    async def _call(self, call: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A call that the server has no reason to refuse: a refusal passes, as an absence does."""
        try:
            return await self.api(call, payload)
        except ApiError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise Missing(call.rpartition(".")[2]) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses {call}: {error}") from error

    # --- streams

    async def stream_names(self, subject: str) -> list[str]:
        """The names of the streams that hold a subject: one at most, or something is wrong; more by a wildcard."""
        return (await self._call("STREAM.NAMES", {"subject": subject})).get("streams") or []

    async def state(self, stream: str) -> StreamState:
        info = await self._call(f"STREAM.INFO.{stream}")
        state = info["state"]
        return StreamState(
            name=stream,
            metadata=info["config"].get("metadata") or {},
            sealed=info["config"].get("sealed", False),
            first=state["first_seq"],
            last=state["last_seq"],
            messages=state["messages"],
            now=info["ts"],
        )

    async def create_stream(self, config: Mapping[str, Any]) -> None:
        """Create a stream; raises `ApiError` where the name or a subject is taken."""
        await self.api(f"STREAM.CREATE.{config['name']}", config)

    async def update_stream(self, stream: str, **changes: object) -> None:
        """Change some of a stream's configuration, and leave the rest."""
        config = (await self._call(f"STREAM.INFO.{stream}"))["config"]
        await self._call(f"STREAM.UPDATE.{stream}", {**config, **changes})

    async def seal(self, stream: str) -> None:
        """Have a stream take nothing more, for good.

        A batch that is open at that moment is refused at its commit; what was acknowledged stays.
        """
        await self.update_stream(stream, sealed=True)

    async def delete_stream(self, stream: str) -> None:
        """Remove a stream with all that it holds; one that is not there is removed."""
        with suppress(Missing):
            await self._call(f"STREAM.DELETE.{stream}")

    @asynccontextmanager
    async def gone_if_replaced(self, stream: str, subject: str) -> AsyncIterator[None]:
        """Around what is asked of a stream by its name: raises `Gone` where others have its subjects by now."""
        try:
            yield
        except Missing as error:
            if await self.is_replaced(stream, subject):
                raise replaced_error(stream) from error
            raise

    async def is_replaced(self, stream: str, subject: str) -> bool:
        """Whether a stream that is missing is so for good: others have the subjects that it was one of."""
        found = await self.stream_names(subject)
        return bool(found) and stream not in found

    async def purge_below(self, stream: str, sequence: int) -> None:
        """Drop what lies below a sequence; that message and all after it stay."""
        await self._call(f"STREAM.PURGE.{stream}", {"seq": sequence})

    # --- writing

    async def publish(self, message: Outgoing) -> int:
        """Store one message durably and give its sequence; raises `ApiError`."""
        reply = await self._request(message.subject, message.payload, message.headers)
        return _ack(reply)

    async def publish_batch(
        self, messages: Iterable[Outgoing], count: int, *, in_time: Callable[[], bool] = lambda: True
    ) -> int:
        """Store all `count` messages or none, contiguously, and give the last one's sequence; raises `ApiError`.

        At most 1,000 (ADR-50). A conflict surfaces at the commit, which is not sent where `in_time` says no.
        """
        batch = uuid4().hex
        for number, message in enumerate(messages, start=1):
            headers = {**message.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if number == count:
                if not in_time():
                    break
                headers["Nats-Batch-Commit"] = "1"
                return _ack(await self._request(message.subject, message.payload, headers, COMMIT_TIMEOUT_S))
            if number % BATCH_ASK_MESSAGES == 1:
                timeout_s = REQUEST_TIMEOUT_S if number == 1 else COMMIT_TIMEOUT_S
                reply = await self._request(message.subject, message.payload, headers, timeout_s)
                if reply.data:
                    _raise_error(msgspec.json.decode(reply.data))
                continue
            try:
                await self._client.publish(message.subject, message.payload, headers=headers)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                raise Unavailable(Outage.QUEUE_AWAY, f"the queue went away: {error}") from error
        raise Unavailable(Outage.QUEUE_AWAY, "the time for the batch ran out")

    # --- reading, from the leader

    async def get(self, stream: str, sequence: int) -> Message | None:
        """The message at a sequence, from the leader; None: the leader has none."""
        return await self._get(stream, {"seq": sequence})

    async def get_last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject (wildcards are taken), from the leader; None: the leader has none."""
        return await self._get(stream, {"last_by_subj": subject})

    async def _get(self, stream: str, request: Mapping[str, Any]) -> Message | None:
        try:
            stored = (await self.api(f"STREAM.MSG.GET.{stream}", request))["message"]
        except ApiError as error:
            if error.err_code == NO_MESSAGE:
                return None
            if error.err_code == STREAM_NOT_FOUND:
                raise Missing(stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue cannot look up {request}: {error}") from error
        return Message(
            sequence=stored["seq"],
            subject=stored["subject"],
            time=stored["time"],
            headers=_headers(base64.b64decode(stored.get("hdrs") or "")),
            payload=base64.b64decode(stored.get("data") or ""),
        )

    # --- reading, from any replica: what is missing may be there

    async def has(self, stream: str, sequence: int) -> bool:
        """Whether a replica has a message at a sequence or later."""
        reply = await self._request(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode({"seq": sequence, "next_by_subj": ">"})
        )
        return (reply.headers or {}).get("Status") is None

    async def read(self, stream: str, first: int, *, messages_max: int, bytes_max: int) -> list[Message]:
        """What a replica has from a sequence on, in order, within bounds; the first message always comes."""
        request = {
            "seq": first,
            "batch": messages_max,
            "max_bytes": bytes_max,
            "next_by_subj": ">",
        }
        return (await self._direct(stream, request))[0]

    async def read_subject(
        self, stream: str, subject: str, begin: int | str, *, messages_max: int, bytes_max: int
    ) -> tuple[list[Message], int]:
        """As `read`, of some subjects (wildcards are taken), from a sequence or a time on; and how many follow yet."""
        request = {
            ("start_time" if isinstance(begin, str) else "seq"): begin,
            "batch": messages_max,
            "max_bytes": bytes_max,
            "next_by_subj": subject,
        }
        return await self._direct(stream, request)

    async def last_messages(self, stream: str, subjects: Sequence[str]) -> list[Message]:
        """The last message of each subject that has one, as one replica sees them at one moment (1,000 at most).

        Wildcards are taken.
        """
        return (await self._direct(stream, {"multi_last": list(subjects), "batch": LAST_MAX}))[0]

    async def _direct(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Message], int]:
        """A batched direct get (ADR-31): messages until the server's end of batch, and how many it left."""
        client = self._client
        inbox = client.new_inbox()
        messages: list[Message] = []
        try:
            subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
            try:
                await client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), reply=inbox)
                while True:
                    reply = await subscription.next_msg(timeout=REQUEST_TIMEOUT_S)
                    headers = dict(reply.headers or {})
                    status = headers.get("Status")
                    if status in {"204", "404"}:
                        return messages, int(headers.get("Nats-Num-Pending", 0))
                    if status == NO_RESPONDERS:
                        raise Missing(stream)
                    if status is not None:
                        raise Unavailable(
                            Outage.QUEUE_AWAY, f"the queue cannot read: {status} {headers.get('Description', '')}"
                        )
                    messages.append(
                        Message(
                            sequence=int(headers["Nats-Sequence"]),
                            subject=headers["Nats-Subject"],
                            time=headers["Nats-Time-Stamp"],
                            headers={name: value for name, value in headers.items() if name not in _ANSWER_HEADERS},
                            payload=reply.data,
                        )
                    )
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unavailable(
                Outage.QUEUE_AWAY, f"the queue does not answer: {error or type(error).__name__}"
            ) from error


def replaced_error(stream: str) -> Gone:
    return Gone(f"the stream {stream} was replaced by another: start anew")


def _raise_error(answer: Mapping[str, Any]) -> None:
    error = answer.get("error")
    if error:
        raise ApiError(error.get("err_code", 0), error.get("code", 0), error.get("description", ""))


def _ack(reply: Msg) -> int:
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    _raise_error(answer)
    sequence: int = answer["seq"]
    return sequence


def _headers(block: bytes) -> dict[str, str]:
    """A stored header block: `NATS/1.0`, then `name: value` lines."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


async def _log_error(error: Exception) -> None:
    log.warning("queue connection: %s", error or type(error).__name__)
