"""The command `bronze`: one subcommand a role."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial

from bronze import __version__, publisher, settings
from bronze.admin import lineage_command
from bronze.admin.quarantine_command import arguments
from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bronze",
        description="Raw data from HTTP through a durable queue to Parquet in a bucket, every write traceable.",
        epilog="Settings are environment variables: BRONZE_* (service/bronze/settings.py lists them), OTEL_* for "
        "telemetry, AWS_* for the bucket.",
    )
    top.add_argument("--version", action="version", version=f"bronze {__version__}")
    roles = top.add_subparsers(dest="role", required=True, metavar="ROLE")
    roles.add_parser("serve", help="the API: takes submissions over HTTP into the queue")
    roles.add_parser("consume", help="the consumer: writes what is queued to the bucket, as Parquet")
    publisher.publish_arguments(roles.add_parser("publish", help="sends the records of files to the API"))
    publisher.simulate_arguments(roles.add_parser("simulate", help="drives a slow fleet until it is stopped"))
    lineage_command.arguments(
        roles.add_parser("lineage", help="finds the whole chain of an id or a path; follows new objects")
    )
    arguments(
        roles.add_parser(
            "quarantine", help="lists what was set aside, exports it for mending, and sends it again, once"
        )
    )
    lanes = roles.add_parser(
        "lanes", help="changes the number of lanes a source: the old ones are stored to their end first"
    )
    lanes.add_argument("number", metavar="N", type=int, help="lanes a source from then on; BRONZE_LANES has to follow")
    catalog = roles.add_parser("catalog", help="looks after the catalog")
    of_catalog = catalog.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rebuild = of_catalog.add_parser("rebuild", help="makes the catalog anew, from the bucket alone")
    rebuild.add_argument("--dry-run", action="store_true", help="read the bucket and say what there is; change nothing")
    return top


def main() -> None:
    """Run a role or a command.

    The exit code is 2 where its settings cannot work, 3 where what it needs is away, and 1 where it has to stop.
    """
    args = parser().parse_args()
    try:
        code = run(args, settings.load())
    except Misconfigured as error:
        print(f"bronze {args.role}: {error}", file=sys.stderr)
        code = 2
    except Unavailable as error:
        print(f"bronze {args.role}: gave up: {error}", file=sys.stderr)
        code = 3
    except Halted as error:
        print(f"bronze {args.role}: {error}", file=sys.stderr)
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is done: a thread that still waits for the bucket would keep the process for its timeout


def run(args: argparse.Namespace, chosen: Settings) -> int:
    if args.role in {"serve", "consume"}:
        import uvloop

        from bronze import wiring  # a publisher does without what it loads

        return uvloop.run(wiring.serve(chosen) if args.role == "serve" else wiring.consume_role(chosen))
    if args.role == "lineage":
        return run_lineage(args, chosen)
    if args.role == "quarantine":
        from bronze import wiring

        return asyncio.run(wiring.run_quarantine(args, chosen))
    if args.role in {"lanes", "catalog"}:
        from bronze import wiring

        try:
            if args.role == "lanes":
                return asyncio.run(wiring.change_lanes(chosen, args.number))
            return asyncio.run(wiring.rebuild_catalog(chosen, dry_run=args.dry_run))
        except KeyboardInterrupt:
            print(f"bronze {args.role}: interrupted; run it again to finish", file=sys.stderr)
            return 130
    # a publisher's standard output is its summary
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
    )  # follow says itself that the queue is away, once
    try:
        if not lineage_command.wants_follow(args):
            return lineage_command.run_ask(args, chosen)
        from bronze import wiring

        return asyncio.run(wiring.with_feed(chosen, partial(lineage_command.follow, args)))
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    main()
