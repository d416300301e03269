"""Runs `bronze table compact`, `expire` and `reprocess`: a task for one table after another."""

import argparse
import asyncio
import sys
from collections.abc import Collection

import msgspec

from bronze.admin.confirmation import Confirmation
from bronze.admin.progress import Progress
from bronze.errors import Halted, Misconfigured, NotPermitted, Unavailable
from bronze.maintenance.task import Task, TooManyConflicts


async def run(
    args: argparse.Namespace, task: Task, declared: Collection[str], question: str, confirmation: Confirmation
) -> int:
    """Run the command. The exit code says whether the task was done for all tables: a table for which it fails does not
    keep it from the others. Raises `NotPermitted`.
    """
    sources = list(dict.fromkeys(args.source or sorted(declared)))
    if unknown := set(sources) - set(declared):
        raise Misconfigured(f"--source: {', '.join(sorted(unknown))}: no such source is declared")
    if args.dry_run:
        confirmation.show_targets()
    else:
        await confirmation.ask(question)
    code = 0
    with Progress("files") as progress:
        for source in sources:
            try:
                if args.dry_run:
                    done = await asyncio.to_thread(task.plan, source)
                else:
                    done = await asyncio.to_thread(task.run, source, progress.step)
            except TooManyConflicts as error:
                print(f"bronze table: {error}. Run the command again", file=sys.stderr)
                code = max(code, 1)
            except NotPermitted:
                raise
            except (Halted, Unavailable) as error:
                print(f"bronze table: {source}: {error}", file=sys.stderr)
                code = max(code, 3 if isinstance(error, Unavailable) else 1)
            else:
                print(msgspec.json.encode(done.as_dict()).decode() if args.json else done)
    return code
