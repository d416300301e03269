"""The command lines of `bronze table compact`, `expire` and `reprocess`. They need the catalog and the storage of the
tables; not the queue.
"""

import argparse
from functools import partial

from bronze.admin.confirmation import add_yes
from bronze.admin.time_argument import DAYS_MAX, day, whole

TARGET_BYTES = 128 * 2**20
#: Far more than the memory of a machine has.
TARGET_BYTES_MAX = 2**40
EXPIRE_DAYS = 7
_EXIT_CODES = (
    "Exit codes: 0 if it was done for all tables, 1 if not for one (standard error says why, and the others are done), "
    "2 if an argument or a setting cannot work, 3 if the catalog or the storage of the tables does not answer, 130 if "
    "it was interrupted (Ctrl-C)."
)


def arguments(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command lines of all."""
    compact = actions.add_parser(
        "compact",
        help="replace the small files of tables by files of a target size",
        description="Replace the small files of tables by files of a target size that have the same rows, sorted. "
        "Readers see the rows of a table as before at each moment, and `bronze table` can go on meanwhile. The old "
        "files stay until `bronze table expire` deletes them. If the command is interrupted, the tables are as before: "
        "run it again.",
        epilog=_EXIT_CODES,
    )
    compact.add_argument(
        "--older-than",
        type=partial(whole, minimum=0, maximum=24 * DAYS_MAX),
        default=1,
        metavar="HOURS",
        help="leave files with rows of so many hours, of which the open one is the first (default: 1, so that the rows "
        "of closed hours are compacted)",
    )
    compact.add_argument(
        "--target-size",
        type=partial(whole, minimum=1, maximum=TARGET_BYTES_MAX),
        default=TARGET_BYTES,
        metavar="BYTES",
        help="size of the new files (default: 128 MiB)",
    )
    _add_common(compact)
    expire = actions.add_parser(
        "expire",
        help="remove old snapshots of tables, and delete the files that no snapshot has",
        description="Remove old snapshots of tables, and delete the files under the tables' locations that no snapshot "
        "has and that are at least three days old. Of the snapshots that stay, those from before the last 15 minutes "
        "become one per hour. The rows of a table stay as they are. If the command is interrupted, run it again.",
        epilog=_EXIT_CODES,
    )
    expire.add_argument(
        "--expire-days",
        type=partial(whole, minimum=1, maximum=DAYS_MAX),
        default=EXPIRE_DAYS,
        metavar="DAYS",
        help=f"remove snapshots that were last current so many days ago (default: {EXPIRE_DAYS})",
    )
    _add_common(expire)
    reprocess = actions.add_parser(
        "reprocess",
        help="fill the columns that were declared later, in the rows of a day",
        description="Fill the columns that were declared after rows were accepted, from what their records had: for "
        "the rows that were received on a day, in UTC, in one snapshot. A row that does not fit today's declaration "
        "stays as it is. `bronze table` can go on meanwhile. The objects in the bucket are not changed. If the command "
        "is interrupted, the tables are as before: run it again.",
        epilog=_EXIT_CODES,
    )
    reprocess.add_argument(
        "--day",
        type=day,
        action="append",
        required=True,
        metavar="YYYY-MM-DD",
        help="the day on which the rows were received; may be repeated: all of them are in one snapshot",
    )
    _add_common(reprocess)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", action="append", metavar="NAME", help="only the table of this source; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done; change nothing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per table")
    add_yes(parser)
