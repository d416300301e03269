"""`bronze read`: its command line."""

import argparse
from pathlib import Path

from bronze.admin.time_argument import since as moment

FORMATS = ("parquet", "csv", "arrow", "table")
#: Rows of a table, unless --limit says otherwise.
TABLE_ROWS = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze read`."""
    parser.description = (
        "Write the rows of a source to a file or to standard output, or show them as a table. The API says which "
        "objects may have them; they are read from the bucket (BRONZE_BUCKET and the variables AWS_*)."
    )
    parser.epilog = (
        "Exit codes: 2 if the API refuses the request or a condition is not valid, 3 if the API or the bucket does not "
        "answer or an object is missing, 130 if it was interrupted (Ctrl-C)."
    )
    parser.add_argument("source", metavar="SOURCE", help="the source to read")
    time = "a time (2026-11-27T10:00Z; UTC if it names no time zone), or a period up to now (30s, 90m, 2h, 7d)"
    parser.add_argument("--since", type=moment, metavar="TIME", help=f"only records received since {time}")
    parser.add_argument("--until", type=moment, metavar="TIME", help=f"only records received before {time}")
    events = "only records about something that happened"
    parser.add_argument(
        "--event-since", type=moment, metavar="TIME", help=f"{events} since {time}, by the event time of the source"
    )
    parser.add_argument("--event-until", type=moment, metavar="TIME", help=f"{events} before {time}")
    parser.add_argument(
        "--where", metavar="CONDITION", help="only these rows, as in SQL: \"seats > 100 AND model = 'A7'\""
    )
    parser.add_argument("--columns", metavar="NAMES", help="only these columns, separated by commas")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of the file; without one, a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"maximum number of rows (default: all; of a table, {TABLE_ROWS})"
    )
    parser.add_argument("--url", help="address of the API (default: BRONZE_API_URL)")
