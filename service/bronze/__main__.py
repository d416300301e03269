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

from bronze import __version__, publisher, settings
from bronze.admin import (
    confirmation,
    keys_command,
    lineage_command,
    objects_command,
    read_command,
    sources_command,
    verify_command,
)
from bronze.admin.command_error import CommandError
from bronze.admin.quarantine_command import arguments
from bronze.errors import Halted, Misconfigured, NotPermitted, Unavailable
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role

NO_OPTIONS = "It has no options: its settings are environment variables (docs/settings.md lists them)."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bronze",
        description="Accepts raw data over HTTP and writes it through a durable queue to a bucket, as Parquet. Each "
        "write can be traced.",
        epilog="Settings are environment variables: BRONZE_* (docs/settings.md lists them), OTEL_* for telemetry, "
        "AWS_* for the bucket. The exit codes of publish, lineage, read, quarantine, objects, verify, keys and sources "
        "are in their own --help, those of the other commands in docs/operations.md.",
    )
    top.add_argument("--version", action="version", version=f"bronze {__version__}")
    roles = top.add_subparsers(dest="role", required=True, metavar="COMMAND")
    roles.add_parser(
        "serve",
        help="run the API: it accepts submissions over HTTP and puts them into the queue",
        description=f"Run the API, which accepts submissions over HTTP and puts them into the queue. {NO_OPTIONS}",
    )
    roles.add_parser(
        "consume",
        help="run a consumer: it writes queued submissions to the bucket, as Parquet",
        description=f"Run a consumer, which writes queued submissions to the bucket, as Parquet. {NO_OPTIONS}",
    )
    roles.add_parser(
        "canary",
        help="run the canary: it sends records and looks for them in bucket, telemetry and lineage",
        description="Run the canary. Every BRONZE_CANARY_INTERVAL_S seconds it sends a submission to the built-in "
        f"source canary, and checks that it is stored once and that the telemetry says so. {NO_OPTIONS}",
    )
    publisher.publish_arguments(roles.add_parser("publish", help="send the records of files to the API"))
    publisher.simulate_arguments(roles.add_parser("simulate", help="send simulated records slowly until it is stopped"))
    lineage_command.arguments(
        roles.add_parser(
            "lineage", help="print the submissions, traces and objects of an id or a path; or follow new objects"
        )
    )
    read_command.arguments(roles.add_parser("read", help="write the rows of a source to a file, or show them"))
    arguments(
        roles.add_parser(
            "quarantine", help="list the records in quarantine, export them for correction, and replay them"
        )
    )
    objects_command.arguments(
        roles.add_parser(
            "objects", help="list the objects that are missing in the bucket, and acknowledge what cannot be restored"
        )
    )
    verify_command.arguments(
        roles.add_parser("verify", help="check that telemetry, catalog and bucket agree, for a range of time")
    )
    keys_command.arguments(roles.add_parser("keys", help="create, list, rotate and revoke the API keys of principals"))
    actions = sources_command.arguments(
        roles.add_parser("sources", help="check what a declaration of sources would change, or make one from files")
    )
    publisher.infer_arguments(actions.add_parser("infer", help="make a declaration that takes the records of files"))
    init = roles.add_parser(
        "init",
        help="create what the roles need in the queue, as a user who may",
        description="Create the streams that are missing in the queue (the lanes, the catalog and the keys), and "
        "register the declared sources. Run it before the roles if their users may not create streams, and again after "
        "a change of the declaration or of the version; it changes nothing else. Roles without users do this "
        "themselves.",
    )
    confirmation.add_yes(init)
    lanes = roles.add_parser(
        "lanes",
        help="change the number of lanes per source",
        description="Change the number of lanes per source. First the old lanes are sealed: from then until an API "
        "runs with the new number, submissions get a 503. Then consumers with the old BRONZE_LANES store all messages "
        "of the old lanes. Then new lanes replace the old lanes. Afterwards set BRONZE_LANES to the new number and "
        "restart the API and the consumers. If the command is interrupted, run it again. The canary is refused, too: "
        "after more than three minutes, BronzeCanaryNotAccepted is sent.",
    )
    lanes.add_argument("number", metavar="N", type=int, help="new number of lanes per source, at least 1")
    confirmation.add_yes(lanes)
    catalog = roles.add_parser("catalog", help="maintain the catalog: rebuild it", description="Maintain the catalog.")
    catalog_commands = catalog.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rebuild = catalog_commands.add_parser(
        "rebuild",
        help="rebuild the catalog from the bucket",
        description="Rebuild the catalog from the objects in the bucket, if it is lost or too old. Roles that use the "
        "old catalog stop: restart them. If the command is interrupted, run it again.",
    )
    rebuild.add_argument("--dry-run", action="store_true", help="read and check the bucket only; change nothing")
    confirmation.add_yes(rebuild)
    return top


def main() -> None:
    """Run a role or a command.

    The exit code is 2 if the settings cannot work or nobody can be asked to confirm a change, 3 if a server that is
    needed does not answer, 1 if it must stop, and 130 if it was interrupted (Ctrl-C).
    """
    args = parser().parse_args()
    try:
        code = run(args, settings.load())
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
    if args.role in {"serve", "consume", "canary"}:
        import uvloop

        # imported late, as below: a command or a role does not need the libraries that another one loads
        match args.role:
            case "serve":
                from bronze.wiring.api import serve

                return uvloop.run(serve(chosen))
            case "consume":
                from bronze.wiring.consumer import run_consumer

                return uvloop.run(run_consumer(chosen))
            case _:
                from bronze.wiring.canary import run_canary

                return uvloop.run(run_canary(chosen))
    if args.role == "lineage":
        return run_lineage(args, chosen)
    if args.role == "read":
        from bronze.admin import read_rows

        return read_rows.run(args)
    if args.role == "quarantine":
        from bronze.wiring import commands

        return asyncio.run(commands.run_quarantine(args, chosen))
    if args.role == "objects":
        from bronze.wiring import commands

        return asyncio.run(commands.run_objects(args, chosen))
    if args.role == "verify":
        return run_verify(args, chosen)
    if args.role == "sources":
        if args.action == "diff":
            return sources_command.diff(args)
        if args.action == "infer":
            return publisher.run_infer(args)
        from bronze.wiring import commands

        return asyncio.run(commands.check_sources(args, chosen))
    if args.role == "keys":
        from bronze.wiring import commands

        return asyncio.run(commands.run_keys(args, chosen))
    if args.role == "init":
        from bronze.wiring import commands

        return asyncio.run(commands.initialize(chosen, yes=args.yes))
    if args.role in {"lanes", "catalog"}:
        from bronze.wiring import commands

        if args.role == "lanes":
            return asyncio.run(commands.change_lanes(chosen, args.number, yes=args.yes))
        return asyncio.run(commands.rebuild_catalog(chosen, dry_run=args.dry_run, yes=args.yes))
    # the standard output of `publish` is its summary
    telemetry = sdk.start(Role.PUBLISHER, chosen, log_stream=sys.stderr if args.role == "publish" else sys.stdout)
    try:
        if args.role == "publish":
            return publisher.run_publish(args, chosen, telemetry)
        return publisher.run_simulate(args, chosen, telemetry)
    finally:
        telemetry.shutdown()


def run_lineage(args: argparse.Namespace, chosen: Settings) -> int:
    logging.basicConfig(level=logging.WARNING, format="bronze lineage: %(message)s")
    logging.getLogger("bronze.servers.jetstream").setLevel(
        logging.ERROR
    )  # follow itself reports once that the queue does not answer
    if not lineage_command.wants_follow(args):
        return lineage_command.run_lookup(args, chosen)
    from bronze.wiring import commands

    return asyncio.run(commands.with_feed(chosen, partial(lineage_command.follow, args)))


def run_verify(args: argparse.Namespace, chosen: Settings) -> int:
    telemetry = sdk.start(Role.VERIFY, chosen, log_stream=sys.stderr)
    try:
        from bronze.wiring import commands

        return asyncio.run(commands.verify(args, chosen, telemetry))
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
