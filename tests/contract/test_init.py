"""`bronze init` creates what is missing, once, and protects the streams of older versions."""

import asyncio

import pytest

from bronze.errors import Misconfigured
from bronze.servers.jetstream import JetStream
from bronze.settings import Settings
from bronze.wiring.commands import initialize
from bronze.wiring.servers import open_queue
from tests.contract.making import SOURCES


async def config(jetstream: JetStream, stream: str) -> dict[str, object]:
    config: dict[str, object] = (await jetstream.api(f"STREAM.INFO.{stream}"))["config"]
    return config


async def test_what_is_missing_is_created_once(
    settings: Settings, jetstream: JetStream, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await initialize(settings, yes=True) == 0
    streams = set(await jetstream.stream_names(">"))
    assert len(streams) == len(SOURCES) + 2
    told = capsys.readouterr().out
    assert all(f"Created the stream {stream}\n" in told for stream in streams)
    assert "Protected" not in told
    assert await initialize(settings, yes=True) == 0
    assert set(await jetstream.stream_names(">")) == streams
    assert "Created" not in capsys.readouterr().out
    _, _, lanes, catalog = await open_queue(jetstream, settings, SOURCES, asyncio.Event())
    assert {lane.stream for lane in lanes} | {catalog.stream, "KV_bronze"} == streams


async def test_streams_of_an_older_version_are_protected(
    settings: Settings, jetstream: JetStream, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay as they are otherwise. Before, a user of one key could have deleted all others by a header."""
    keys = {
        "name": "KV_bronze",
        "subjects": ["$KV.bronze.>"],
        "storage": "file",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
    }
    await jetstream.create_stream(keys)
    assert await initialize(settings, yes=True) == 0
    changed = await config(jetstream, "KV_bronze")
    assert (changed["allow_rollup_hdrs"], changed["deny_delete"], changed["deny_purge"]) == (False, True, True)
    assert changed["max_msgs_per_subject"] == 1
    assert "Protected the stream KV_bronze," in capsys.readouterr().out


async def test_lanes_of_another_number_are_not_changed(settings: Settings) -> None:
    assert await initialize(settings, yes=True) == 0
    with pytest.raises(Misconfigured, match="bronze lanes"):
        await initialize(settings.model_copy(update={"lanes": 2}), yes=True)
