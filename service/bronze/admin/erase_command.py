"""`bronze erase`. It needs the queue and the bucket, and the tables if there are any; not the API."""

import argparse
import getpass
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bronze.admin.command_error import CommandError, run_again_if_replaced
from bronze.admin.confirmation import Confirmation, add_yes, unfinished_if_interrupted
from bronze.admin.erasure_run import Preview, Rest, Statement, Stores, check, erase, preview, was_rebuilding
from bronze.admin.progress import Progress
from bronze.client.condition import values
from bronze.errors import Misconfigured
from bronze.objects.erasures import read_proof
from bronze.objects.selection import Chosen
from bronze.plurals import counted
from bronze.printable import printable
from bronze.protocol import quarantine
from bronze.protocol.erasure import LaneRest, Proof, Selection

#: How long the command waits for the consumers, by default: longer than a flush age and a restart.
WAIT_S = 600.0

_CODES = (
    "2 if an argument or a setting cannot work, 3 if the queue, the bucket or the tables do not answer, messages were "
    "not stored in time or another command came between, 130 if it was interrupted (Ctrl-C)."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze erase`."""
    parser.description = (
        "Erase a person's records from objects, quarantine, removal records, tables and catalog: all records of a "
        "classification_id, or those of a source that meet a condition. What the queue has at the start is stored "
        "first. Objects are rewritten in place: all other rows stay. Then the catalog is rebuilt, for which roles "
        "restart. Last a proof is written, which does not have the id. Records that are accepted later are new, and "
        "stay. If the command is interrupted, run it again with the same selection: it finishes what is left."
    )
    parser.epilog = (
        f"Exit codes: 0 if everything is done, 1 if somebody has to act first (confirm, restore an object), {_CODES}"
    )
    _add_selection(parser)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the proof; without the id")
    parser.add_argument("--by", metavar="NAME", help="who erases, for the proof (default: the user's name)")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help="how long to wait until consumers have stored what the queue has at the start (default: %(default)g)",
    )
    parser.add_argument("--proof", type=Path, metavar="FILE", help="also write the proof to a file")
    parser.add_argument("--json", action="store_true", help="print what was found, or the proof, as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print what would be erased; change nothing")
    add_yes(parser)
    parser.set_defaults(verified=None)
    actions = parser.add_subparsers(dest="command", metavar="COMMAND")
    verify = actions.add_parser(
        "verify",
        help="search again for what was erased",
        description="Search again, in all that an erasure has searched, for records that were accepted before it "
        "began. The proof does not have the id: give the same selection as to the erasure.",
        epilog=f"Exit codes: 0 if nothing is left, 1 if something is left or could not be searched, {_CODES}",
    )
    verify.add_argument("verified", metavar="PROOF", help="the id of an erasure, or a file with its proof")
    _add_selection(verify)
    verify.add_argument("--json", action="store_true", help="print what is left in each store as JSON")
    verify.set_defaults(dry_run=True)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classification-id", metavar="ID", help="all records of this classification, of all sources")
    parser.add_argument("--source", metavar="SOURCE", help="the records of this source that meet the condition")
    parser.add_argument(
        "--where", metavar="CONDITION", help="the condition, as of `bronze read`: \"vehicle_id = 'N14228'\""
    )


def selection(args: argparse.Namespace) -> Selection:
    """What the arguments select. Raises `Misconfigured`."""
    by_condition = args.source is not None or args.where is not None
    if (args.classification_id is not None) == by_condition or (args.source is None) != (args.where is None):
        raise Misconfigured("give either --classification-id, or --source and --where")
    if not (args.classification_id or args.where):
        raise Misconfigured("an empty selection erases nothing")
    return Selection(classification_id=args.classification_id, source=args.source, where=args.where)


async def run(
    args: argparse.Namespace, stores: Stores, selected: Selection, chosen: Chosen, confirmation: Confirmation
) -> int:
    """Run the command. Returns the exit code."""
    began_at = stores.now().isoformat(timespec="microseconds")
    with run_again_if_replaced():
        if args.command == "verify":
            return await _verify(args, stores, selected, chosen, confirmation)
        return await _erase(args, stores, selected, chosen, confirmation, began_at)


async def _erase(
    args: argparse.Namespace,
    stores: Stores,
    selected: Selection,
    chosen: Chosen,
    confirmation: Confirmation,
    began_at: str,
) -> int:
    statement = Statement(args.reason, args.by or _user(), began_at)
    for text in (args.reason, statement.erased_by):
        if chosen.mentions(text.encode()) or _has_value(text, selected.where or ""):
            raise Misconfigured(
                "--reason and --by are in the proof, which must not have the id, or a value of the condition: leave "
                "it out there"
            )
    if not (args.yes or args.dry_run) and await was_rebuilding(stores, selected):
        print(
            "An erasure of this selection was interrupted while the catalog was rebuilt, and will be continued.",
            file=sys.stderr,
        )
    elif not args.yes or args.dry_run:
        with Progress("objects searched") as progress:
            found = await preview(stores, selected, chosen, began_at, progress.step)
        if args.dry_run or not args.json:
            _print_preview(args, found)
        if args.dry_run:
            confirmation.show_targets()
            return 0
    await confirmation.ask(
        "Erase these records, and what waits in the queue of them? They cannot be restored. API, consumers and "
        "`bronze table` restart once, when the catalog is rebuilt."
    )
    with unfinished_if_interrupted("erase"), Progress("objects searched") as progress:
        proof = await erase(stores, selected, chosen, statement, args.wait, progress.step)
    encoded = msgspec.json.format(msgspec.json.encode(proof), indent=2)
    if args.proof:
        try:
            args.proof.write_bytes(encoded + b"\n")
        except OSError as error:
            raise CommandError(
                f"--proof {args.proof}: {error.strerror or error}. The erasure {proof.erasure.erasure_id} is done, and "
                "its proof is in the bucket"
            ) from error
    if args.json:
        print(encoded.decode())
    else:
        _print_proof(proof)
    return 0


def _has_value(text: str, condition: str) -> bool:
    """Whether a text has a value of a condition, as words of its own."""
    return any(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) for value in values(condition) if value)


def _print_preview(args: argparse.Namespace, found: Preview) -> None:
    findings = found.findings
    if args.json:
        print(
            json.dumps(
                {
                    "rows": findings.rows,
                    "objects": findings.objects,
                    "quarantine": sorted(set(findings.messages)),
                    "removal_records": findings.removals,
                    "not_searched": findings.all_not_searched,
                    "waiting_messages": found.waiting,
                    "tables": found.tables,
                    "continues": found.continued.erasure_id if found.continued else None,
                },
                indent=2,
            )
        )
        return
    print(
        f"{counted(findings.rows, 'row')} in {counted(len(findings.objects), 'object')}, of "
        f"{counted(findings.objects_searched, 'object')} in the catalog."
    )
    for key in findings.objects:
        print(f"  {printable(key)}")
    for label, keys in (("messages in quarantine", findings.messages), ("removal records", findings.removals)):
        for number, key in enumerate(sorted(set(keys))):
            print(f"  {printable(key)}" if number else f"{label}:\n  {printable(key)}")
    _print_not_searched(findings.all_not_searched)
    for table in found.tables or []:
        print(f"table {_table(table)}")
    if found.waiting:
        print(f"{counted(found.waiting, 'message')} of the queue are not stored yet, and were not searched.")
    if found.continued:
        print(f"The erasure {found.continued.erasure_id} of this selection was begun, and will be continued.")


def _table(found: Mapping[str, str | int | None]) -> str:
    rows, files, snapshots = (int(found[name] or 0) for name in ("rows", "files", "snapshots"))
    return (
        f"{found['source']}: {counted(rows, 'row')}, in {counted(files, 'file')}, and {counted(snapshots, 'snapshot')} "
        "that had them"
    )


def _print_not_searched(keys: Sequence[str]) -> None:
    messages = [key for key in keys if key.startswith(quarantine.FOLDER)]
    objects = [key for key in keys if key not in messages]
    for why, which in (
        ("objects could not be searched, since they are missing or damaged", objects),
        ("messages in quarantine have records that cannot be read, so they could not be searched", messages),
    ):
        for number, key in enumerate(which):
            print(f"  {printable(key)}" if number else f"{why}: look at them by hand\n  {printable(key)}")


def _print_proof(proof: Proof) -> None:
    print(
        f"Erased: {counted(proof.rows_erased, 'row')} in {counted(len(proof.objects), 'object')}, "
        f"{counted(len(proof.quarantine), 'message')} in quarantine, "
        f"{counted(len(proof.removal_records), 'removal record')}."
    )
    for table in proof.tables or []:
        print(f"table {_table(table)}; snapshot {table['snapshot_id']} is without them")
    if proof.catalog_rebuilt:
        print("The catalog was rebuilt.")
    if proof.old_versions_deleted:
        print(f"Deleted: {counted(proof.old_versions_deleted, 'old version')} of these keys.")
    if proof.old_versions_left:
        reason = next(iter(proof.old_versions_left.values()))
        keys = counted(len(proof.old_versions_left), "key")
        print(f"Old versions of {keys} may be left: {printable(reason)}")
    _print_not_searched(proof.not_searched)
    _print_lanes(proof.lanes)
    print("Not reached by this command:")
    for place, what in proof.not_reached.items():
        print(f"  {place}: {what}")
    print(f"The proof of the erasure {proof.erasure.erasure_id} is in the bucket.")


def _print_lanes(lanes: Sequence[LaneRest]) -> None:
    for each in lanes:
        print(
            f"lane {each.lane}: the queue keeps {counted(each.messages, 'stored message')} of it until the grace "
            "period is over (BRONZE_PURGE_GRACE_S)"
        )


async def _verify(
    args: argparse.Namespace, stores: Stores, selected: Selection, chosen: Chosen, confirmation: Confirmation
) -> int:
    proof = await _read_proof(stores, args.verified)
    if proof.erasure.kind != selected.kind or not proof.erasure.selection.is_of(selected):
        raise CommandError(f"the erasure {proof.erasure.erasure_id} is not of this selection: the hashes differ")
    with Progress("objects searched") as progress:
        rest = await check(stores, proof, selected, chosen, progress.step)
    confirmation.show_targets()
    if args.json:
        left = {"erasure_id": proof.erasure.erasure_id, "gone": rest.is_gone, "left": rest.by_store}
        print(json.dumps({**left, "not_searched": rest.findings.all_not_searched}))
    else:
        _print_rest(rest)
    return 0 if rest.is_gone else 1


def _print_rest(rest: Rest) -> None:
    in_question = {
        "rows": rest.findings.not_searched,
        "objects": rest.findings.not_searched,
        "messages in quarantine": rest.findings.messages_not_searched,
    }
    for store, number in rest.by_store.items():
        keys = in_question.get(store, ())
        unknown = f"{counted(len(keys), 'key')} could not be searched" if keys else ""
        state = "not searched" if number is None else f"{number:,} left" if number else "" if unknown else "gone"
        print(f"{store}: {', '.join(filter(None, (state, unknown)))}")
    for key in (*rest.findings.objects, *rest.findings.messages, *rest.findings.removals, *rest.old_versions):
        print(f"  {printable(key)}")
    _print_lanes(rest.lanes)
    _print_not_searched(rest.findings.all_not_searched)


async def _read_proof(stores: Stores, name: str) -> Proof:
    found = _proof_of_file(Path(name)) or await read_proof(stores.bucket, stores.prefix, name)
    if found is None:
        raise CommandError(f"{name}: there is no such file, and no such proof in the bucket")
    return found


def _proof_of_file(path: Path) -> Proof | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Proof) if path.is_file() else None
    except (OSError, msgspec.DecodeError) as error:
        raise CommandError(f"{path} is not a proof: {error}") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user often has no name
        raise CommandError("the user has no name here: say with --by who erases") from error
