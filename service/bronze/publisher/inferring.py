"""`bronze sources infer`: a declaration for the records of files."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import PurePath

from bronze.errors import BronzeError, Misconfigured
from bronze.plurals import counted
from bronze.printable import printable
from bronze.publisher.csv_options import csv_arguments, csv_options
from bronze.publisher.files import open_file
from bronze.publisher.formats import ANY_CSV, EXTENSIONS, CsvOptions, FileFormat, display_name, required_format
from bronze.publisher.reading import records
from bronze.records import sources
from bronze.records.inference import (
    ColumnShapes,
    InferredField,
    RecordShapes,
    cell,
    cell_with_decimal_comma,
    declaration,
)
from bronze.records.sources import Source

_log = logging.getLogger(__name__)

#: Values of a file are as they are, without a declaration.
_RAW = Source("raw", "", 1, ())


def infer_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze sources infer`."""
    parser.description = (
        "Read sample files and print a declaration of a source that takes their records as they are, with comments on "
        "what is not sure. It needs no server. Check the declaration, and describe the fields."
    )
    parser.epilog = (
        "Exit codes: 0 if a declaration was printed, 1 if a file cannot be read, 2 if an argument cannot work."
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help=f"a sample ({', '.join(EXTENSIONS)}; text also with .gz or .zst)"
    )
    parser.add_argument(
        "--format", choices=[*map(str, FileFormat)], help="the format of all files, whatever their names"
    )
    csv_arguments(parser)
    parser.add_argument("--name", metavar="NAME", help="name of the source (default: from the name of the first file)")
    parser.add_argument(
        "--records", type=_count, metavar="N", help="read only the first N records of each file (default: all)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records")
    return int(text)


def run_infer(args: argparse.Namespace) -> int:
    """Print the declaration. Returns the exit code."""
    form = FileFormat(args.format) if args.format else None
    name = args.name or _source_name(args.files[0])
    try:
        text = infer(name, args.files, form, args.records, csv_options(args))
    except Misconfigured:
        raise
    except (BronzeError, OSError) as error:
        print(f"bronze sources: {error}", file=sys.stderr)
        return 1
    sources.parse(text, "the declaration")  # a name that cannot be one of a source
    print(text, end="")
    return 0


def infer(
    name: str,
    files: Sequence[str],
    form: FileFormat | None = None,
    records_max: int | None = None,
    csv: CsvOptions = ANY_CSV,
) -> str:
    """The declaration of a source that takes the records of all files. Raises `Refused` or `OSError`."""
    texts = RecordShapes()
    columns: list[InferredField] = []
    total = 0
    problems = _Problems()
    for path in files:
        found = required_format(path, form)
        if found.is_text:
            _read_text(path, found, texts, records_max, csv, problems)
        else:
            shapes = _read_columns(path, found, records_max)
            total += shapes.records
            columns += shapes.fields()
            problems.add(shapes.problem(), display_name(path), shapes.records)
    total += texts.records
    comments = problems.texts()
    if not total:
        names = ", ".join(map(display_name, files))
        raise Misconfigured("; ".join([f"there is no record in {names}", *comments]))
    for comment in comments:
        _log.warning(comment)
    return declaration(name, len(files), total, [*texts.fields(), *columns], comments)


class _Problems:
    """Counts the records that the declaration does not take, by reason."""

    def __init__(self) -> None:
        self._records: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str | None, place: str, records: int = 1) -> None:
        if reason is not None and records:
            self._records[reason] += records
            self._first.setdefault(reason, place)

    def texts(self) -> list[str]:
        return [
            f"{reason}: {counted(number, 'record')}, the first in {printable(self._first[reason])}"
            for reason, number in self._records.items()
        ]


def _read_text(
    path: str,
    form: FileFormat,
    shapes: RecordShapes,
    records_max: int | None,
    csv: CsvOptions,
    problems: _Problems,
) -> None:
    read_cell = cell_with_decimal_comma if csv.decimal_comma else cell
    with open_file(path) as file:
        for number, record in islice(records(path, file.stream, form, lambda: _RAW, None, csv), records_max):
            problem = shapes.add(record, read_cell if form is FileFormat.CSV else None)
            problems.add(problem, f"{display_name(path)}, {form.unit} {number}")


def _read_columns(path: str, form: FileFormat, records_max: int | None) -> ColumnShapes:
    from bronze.publisher import columnar_files  # slow to import, and most files are text

    with open_file(path) as file, columnar_files.columns(path, file.stream, form) as (schema, batches):
        shapes = ColumnShapes(schema)
        for batch in batches:
            shapes.add(batch)
            if records_max is not None and shapes.records >= records_max:
                break
    return shapes


def _source_name(path: str) -> str:
    name = PurePath(path).name.partition(".")[0].lower()
    cleaned = "".join(character if character.isascii() and character.isalnum() else "_" for character in name)
    return cleaned.strip("_") if cleaned.strip("_")[:1].isalpha() else f"source_{cleaned.strip('_')}".rstrip("_")
