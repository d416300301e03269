"""API keys: what is stored of them, what they allow, and how they are created, rotated and revoked."""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence

import pytest

from bronze.admin import keys
from bronze.admin.command_error import CommandError
from bronze.admin.keys import ENDED_KEYS_MAX, NewKey
from bronze.protocol.principals import (
    NAME_BYTES_MAX,
    OPEN,
    Caller,
    Principals,
    is_name,
    is_scope,
    new_key,
    parse_key,
)

NOW = dt.datetime(2026, 11, 29, 10, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
NONE = Principals()


def create(
    principals: Principals = NONE,
    name: str = "fleet",
    scopes: Sequence[str] = ("ingest:*",),
    *,
    expires_at: dt.datetime | None = None,
    inherit_open: bool = False,
) -> NewKey:
    return keys.create(principals, name, scopes, expires_at=expires_at, inherit_open=inherit_open, now=NOW)


def test_only_the_hash_of_the_secret_is_stored() -> None:
    """256 random bits, of which the stored document has the SHA-256 alone."""
    new = create()
    parsed = parse_key(new.text)
    assert parsed is not None
    key_id, secret = parsed
    assert key_id == new.key.id
    assert new.key.matches(secret)
    assert not new.key.matches(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    document = new.principals.encode().decode()
    assert secret not in document
    assert json.loads(document)["principals"][0]["keys"][0]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert len({new_key([], "", None)[0] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text", ["", "bronze_", "bronze_0123456789ab_short", "Bearer x", "bronze_0123456789ab_" + "é" * 43, "a" * 10_000]
)
def test_other_texts_are_no_keys(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("fleet", True),
        ("team-a@example.com", True),
        ("a" * NAME_BYTES_MAX, True),
        ("a" * (NAME_BYTES_MAX + 1), False),
        ("", False),
        ("-x", False),
        ("two words", False),
        ("é", False),
        ("\x1b[31m", False),
        ("a\n", False),
    ],
)
def test_names_are_plain_and_short(name: str, *, valid: bool) -> None:
    assert is_name(name) == valid


@pytest.mark.parametrize("scope", ["admin", "trace", "ingest:*", "read:*", "ingest:vehicles", "read:own_2"])
def test_scopes(scope: str) -> None:
    assert is_scope(scope)


@pytest.mark.parametrize(
    "scope", ["", "*", "ingest", "ingest:", "write:vehicles", "ingest:Vehicles", "admin:*", "read:a b"]
)
def test_other_texts_are_no_scopes(scope: str) -> None:
    assert not is_scope(scope)


def caller(*scopes: str) -> Caller:
    return Caller("p", "p", "0", frozenset(scopes))


def test_a_scope_allows_what_it_names_and_no_more() -> None:
    one = caller("ingest:vehicles", "read:status")
    assert (one.may_ingest("vehicles"), one.may_ingest("status"), one.may_read("status"), one.may_read("vehicles")) == (
        True,
        False,
        True,
        False,
    )
    assert not one.may_read_every
    assert not one.admin
    every = caller("read:*")
    assert every.may_read("anything")
    assert every.may_read_every
    assert not every.may_ingest("anything")
    for admin in (caller("admin"), OPEN):
        assert admin.admin
        assert admin.may_ingest("x")
        assert admin.may_read_every
    nobody = caller()
    allowed = [nobody.may_ingest("x"), nobody.may_read("x"), nobody.may_read_every, nobody.admin]
    assert not any(allowed)


def test_a_principal_has_at_most_two_keys_at_a_time() -> None:
    second = create(create().principals)
    with pytest.raises(CommandError, match="has 2 keys that can be used"):
        create(second.principals)
    _, revoked = keys.revoke(second.principals, key_id=second.key.id, name=None, now=NOW)
    third = create(revoked)
    (fleet,) = third.principals.principals
    assert len(fleet.alive(NOW)) == 2
    assert len(fleet.keys) == 3


def test_an_expired_key_cannot_be_used() -> None:
    new = create(expires_at=NOW + DAY)
    assert new.key.alive(NOW + DAY - dt.timedelta(seconds=1))
    assert not new.key.alive(NOW + DAY)


def test_rotation_keeps_the_scopes_and_ends_the_first_key_later() -> None:
    first = create(scopes=["ingest:vehicles"])
    new, old = keys.rotate(first.principals, "fleet", overlap=DAY, expires_at=None, now=NOW)
    assert new.key.scopes == ["ingest:vehicles"]
    assert old.id == first.key.id
    (fleet,) = new.principals.principals
    assert fleet.alive(NOW) == [old, new.key]
    assert fleet.alive(NOW + DAY) == [new.key]
    with pytest.raises(CommandError, match="two keys"):
        keys.rotate(new.principals, "fleet", overlap=DAY, expires_at=None, now=NOW)


def test_rotation_never_extends_a_key() -> None:
    first = create(expires_at=NOW + DAY)
    _, old = keys.rotate(first.principals, "fleet", overlap=2 * DAY, expires_at=None, now=NOW)
    assert old.expires_at == first.key.expires_at


def test_all_keys_of_a_principal_can_be_revoked() -> None:
    second = create(create().principals)
    other = create(second.principals, "other")
    revoked, after = keys.revoke(other.principals, key_id=None, name="fleet", now=NOW)
    assert len(revoked) == 2
    assert {one.name: len(one.alive(NOW)) for one in after.principals} == {"fleet": 0, "other": 1}
    again, unchanged = keys.revoke(after, key_id=None, name="fleet", now=NOW)
    assert (again, unchanged) == ([], after)


def test_one_principal_inherits_the_submissions_of_the_time_without_keys() -> None:
    """Its namespace is empty and stays so; that of the others is their name."""
    inherits = create(inherit_open=True)
    assert inherits.principal.namespace == ""
    assert create(inherits.principals).principal.namespace == ""
    assert create(inherits.principals, "other").principal.namespace == "other"
    with pytest.raises(CommandError, match="fleet has the submissions"):
        create(inherits.principals, "other", inherit_open=True)
    with pytest.raises(CommandError, match="only when a principal is created"):
        create(create().principals, inherit_open=True)
    _, revoked = keys.revoke(inherits.principals, key_id=None, name="fleet", now=NOW)
    with pytest.raises(CommandError, match="fleet has the submissions"):
        create(revoked, "other", inherit_open=True)


def test_unknown_names_and_ids_are_errors() -> None:
    for change in (
        lambda: keys.revoke(NONE, key_id="0" * 12, name=None, now=NOW),
        lambda: keys.revoke(NONE, key_id=None, name="nobody", now=NOW),
        lambda: keys.rotate(NONE, "nobody", overlap=DAY, expires_at=None, now=NOW),
    ):
        with pytest.raises(CommandError, match="bronze keys list"):
            change()


def test_ended_keys_do_not_accumulate() -> None:
    principals = NONE
    for _ in range(ENDED_KEYS_MAX + 5):
        new = create(principals)
        _, principals = keys.revoke(new.principals, key_id=new.key.id, name=None, now=NOW)
    (fleet,) = create(principals).principals.principals
    assert len(fleet.keys) == ENDED_KEYS_MAX + 1


def test_the_document_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "DOCUMENT_BYTES_MAX", 1_000)
    principals = create(create(create().principals, "b").principals, "c").principals
    with pytest.raises(CommandError, match="no space"):
        create(create(principals, "d").principals, "e")


def test_a_document_of_a_newer_version_can_be_read() -> None:
    newer = b'{"principals":[{"name":"a","namespace":"a","quota":1,"keys":[]}],"version":2}'
    assert Principals.decode(newer).principals[0].name == "a"
