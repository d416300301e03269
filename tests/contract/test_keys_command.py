"""`bronze keys` on the real queue: what it prints, what it stores, and two commands at once."""

import argparse
import asyncio
import json
from typing import Any

import pytest

from bronze.__main__ import parser
from bronze.admin import keys_command
from bronze.admin.confirmation import Confirmation
from bronze.protocol.principals import parse_key
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.principal_store import PrincipalStore
from tests.contract.twins import on_both


@pytest.fixture
def store(jetstream: JetStream) -> PrincipalStore:
    return PrincipalStore(KeyValueStore(jetstream, 1))


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(["keys", *words])


async def run(store: PrincipalStore, *words: str) -> int:
    return await keys_command.run(parse(*words), store, Confirmation([], yes=True))


@on_both
async def test_a_key_is_printed_once_and_never_stored(
    store: PrincipalStore, jetstream: JetStream, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is the key alone, for a shell variable. The list and the queue have only its id and its hash."""
    assert await run(store, "create", "fleet", "--scope", "ingest:vehicles", "--expires", "90d") == 0
    out, err = capsys.readouterr()
    parsed = parse_key(out.rstrip("\n"))
    assert parsed is not None
    key_id, secret = parsed
    assert f"The key {key_id} of fleet (ingest:vehicles) expires" in err
    assert await run(store, "list") == 0
    assert await run(store, "list", "--json") == 0
    listed = capsys.readouterr().out
    assert key_id in listed
    assert secret not in listed + err
    message = await jetstream.get_last("KV_bronze", "$KV.bronze.principals")
    assert message is not None
    assert key_id.encode() in message.payload
    assert secret.encode() not in message.payload


async def test_a_principal_is_limited(store: PrincipalStore, capsys: pytest.CaptureFixture[str]) -> None:
    """With all its keys, until the limit is set again; a rate that is not given is that of the settings again."""
    assert await run(store, "create", "fleet", "--scope", "ingest:*") == 0
    assert await run(store, "limit", "fleet", "--requests-per-s", "2.5", "--bytes-per-s", "1e6") == 0
    assert "limited to 2.5 requests per second, 1e+06 bytes per second" in capsys.readouterr().out
    assert await run(store, "rotate", "fleet") == 0
    capsys.readouterr()
    assert await run(store, "limit", "fleet", "--requests-per-s", "3", "--json") == 0
    assert one_line(capsys) == {"principal": "fleet", "requests_per_s": 3.0, "bytes_per_s": None}
    assert await run(store, "list") == 0
    assert "fleet, limited to 3 requests per second, the bytes per second of the settings" in capsys.readouterr().out
    assert await run(store, "limit", "nobody") == 1
    for rate in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(SystemExit):
            parse("limit", "fleet", "--requests-per-s", rate)


async def test_the_life_of_a_principal(store: PrincipalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(store, "create", "fleet", "--scope", "ingest:*", "--scope", "read:status", "--json") == 0
    first = one_line(capsys)
    assert (first["principal"], first["state"], first["scopes"]) == ("fleet", "alive", ["ingest:*", "read:status"])
    assert await run(store, "rotate", "fleet", "--overlap", "1h", "--json") == 0
    second = one_line(capsys)
    assert second["scopes"] == first["scopes"]
    assert second["key"] != first["key"]
    assert await run(store, "rotate", "fleet") == 1
    assert "two keys" in capsys.readouterr().err
    assert await run(store, "revoke", str(first["key_id"]), "--json") == 0
    assert one_line(capsys)["state"] == "revoked"
    assert await run(store, "list", "--json") == 0
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["revoked", "alive"]
    assert await run(store, "revoke", "--principal", "fleet") == 0
    assert "is revoked" in capsys.readouterr().out
    assert await run(store, "revoke", "--principal", "fleet") == 0
    assert "nothing was changed" in capsys.readouterr().out


async def test_what_is_not_possible_is_exit_code_1(store: PrincipalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(store, "create", "fleet", "--scope", "admin", "--inherit-open") == 0
    for words in (
        ["create", "other", "--scope", "admin", "--inherit-open"],
        ["revoke", "0" * 12],
        ["rotate", "nobody"],
    ):
        assert await run(store, *words) == 1
        assert "bronze keys: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["create", "two words", "--scope", "admin"],
        ["create", "fleet", "--scope", "write:x"],
        ["create", "fleet"],
        ["create", "fleet", "--scope", "admin", "--expires", "yesterday"],
        ["create", "fleet", "--scope", "admin", "--expires", "2020-01-01"],
        ["revoke"],
        ["revoke", "0" * 12, "--principal", "fleet"],
        [],
    ],
    ids=" ".join,
)
def test_arguments_that_cannot_work_are_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2


@on_both
async def test_commands_at_the_same_time_lose_nothing(
    store: PrincipalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each change is made to what is stored at that moment."""
    await store.open()
    names = [f"p{number}" for number in range(5)]
    assert await asyncio.gather(*(run(store, "create", name, "--scope", "read:*") for name in names)) == [0] * 5
    principals, _ = await store.read()
    assert [principal.name for principal in principals.principals] == names


def one_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer
