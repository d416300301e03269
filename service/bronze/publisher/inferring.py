"""`bronze sources infer`: a declaration for the records of files."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import PurePath

from bronze.errors import BronzeError, Misconfigured
from bronze.publisher.files import open_file
from bronze.publisher.formats import EXTENSIONS, FileFormat, display_name, required_format
from bronze.publisher.reading import records
from bronze.records import sources
from bronze.records.inference import ColumnShapes, InferredField, RecordShapes, declaration
from bronze.records.sources import Source

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
        text = infer(name, args.files, form, args.records)
    except Misconfigured:
        raise
    except (BronzeError, OSError) as error:
        print(f"bronze sources: {error}", file=sys.stderr)
        return 1
    sources.parse(text, "the declaration")  # a name that cannot be one of a source
    print(text, end="")
    return 0


def infer(name: str, files: Sequence[str], form: FileFormat | None = None, records_max: int | None = None) -> str:
    """The declaration of a source that takes the records of all files. Raises `Refused` or `OSError`."""
    texts = RecordShapes()
    columns: list[InferredField] = []
    total = 0
    for path in files:
        found = required_format(path, form)
        if found.is_text:
            _read_text(path, found, texts, records_max)
        else:
            shapes = _read_columns(path, found, records_max)
            total += shapes.records
            columns += shapes.fields()
    total += texts.records
    if not total:
        raise Misconfigured(f"there is no record in {', '.join(map(display_name, files))}")
    return declaration(name, len(files), total, [*texts.fields(), *columns])


def _read_text(path: str, form: FileFormat, shapes: RecordShapes, records_max: int | None) -> None:
    with open_file(path) as file:
        for _, record in islice(records(path, file.stream, form, lambda: _RAW), records_max):
            shapes.add(record, text_is_typed=form is FileFormat.CSV)


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
