"""Each command of an operator names the servers that it acts on, and changes nothing before it is confirmed."""

import argparse
import os
import pty
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest

from bronze.__main__ import parser
from bronze.admin.command_error import CommandError
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.settings import Settings
from bronze.wiring import commands
from bronze.wiring.retention import run_retain
from local.servers import S3Account


@pytest.fixture
def chosen(settings: Settings, s3_account: S3Account, s3_env: Mapping[str, str]) -> Settings:
    return settings.model_copy(update={"bucket": s3_account.bucket})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input; the fixture is its other end."""
    ours, its = pty.openpty()
    with os.fdopen(its) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        yield ours
    os.close(ours)


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(words)


Command = Callable[[Settings], Coroutine[Any, Any, int]]
COMMANDS: dict[str, Command] = {
    "init": lambda chosen: commands.initialize(chosen, yes=False),
    "lanes": lambda chosen: commands.change_lanes(chosen, 2, yes=False),
    "rebuild": lambda chosen: commands.rebuild_catalog(chosen, dry_run=False, yes=False),
    "keys": lambda chosen: commands.run_keys(parse("keys", "create", "a", "--scope", "admin"), chosen),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_change_that_is_declined_creates_nothing(
    name: str, chosen: Settings, jetstream: JetStream, terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(terminal, b"n\n")
    with suppress(CommandError):  # which the command line prints, with exit code 1
        assert await COMMANDS[name](chosen) == 1
    shown = capsys.readouterr().err
    assert f"Acts on the queue at {chosen.nats_url}, server {chosen.nats_server_name}\n" in shown
    assert "[y/N]" in shown
    assert await jetstream.stream_names(">") == []


async def test_a_change_that_is_confirmed_is_made(
    chosen: Settings, jetstream: JetStream, terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(terminal, b"yes\n")
    assert await COMMANDS["lanes"](chosen) == 0
    out, err = capsys.readouterr()
    assert "now has 2 lanes" in out
    assert f"lanes of the bucket {chosen.bucket}, prefix {chosen.prefix}\n" in err
    assert "[y/N]" in err
    assert await jetstream.stream_names("catalog.>") != []


async def test_the_bucket_is_named(
    chosen: Settings, jetstream: JetStream, s3_account: S3Account, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its address and the prefix, also by a dry run."""
    queue = f"Acts on the queue at {chosen.nats_url}, server {chosen.nats_server_name}\n"
    bucket = f"Acts on the bucket {chosen.bucket} at {s3_account.env['AWS_ENDPOINT_URL_S3']}, prefix {chosen.prefix}\n"
    assert await commands.rebuild_catalog(chosen, dry_run=True, yes=False) == 0
    assert queue + bucket in capsys.readouterr().err
    await NatsCatalog.open(jetstream, KeyValueStore(jetstream, 1), chosen)
    acknowledge = parse("objects", "acknowledge", "--all-missing", "--reason", "x", "--by", "y", "--dry-run")
    assert await commands.run_objects(acknowledge, chosen) == 0
    assert queue + bucket in capsys.readouterr().err
    assert await run_retain(parse("retain", "--days", "30", "--dry-run"), chosen) == 0
    assert queue + bucket in capsys.readouterr().err
