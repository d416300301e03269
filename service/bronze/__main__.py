"""The command line `bronze`, with a subcommand for each role and each operator's command."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial

try:
    import opentelemetry.propagate  # noqa: F401  it reads OTEL_PROPAGATORS when it is imported, by any module below
except ValueError as problem:
    print(f"bronze: OTEL_PROPAGATORS cannot work: {problem}", file=sys.stderr)
    sys.exit(2)

from bronze import __version__, process, settings
from bronze.admin import confirmation
from bronze.admin.command_error import CommandError
from bronze.errors import Halted, Misconfigured, NotPermitted, Unavailable
from bronze.settings import Settings
from bronze.telemetry.signals import Role

COMMANDS = {
    "serve": "run the API: it accepts submissions over HTTP and puts them into the queue",
    "consume": "run a consumer: it writes queued submissions to the bucket, as Parquet",
    "canary": "run the canary: it sends records and looks for them in bucket, telemetry and lineage",
    "table": "run the committer of tables: it appends the rows of new objects to an Iceberg table per source; or "
    "compact the tables, expire their snapshots, or reprocess days of them",
    "notify": "send an event per new object to a webhook, or OpenLineage events",
    "publish": "send the records of files to the API",
    "simulate": "send simulated records slowly until it is stopped",
    "lineage": "print the submissions, traces and objects of an id or a path; or follow new objects",
    "read": "write the rows of a source to a file, or show them",
    "quarantine": "list the records in quarantine, export them for correction, and replay them",
    "objects": "list the objects that are missing in the bucket, and acknowledge what cannot be restored",
    "retain": "delete the oldest objects, from the beginning of each chain",
    "erase": "erase a person's records from all that Bronze keeps, and prove it",
    "verify": "check that telemetry, catalog and bucket agree, for a range of time",
    "keys": "create, list, rotate and revoke the API keys of principals",
    "sources": "check what a declaration of sources would change, or make one of files or a data contract",
    "init": "create what the roles need in the queue, as a user who may",
    "lanes": "change the number of lanes per source",
    "queue": "move the queue to other servers",
    "catalog": "maintain the catalog: rebuild it",
}


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line. With a command, only that one's options are declared, which is all that it needs to run."""
    top = argparse.ArgumentParser(
        prog="bronze",
        description="Accepts raw data over HTTP and writes it through a durable queue to a bucket, as Parquet. Each "
        "write can be traced.",
        epilog="Settings are environment variables: BRONZE_* (docs/settings.md lists them), OTEL_* for telemetry, "
        "AWS_* for the bucket. The exit codes of publish, lineage, read, quarantine, objects, retain, erase, verify, "
        "keys, sources and table compact, expire and reprocess are in their own --help, those of the other commands in "
        "docs/operations.md.",
    )
    top.add_argument("--version", action="version", version=f"bronze {__version__}")
    commands = top.add_subparsers(dest="role", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        if chosen in {None, name}:
            declare_options(name, command)
    return top


def declare_options(name: str, command: argparse.ArgumentParser) -> None:
    """Declare the options of a command."""
    # modules are imported late, here and below: a role or a command does not load the libraries of others
    match name:
        case "serve" | "consume":
            declare_role(name, command)
        case "canary":
            command.description = (
                "Run the canary. Every BRONZE_CANARY_INTERVAL_S seconds it sends a submission to the built-in source "
                "canary, and checks that it is stored once and that the telemetry says so. It has no options: its "
                "settings are environment variables (docs/settings.md lists them)."
            )
        case "table":
            command.description = (
                "Run the committer of tables. It follows the catalog, and appends the rows of each new object to the "
                "Iceberg table of its source, once. Its settings are environment variables (docs/settings.md lists "
                "them), and pyiceberg's for the catalog of the tables (docs/tables.md)."
            )
            from bronze.admin import table_command

            table_command.arguments(command.add_subparsers(dest="command", metavar="COMMAND"))
        case "notify":
            command.description = (
                "Send an event per new object and per removal to a webhook, as signed CloudEvents, and the OpenLineage "
                "events of each new object, at least once. "
                "It follows the feed of the API. It has no options: its settings are environment variables "
                "(docs/events.md)."
            )
        case "publish":
            from bronze.publisher import publish_arguments

            publish_arguments(command)
        case "simulate":
            from bronze.publisher import simulate_arguments

            simulate_arguments(command)
        case "lineage":
            from bronze.admin import lineage_command

            lineage_command.arguments(command)
        case "read":
            from bronze.admin import read_command

            read_command.arguments(command)
        case "quarantine":
            from bronze.admin import quarantine_command

            quarantine_command.arguments(command)
        case "objects":
            from bronze.admin import objects_command

            objects_command.arguments(command)
        case "retain":
            from bronze.admin import retain_command

            retain_command.arguments(command)
        case "erase":
            from bronze.admin import erase_command

            erase_command.arguments(command)
        case "verify":
            from bronze.admin import verify_command

            verify_command.arguments(command)
        case "keys":
            from bronze.admin import keys_command

            keys_command.arguments(command)
        case "sources":
            from bronze.admin import sources_command
            from bronze.publisher import infer_arguments

            actions = sources_command.arguments(command)
            infer_arguments(actions.add_parser("infer", help="make a declaration that takes the records of files"))
        case "init":
            command.description = (
                "Create the streams that are missing in the queue (the lanes, the catalog and the keys), and register "
                "the declared sources. Run it before the roles if their users may not create streams, and again after "
                "a change of the declaration, of the version or of BRONZE_QUEUE_REPLICAS, to which it raises the "
                "replicas of streams that have fewer; it changes nothing else. Roles without users create what is "
                "missing themselves."
            )
            confirmation.add_yes(command)
        case "lanes":
            declare_lanes(command)
        case "queue":
            declare_queue(command)
        case "catalog":
            declare_catalog(command)


def declare_role(name: str, command: argparse.ArgumentParser) -> None:
    does = COMMANDS[name].partition(": it ")[2]
    command.description = (
        f"Run {'the API' if name == 'serve' else 'a consumer'}, which {does}. Its other settings are environment "
        "variables (docs/settings.md lists them)."
    )
    command.add_argument("--workers", metavar="N", type=int, help="number of processes (default: BRONZE_WORKERS, or 1)")
    # what the process that starts several workers passes on: the number of this one, its own process id, and file
    # descriptors
    command.add_argument("--worker", nargs="+", type=int, help=argparse.SUPPRESS)


def declare_lanes(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Change the number of lanes per source. First the old lanes are sealed: from then until an API runs with the "
        "new number, submissions get a 503. Then consumers with the old BRONZE_LANES store all messages of the old "
        "lanes. Then new lanes replace the old lanes. Afterwards set BRONZE_LANES to the new number and restart the "
        "API and the consumers. If the command is interrupted, run it again. The canary is refused, too: after more "
        "than three minutes, BronzeCanaryNotAccepted is sent."
    )
    command.add_argument("number", metavar="N", type=int, help="new number of lanes per source, at least 1")
    confirmation.add_yes(command)


def declare_queue(command: argparse.ArgumentParser) -> None:
    command.description = "Move the queue."
    actions = command.add_subparsers(dest="command", required=True, metavar="COMMAND")
    copy = actions.add_parser(
        "copy",
        help="copy the queue to other servers, such as from one to three",
        description="Copy the queue of BRONZE_NATS_URL to servers that have none, with everything that waits. Stop the "
        "consumers first. As soon as the command begins, the old queue accepts nothing: submissions get a 503 until "
        "APIs run that use the new servers. If the command is interrupted, run it again.",
    )
    copy.add_argument("--to", metavar="URLS", required=True, help="addresses of the new servers, separated by commas")
    confirmation.add_yes(copy)


def declare_catalog(command: argparse.ArgumentParser) -> None:
    command.description = "Maintain the catalog."
    actions = command.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rebuild = actions.add_parser(
        "rebuild",
        help="rebuild the catalog from the bucket",
        description="Rebuild the catalog from the objects in the bucket, if it is lost or too old. Roles that use the "
        "old catalog stop: restart them. If the command is interrupted, run it again.",
    )
    rebuild.add_argument("--dry-run", action="store_true", help="read and check the bucket only; change nothing")
    confirmation.add_yes(rebuild)


def main() -> None:
    """Run a role or a command.

    The exit code is 2 if the settings cannot work or nobody can be asked to confirm a change, 3 if a server that is
    needed does not answer, 1 if it must stop, and 130 if it was interrupted (Ctrl-C).
    """
    args = parser(next((word for word in sys.argv[1:] if word in COMMANDS), None)).parse_args()
    try:
        code = run(args, settings.load(workers=getattr(args, "workers", None)))
    except (Misconfigured, NotPermitted) as error:
        print(f"bronze {args.role}: {error}", file=sys.stderr)
        code = 2
    except Unavailable as error:
        print(f"bronze {args.role}: stopped trying: {error}", file=sys.stderr)
        code = 3
    except (Halted, CommandError) as error:
        print(f"bronze {args.role}: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # nobody reads standard output any more, as after `| head`
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)  # not sys.exit: a thread that still waits for the bucket would delay the exit until its time-out


def run(args: argparse.Namespace, chosen: Settings) -> int:
    confirmation.check_answerable(args)
    if args.role == "table" and args.command:
        logging.basicConfig(level=logging.WARNING, format="bronze table: %(message)s")
        from bronze.wiring.table import maintain_tables

        return asyncio.run(maintain_tables(args, chosen))
    if args.role in {"serve", "consume", "canary", "table", "notify"}:
        return run_role(args, chosen)
    if args.role == "lineage":
        return run_lineage(args, chosen)
    if args.role == "read":
        logging.basicConfig(level=logging.WARNING, format="bronze read: %(message)s")
        from bronze.admin import read_rows

        return read_rows.run(args)
    if args.role == "quarantine":
        from bronze.wiring import commands

        return asyncio.run(commands.run_quarantine(args, chosen))
    if args.role == "objects":
        from bronze.wiring import commands

        return asyncio.run(commands.run_objects(args, chosen))
    if args.role == "retain":
        from bronze.wiring import retention

        return asyncio.run(retention.run_retain(args, chosen))
    if args.role == "erase":
        from bronze.wiring import erasure

        return asyncio.run(erasure.run_erase(args, chosen))
    if args.role == "verify":
        return run_verify(args, chosen)
    if args.role == "sources":
        return run_sources(args, chosen)
    if args.role == "keys":
        from bronze.wiring import commands

        return asyncio.run(commands.run_keys(args, chosen))
    if args.role == "init":
        from bronze.wiring import commands

        return asyncio.run(commands.initialize(chosen, yes=args.yes))
    if args.role in {"lanes", "catalog", "queue"}:
        from bronze.wiring import commands

        if args.role == "queue":
            return asyncio.run(commands.copy_queue(chosen, args.to, yes=args.yes))
        if args.role == "lanes":
            return asyncio.run(commands.change_lanes(chosen, args.number, yes=args.yes))
        return asyncio.run(commands.rebuild_catalog(chosen, dry_run=args.dry_run, yes=args.yes))
    return run_publisher(args, chosen)


def run_publisher(args: argparse.Namespace, chosen: Settings) -> int:
    from bronze import publisher
    from bronze.telemetry import sdk

    # the standard output of `publish` is its summary
    telemetry = sdk.start(Role.PUBLISHER, chosen, log_stream=sys.stderr if args.role == "publish" else sys.stdout)
    try:
        if args.role == "publish":
            return publisher.run_publish(args, chosen, telemetry)
        return publisher.run_simulate(args, chosen, telemetry)
    finally:
        telemetry.shutdown()


def run_role(args: argparse.Namespace, chosen: Settings) -> int:
    import uvloop

    if args.role == "canary":
        from bronze.wiring.canary import run_canary

        return uvloop.run(run_canary(chosen))
    if args.role == "table":
        process.return_large_buffers()  # before Arrow is imported
        from bronze.wiring.table import run_table

        return uvloop.run(run_table(chosen))
    if args.role == "notify":
        from bronze.wiring.notify import run_notify

        return uvloop.run(run_notify(chosen))
    if args.worker:
        process.end_with(args.worker[1])
    elif chosen.workers > 1:
        from bronze.wiring.workers import supervise

        return asyncio.run(supervise(Role.API if args.role == "serve" else Role.CONSUMER, chosen))
    process.pause_collection()
    if args.role == "serve":
        from bronze.wiring.api import serve
        from bronze.wiring.workers import Worker

        return uvloop.run(serve(chosen, worker=Worker(args.worker[0], args.worker[2]) if args.worker else None))
    from bronze.wiring.consumer import run_consumer

    return uvloop.run(run_consumer(chosen))


def run_sources(args: argparse.Namespace, chosen: Settings) -> int:
    if args.action == "infer":
        from bronze.publisher import run_infer

        return run_infer(args)
    from bronze.admin import sources_command

    if args.action == "diff":
        return sources_command.diff(args)
    if args.action == "export":
        return sources_command.export_contract(args, chosen.sources)
    if args.action == "import":
        return sources_command.import_contract(args)
    from bronze.wiring import commands

    return asyncio.run(commands.check_sources(args, chosen))


def run_lineage(args: argparse.Namespace, chosen: Settings) -> int:
    from bronze.admin import lineage_command

    logging.basicConfig(level=logging.WARNING, format="bronze lineage: %(message)s")
    logging.getLogger("bronze.servers.jetstream").setLevel(
        logging.ERROR
    )  # follow itself reports once that the queue does not answer
    if not lineage_command.wants_follow(args):
        if not args.tables:
            return lineage_command.run_lookup(args, chosen)
        from bronze.wiring.table import find_snapshots

        return lineage_command.run_lookup(args, chosen, partial(find_snapshots, chosen))
    from bronze.wiring import commands

    return asyncio.run(commands.with_feed(chosen, partial(lineage_command.follow, args)))


def run_verify(args: argparse.Namespace, chosen: Settings) -> int:
    from bronze.telemetry import sdk

    telemetry = sdk.start(Role.VERIFY, chosen, log_stream=sys.stderr)
    try:
        from bronze.wiring import commands

        return asyncio.run(commands.verify(args, chosen, telemetry))
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
