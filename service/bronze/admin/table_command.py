"""The command line of `bronze table compact`. It needs the catalog and the storage of the tables; not the queue."""

import argparse
from functools import partial

from bronze.admin.confirmation import add_yes

TARGET_BYTES = 128 * 2**20


def arguments(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command line of `bronze table compact`."""
    parser = actions.add_parser(
        "compact",
        help="replace the small files of tables by files of a target size",
        description="Replace the small files of tables by files of a target size that have the same rows, sorted. "
        "Readers see the rows of a table as before at each moment, and `bronze table` can go on meanwhile. The old "
        "files stay in the storage. If the command is interrupted, the tables are as before: run it again.",
        epilog="Exit codes: 0 if all tables are compacted, 1 if one is not (standard error says why), 2 if an argument "
        "or a setting cannot work, 3 if the catalog or the storage of the tables does not answer, 130 if it was "
        "interrupted (Ctrl-C).",
    )
    parser.add_argument(
        "--source", action="append", metavar="NAME", help="only the table of this source; may be repeated"
    )
    parser.add_argument(
        "--older-than",
        type=partial(_whole, minimum=0),
        default=1,
        metavar="HOURS",
        help="leave files with rows of so many hours, of which the open one is the first (default: 1, so that the rows "
        "of closed hours are compacted)",
    )
    parser.add_argument(
        "--target-size",
        type=partial(_whole, minimum=1),
        default=TARGET_BYTES,
        metavar="BYTES",
        help="size of the new files (default: 128 MiB). The rows of a file have to fit in memory",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be replaced; change nothing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per table")
    add_yes(parser)


def _whole(text: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} on")
    return int(text)
