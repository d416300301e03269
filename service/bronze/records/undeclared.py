"""Finds the fields of records that their source does not declare.

Their names come from the sender: they are shown printable, and only so much of them.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from bronze.printable import printable
from bronze.records.fields import Field, FieldType
from bronze.records.sources import CLASSIFICATION_ID, Source

#: How many different names of a submission are kept.
NAMES_MAX = 32
#: How much of a name is kept, in characters.
NAME_CHARS_MAX = 64
#: How many names an error lists.
LISTED_MAX = 8


class UndeclaredFields:
    """The names of the undeclared fields of a source's records; those in structs as a path, such as `address.zip`."""

    def __init__(self, source: Source) -> None:
        self._declared = {field.name_in_records: field for field in source.fields}
        #: whether an undeclared field can be in a declared one, where the decoder does not look
        self.nested = any(map(_has_struct, source.fields))

    def of_record(self, record: bytes) -> Iterator[str]:
        """The names in a JSON object that was checked."""
        for name, value in msgspec.json.decode(record, type=dict[str, msgspec.Raw]).items():
            field = self._declared.get(name)
            if field is None:
                if name != CLASSIFICATION_ID:
                    yield shown_name(name)
            elif _has_struct(field):
                yield from _of_value(name, msgspec.json.decode(value), field)


def undeclared_reason(names: Sequence[str]) -> str:
    """Why a source that is strict does not accept these fields: the rest of a sentence about the first one."""
    others = names[1:LISTED_MAX]
    more = len(names) - LISTED_MAX
    listed = ", ".join(others) + (f" and {more} more" if more > 0 else "")
    return (
        f"not declared{f', nor {listed}' if others else ''}. The source is strict: declare each field, or set strict = "
        "false in the declaration of the source"
    )


def shown_name(name: str) -> str:
    """A name as it is shown: on one line, and not too long. An empty one is shown as two quotation marks."""
    return printable(name[:NAME_CHARS_MAX])[:NAME_CHARS_MAX] or '""'


def first_names(names: Iterator[str]) -> list[str]:
    """The first different names, and not many of them."""
    return list(dict.fromkeys(islice(names, NAMES_MAX + 1)))


def _has_struct(field: Field) -> bool:
    return field.type is FieldType.STRUCT or any(map(_has_struct, field.children))


def _of_value(path: str, value: Any, field: Field) -> Iterator[str]:
    if value is None:
        return
    match field.type:
        case FieldType.STRUCT:
            children = {child.name: child for child in field.children}
            for name, member in value.items():
                if name not in children:
                    yield shown_name(f"{path}.{name}")
                elif _has_struct(children[name]):
                    yield from _of_value(f"{path}.{name}", member, children[name])
        case FieldType.LIST if _has_struct(field):
            for item in value:
                yield from _of_value(path, item, field.children[0])
        case FieldType.MAP if _has_struct(field):
            for item in value.values():
                yield from _of_value(path, item, field.children[1])
        case _:
            pass
