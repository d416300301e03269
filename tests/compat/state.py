"""Reads everything in the queue and the bucket as JSON, which can be recorded, and writes it back."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import nats
from local.programs import LOOPBACK

T = TypeVar("T")

#: Keys that a consumer creates and deletes at its start.
PROBES = ".bronze/"
NO_MESSAGE = 10037

Call = Callable[..., Awaitable[dict[str, Any]]]


def as_text(content: bytes) -> dict[str, str]:
    """Bytes as a JSON value: text if they are valid text."""
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def as_bytes(content: Mapping[str, str]) -> bytes:
    return base64.b64decode(content["base64"]) if "base64" in content else content["text"].encode()


def on_queue(port: int, work: Callable[[Call], Awaitable[T]]) -> T:
    """Runs calls of JetStream's API, such as `call("STREAM.INFO.name")`, and returns the result."""

    async def connected() -> T:
        client = await nats.connect(f"nats://{LOOPBACK}:{port}")

        async def call(name: str, **payload: object) -> dict[str, Any]:
            asked = json.dumps(payload).encode() if payload else b""
            answer: dict[str, Any] = json.loads((await client.request(f"$JS.API.{name}", asked, timeout=10)).data)
            return answer

        try:
            return await work(call)
        finally:
            await client.close()

    return asyncio.run(connected())


def publish(port: int, subject: str, payload: bytes, headers: Mapping[str, str]) -> int:
    """Store one message, and return its sequence."""

    async def connected() -> int:
        client = await nats.connect(f"nats://{LOOPBACK}:{port}")
        try:
            answer = json.loads((await client.request(subject, payload, timeout=10, headers=dict(headers))).data)
            return int(answer["seq"])
        finally:
            await client.close()

    return asyncio.run(connected())


def read_queue(port: int) -> list[dict[str, Any]]:
    """Each stream: its configuration and its messages with their headers."""

    async def read(call: Call) -> list[dict[str, Any]]:
        found = sorted((await call("STREAM.LIST"))["streams"], key=lambda one: str(one["config"]["name"]))
        return [{"config": one["config"], "messages": await messages(call, one)} for one in found]

    async def messages(call: Call, stream: Mapping[str, Any]) -> list[dict[str, Any]]:
        state = stream["state"]
        asked = [
            await call(f"STREAM.MSG.GET.{stream['config']['name']}", seq=sequence)
            for sequence in range(max(1, state["first_seq"]), state["last_seq"] + 1)
        ]
        return [_message(answer["message"]) for answer in asked if "message" in answer]

    return on_queue(port, read)


def _message(stored: Mapping[str, Any]) -> dict[str, Any]:
    lines = base64.b64decode(stored.get("hdrs", "")).decode().split("\r\n")[1:]
    return {
        "sequence": stored["seq"],
        "subject": stored["subject"],
        "time": stored["time"],
        "headers": [[name, value.strip()] for name, _, value in (line.partition(":") for line in lines) if name],
        "payload": as_text(base64.b64decode(stored.get("data", ""))),
    }


def lanes(port: int) -> dict[str, tuple[int, int, int]]:
    """By stream name: the first and last sequence of each lane's stream, and the end of its chain in the catalog."""

    async def read(call: Call) -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        (catalog,) = (await call("STREAM.NAMES", subject="catalog.>"))["streams"]
        for stream in (await call("STREAM.LIST", subject="bronze.>"))["streams"]:
            name = stream["config"]["name"]
            _, source, lane, epoch = name.split("_")
            last = await call(f"STREAM.MSG.GET.{catalog}", last_by_subj=f"catalog.{source.lower()}.{lane}.{epoch}")
            entry = json.loads(base64.b64decode(last["message"]["data"])) if "message" in last else {"last": 0}
            found[name] = stream["state"]["first_seq"], stream["state"]["last_seq"], entry["last"]
        return found

    return on_queue(port, read)


def drained(port: int) -> bool:
    """Whether each lane is stored to its end."""
    return all(last == stored for _, last, stored in lanes(port).values())


def read_bucket(s3: Any, bucket: str) -> dict[str, dict[str, Any]]:
    """Each object: its bytes, its content type and its user metadata, by its key."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key: _object(s3.get_object(Bucket=bucket, Key=key)) for key in keys if not key.startswith(PROBES)}


def _object(answer: Mapping[str, Any]) -> dict[str, Any]:
    metadata = dict(sorted(answer["Metadata"].items()))
    return {"content_type": answer["ContentType"], "metadata": metadata, **as_text(answer["Body"].read())}


def write_bucket(s3: Any, bucket: str, objects: Mapping[str, Mapping[str, Any]]) -> None:
    """Make a bucket contain exactly these objects."""
    if bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", ()):
            s3.delete_object(Bucket=bucket, Key=item["Key"])
    for key, one in objects.items():
        s3.put_object(
            Bucket=bucket, Key=key, Body=as_bytes(one), ContentType=one["content_type"], Metadata=one["metadata"]
        )
