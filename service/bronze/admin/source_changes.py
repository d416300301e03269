"""The differences between two declarations of the sources, and whether the later one is allowed."""

from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from bronze.records.sources import RegisteredSchema, incompatibility


class Verdict(StrEnum):
    """What a change of a source means."""

    SAME = "no change"
    NEW = "new"
    CHANGED = "changed"
    REMOVED = "no longer declared"
    REFUSED = "refused"


class SourceChange(msgspec.Struct, frozen=True):
    """The change of one source: what changes, and the reason if it is refused."""

    source: str
    verdict: Verdict
    changes: list[str]
    reason: str | None = None


def changes(old: Mapping[str, RegisteredSchema], new: Mapping[str, RegisteredSchema]) -> list[SourceChange]:
    """The change of each source, in the order of the new declaration."""
    return [_change(name, old.get(name), new.get(name)) for name in {**new, **old}]


def _change(name: str, old: RegisteredSchema | None, new: RegisteredSchema | None) -> SourceChange:
    if new is None:
        return SourceChange(name, Verdict.REMOVED, ["its objects stay; its messages wait for a consumer that has it"])
    if old is None:
        return SourceChange(name, Verdict.NEW, [f"version {new.version}, {_fields(new)}"])
    found = list(_differences(old, new))
    if reason := incompatibility(old, new):
        return SourceChange(name, Verdict.REFUSED, found, reason)
    if not found:
        return SourceChange(name, Verdict.SAME, [])
    return SourceChange(name, Verdict.CHANGED, found)


def _fields(schema: RegisteredSchema) -> str:
    return ", ".join(f"{name} ({field.type})" for name, field in schema.fields.items()) or "raw"


def _differences(old: RegisteredSchema, new: RegisteredSchema) -> Iterator[str]:
    if old.version != new.version:
        yield f"version {old.version} becomes {new.version}"
    if old.strict != new.strict:
        yield f"undeclared fields of new records are {'refused' if new.strict else 'accepted'}"
    if old.event_time != new.event_time:
        yield f"the event time is {new.event_time or 'not declared'}"
    for name in {**new.fields, **old.fields}:
        before, after = old.fields.get(name), new.fields.get(name)
        if before == after:
            continue
        if before is None and after is not None:
            yield f"adds {name} ({after})"
        elif after is None:
            yield f"removes {name} ({before})"
        elif before is not None:
            yield f"{name}: {before} becomes {after}"
