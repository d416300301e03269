"""`bronze keys create | list | rotate | limit | revoke`. It needs the queue; not the API."""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

from bronze.admin import keys, time_argument
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation, add_yes
from bronze.admin.keys import NewKey
from bronze.errors import Unavailable
from bronze.plurals import counted
from bronze.protocol.principals import NAME_BYTES_MAX, ApiKey, Principal, Principals, Rates, is_name, is_scope
from bronze.servers.key_value import KeyChanged
from bronze.servers.principal_store import PrincipalStore

EXPIRES_DAYS = 365
OVERLAP_HOURS = 24
NEVER = "never"
#: One request per day; more than any machine can do.
RATE_MIN, RATE_MAX = 1e-5, 1e12

_T = TypeVar("_T")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze keys`."""
    parser.description = (
        "Create, list, rotate and revoke API keys, and limit their principals. A key belongs to a principal and allows "
        "what its scopes name. It is printed once; the queue stores only its hash. Every API (with BRONZE_AUTH=keys) "
        "follows a change within seconds. A principal has at most two keys at a time, so that one can replace the "
        "other without a pause."
    )
    parser.epilog = (
        "Exit codes: 1 if the command is not possible or not confirmed (standard error says why; nothing was changed), "
        "2 if an argument or a setting cannot work or nobody can be asked, 3 if the queue does not answer, 130 if it "
        "was interrupted (Ctrl-C)."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="create a key, and its principal if there is none of this name",
        description="Create a key, and its principal if there is none of this name. Standard output is the key alone.",
    )
    _principal(create)
    create.add_argument(
        "--scope",
        dest="scopes",
        action="append",
        required=True,
        type=_scope,
        metavar="SCOPE",
        help="what it allows: ingest:SOURCE or read:SOURCE (*: every source), trace (the API continues its traces), or "
        "admin (everything); may be repeated",
    )
    _expires(create)
    create.add_argument(
        "--inherit-open",
        action="store_true",
        help="the new principal takes over the submissions of the time without keys: a retry of one of them under the "
        "same Idempotency-Key is still the same submission. Possible for one principal",
    )
    _json(create, "print the key and its facts as JSON")
    add_yes(create)
    listed = actions.add_parser("list", help="list the principals and their keys, without the keys themselves")
    _json(listed, "print one line of JSON per key")
    rotate = actions.add_parser(
        "rotate",
        help="create a second key with the same scopes; the first one expires after an overlap",
        description="Create a second key with the same scopes; the first one expires after an overlap. Standard output "
        "is the new key alone.",
    )
    _principal(rotate)
    rotate.add_argument(
        "--overlap",
        type=_overlap,
        default=dt.timedelta(hours=OVERLAP_HOURS),
        metavar="PERIOD",
        help=f"how long the first key can still be used (30s, 90m, 2h, 7d; default {OVERLAP_HOURS}h)",
    )
    _expires(rotate)
    _json(rotate, "print the new key and its facts as JSON")
    add_yes(rotate)
    limit = actions.add_parser(
        "limit",
        help="set how fast a principal may send",
        description="Set how fast a principal may send, with all its keys, to each API. A rate that is not "
        "given is that of the API's settings BRONZE_REQUESTS_PER_S_MAX and BRONZE_BYTES_PER_S_MAX.",
    )
    _principal(limit)
    limit.add_argument("--requests-per-s", type=_rate, metavar="RATE", help="requests per second")
    limit.add_argument("--bytes-per-s", type=_rate, metavar="RATE", help="bytes of bodies per second, as they are sent")
    _json(limit, "print the principal and its rates as JSON")
    add_yes(limit)
    revoke = actions.add_parser("revoke", help="end a key at once, or all keys of a principal")
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("key_id", nargs="?", metavar="KEY_ID", help="the id of a key, as `list` prints it")
    which.add_argument("--principal", metavar="NAME", help="all keys of this principal")
    _json(revoke, "print one line of JSON per key that was revoked")
    add_yes(revoke)


def _principal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("principal", type=_name, metavar="PRINCIPAL", help="the name of a person, a team or a program")


def _expires(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expires",
        type=_expiry,
        default=f"{EXPIRES_DAYS}d",
        metavar="TIME",
        help=f"when the key expires: a time (2027-11-27T10:00Z), a period from now on (90m, 2h, 90d), or {NEVER} "
        f"(default {EXPIRES_DAYS}d)",
    )


def _json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: 1 to {NAME_BYTES_MAX} letters, digits and ._:@/+=-; the first is no mark"
        )
    return text


def _scope(text: str) -> str:
    if not is_scope(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a scope: use ingest:SOURCE, read:SOURCE, ingest:*, read:*, trace, admin"
        )
    return text


def _expiry(text: str) -> dt.datetime | None:
    return None if text == NEVER else time_argument.until(text)


def _overlap(text: str) -> dt.timedelta:
    return time_argument.until(text) - dt.datetime.now(dt.UTC)


def _rate(text: str) -> float:
    rate = float(text)
    if not RATE_MIN <= rate <= RATE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: use {RATE_MIN:g} to {RATE_MAX:g}")
    return rate


async def run(args: argparse.Namespace, store: PrincipalStore, confirmation: Confirmation) -> int:
    """Run the command. The exit code is 1 if it is not possible. Raises `Unavailable`."""
    try:
        if args.action == "list":
            confirmation.show_targets()
        else:
            await confirmation.ask(_question(args))
        await store.open()
        match args.action:
            case "create":
                await _create(args, store)
            case "list":
                await _list(args, store)
            case "rotate":
                await _rotate(args, store)
            case "limit":
                await _limit(args, store)
            case _:
                await _revoke(args, store)
    except CommandError as error:
        print(f"bronze keys: {error}", file=sys.stderr)
        return 1
    return 0


def _question(args: argparse.Namespace) -> str:
    match args.action:
        case "create":
            return f"Create a key of {args.principal} ({' '.join(args.scopes)})?"
        case "rotate":
            return f"Create another key of {args.principal}?"
        case "limit":
            return f"Limit {args.principal} to {_rates_text(_rates(args))}?"
        case _:
            return f"Revoke {f'the key {args.key_id}' if args.key_id else f'all keys of {args.principal}'}?"


async def _create(args: argparse.Namespace, store: PrincipalStore) -> None:
    def change(principals: Principals, now: dt.datetime) -> tuple[NewKey, Principals]:
        new = keys.create(
            principals, args.principal, args.scopes, expires_at=args.expires, inherit_open=args.inherit_open, now=now
        )
        return new, new.principals

    _print_new(await _change(store, change), as_json=args.json)


async def _rotate(args: argparse.Namespace, store: PrincipalStore) -> None:
    def change(principals: Principals, now: dt.datetime) -> tuple[tuple[NewKey, ApiKey], Principals]:
        new, old = keys.rotate(principals, args.principal, overlap=args.overlap, expires_at=args.expires, now=now)
        return (new, old), new.principals

    new, old = await _change(store, change)
    _print_new(new, as_json=args.json)
    print(f"The key {old.id} can be used until {old.expires_at}.", file=sys.stderr)


async def _limit(args: argparse.Namespace, store: PrincipalStore) -> None:
    rates = _rates(args)
    principal = await _change(store, lambda principals, _: keys.limit(principals, args.principal, rates))
    print(
        json.dumps({"principal": principal.name, **_rates_facts(principal)})
        if args.json
        else f"{principal.name} is limited to {_rates_text(principal.rates)}."
    )


def _rates(args: argparse.Namespace) -> Rates:
    return Rates(args.requests_per_s, args.bytes_per_s)


def _rates_text(rates: Rates) -> str:
    requests, sent = rates.requests_per_s, rates.bytes_per_s
    return ", ".join(
        [
            "the requests per second of the settings" if requests is None else f"{requests:,.6g} requests per second",
            "the bytes per second of the settings" if sent is None else f"{sent:,.6g} bytes per second",
        ]
    )


async def _revoke(args: argparse.Namespace, store: PrincipalStore) -> None:
    def change(principals: Principals, now: dt.datetime) -> tuple[list[tuple[Principal, ApiKey]], Principals]:
        return keys.revoke(principals, key_id=args.key_id, name=args.principal, now=now)

    revoked = await _change(store, change)
    now = dt.datetime.now(dt.UTC)
    for principal, key in revoked:
        print(
            json.dumps(_facts(principal, key, now))
            if args.json
            else f"The key {key.id} of {principal.name} is revoked."
        )
    if not revoked and not args.json:
        print("No key was alive; nothing was changed.")


async def _list(args: argparse.Namespace, store: PrincipalStore) -> None:
    principals, _ = await store.read()
    now = dt.datetime.now(dt.UTC)
    listed = [(principal, key) for principal in principals.principals for key in principal.keys]
    if args.json:
        for principal, key in listed:
            print(json.dumps(_facts(principal, key, now)))
        return
    console = Console(highlight=False)
    for principal, key in listed:
        inherits = "" if principal.namespace else ", inherits the submissions of the time without keys"
        limited = "" if principal.rates == Rates() else f", limited to {_rates_text(principal.rates)}"
        console.print(f"[bold]{principal.name}[/]{inherits}{limited}", soft_wrap=True)
        console.print(f"  key {key.id}, {_state(key, now)}: {' '.join(key.scopes)}", soft_wrap=True)
        console.print(f"  created {key.created_at}, {_expiry_text(key)}", soft_wrap=True)
    console.print(f"{counted(len(listed), 'key')} of {counted(len(principals.principals), 'principal')}.")


async def _change(store: PrincipalStore, change: Callable[[Principals, dt.datetime], tuple[_T, Principals]]) -> _T:
    """Change the stored principals; again from the start if another command changed them meanwhile."""
    while True:
        principals, revision = await store.read()
        result, changed = change(principals, dt.datetime.now(dt.UTC))
        if changed == principals:
            return result
        try:
            await store.write(changed, revision)
        except KeyChanged:
            continue
        except Unavailable as error:
            raise Unavailable(
                error.code, f"{error.detail}. It is not known whether the change was made: `bronze keys list` shows it"
            ) from error
        return result


def _print_new(new: NewKey, *, as_json: bool) -> None:
    """Print the key to standard output; the facts about it to standard error, unless they are JSON too."""
    if as_json:
        print(json.dumps(_facts(new.principal, new.key, dt.datetime.now(dt.UTC)) | {"key": new.text}))
        return
    print(
        f"The key {new.key.id} of {new.principal.name} ({' '.join(new.key.scopes)}) {_expiry_text(new.key)}. It is not "
        "shown again:",
        file=sys.stderr,
    )
    print(new.text)


def _expiry_text(key: ApiKey) -> str:
    return f"expires {key.expires_at}" if key.expires_at else "does not expire"


def _state(key: ApiKey, now: dt.datetime) -> str:
    return "revoked" if key.revoked_at else "expired" if key.expired(now) else "alive"


def _facts(principal: Principal, key: ApiKey, now: dt.datetime) -> dict[str, object]:
    return {
        "principal": principal.name,
        "inherits_open": not principal.namespace,
        **_rates_facts(principal),
        "key_id": key.id,
        "state": _state(key, now),
        "scopes": key.scopes,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _rates_facts(principal: Principal) -> dict[str, float | None]:
    return {"requests_per_s": principal.rates.requests_per_s, "bytes_per_s": principal.rates.bytes_per_s}
