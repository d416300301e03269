"""The options that say how CSV files are written, for each command that reads files."""

import argparse
import codecs

from bronze.publisher.formats import CsvOptions


def csv_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    group = parser.add_argument_group("CSV")
    group.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        type=_delimiter,
        help="what separates values; else it is guessed from the header row (comma, semicolon, tab or |)",
    )
    group.add_argument(
        "--encoding", metavar="NAME", type=_encoding, help="such as cp1252; else UTF-8, or UTF-16 by its first bytes"
    )
    group.add_argument("--decimal-comma", action="store_true", help="numbers are written as 1,5")


def csv_options(args: argparse.Namespace) -> CsvOptions:
    """What a command line says."""
    return CsvOptions(args.delimiter, args.encoding, args.decimal_comma)


def _delimiter(text: str) -> str:
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or text in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text}: not one character")
    return text


def _encoding(text: str) -> str:
    try:
        return codecs.lookup(text).name
    except LookupError:
        raise argparse.ArgumentTypeError(f"{text}: not an encoding that Python knows") from None
