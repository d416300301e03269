"""The kill test's checker finds each kind of damage, and none in a complete chain."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from bronze.protocol.documents import CatalogEntry, Contents, Totals, entry_of
from tests import factories
from tests.delivery.kill.checker import Found, Sent, check

LANE = factories.LANE
SIZE = 1000
SENT = Sent(accepted={"one", "two", "three"}, unknown={"perhaps"}, refused={"never"}, foreign={"late"})


def contents(key: str, first: int, last: int, records: int) -> Contents:
    return factories.contents(first, last, file_path=key, last_time="", records=records)


def found(*objects: tuple[Contents, list[str]], set_aside: str = "late") -> Found:
    """The servers' contents with these objects, the last of which lists a quarantined message."""
    aside = {"sequence": 3, "key": "quarantine/3", "reason": "", "records": 1, "headers": {}}
    listed = msgspec.convert([aside], type=Contents.__annotations__["quarantined"])
    *before, (last, records) = objects
    all_objects: list[tuple[Contents, list[str]]] = []
    entries: list[CatalogEntry] = []
    totals = Totals()
    for one, of_object in [*before, (msgspec.structs.replace(last, quarantined=listed), records)]:
        footer = msgspec.structs.replace(one, totals_before=totals)
        totals += factories.stored(footer, SIZE).totals
        all_objects.append((footer, of_object))
        entries.append(entry_of(footer, totals))
    return Found(
        objects={one.file_path: (one, records) for one, records in all_objects},
        quarantine={"quarantine/3": [set_aside]},
        sizes={one.file_path: SIZE for one, _ in all_objects},
        entries=entries,
        identities={},
        lanes={LANE.stream: (3, 3)},
    )


A, B = contents("a", 1, 1, 2), contents("b", 2, 3, 1)
WHOLE = found((A, ["one", "two"]), (B, ["three"]))


def test_whole_chain_is_right() -> None:
    """The checker finds nothing in undamaged data."""
    verdict = check(SENT, WHOLE)
    assert verdict, str(verdict)


@pytest.mark.parametrize(
    ("damaged", "finding"),
    [
        (lambda: found((A, ["one", "one"]), (B, ["three"])), {"lost", "doubled"}),
        (lambda: found((A, ["one", "two"]), (B, ["three"]), set_aside="three"), {"lost", "doubled"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 2, 3, 2), ["three", "never"])), {"strange"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 2, 3, 2), ["three", "late"])), {"doubled", "strange"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 3, 3, 1), ["three"])), {"ranges"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 1, 3, 1), ["three"])), {"ranges", "catalog"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 2, 2, 1), ["three"])), {"ranges"}),
        (lambda: found((A, ["one", "two"]), (contents("b", 2, 3, 2), ["three"])), {"catalog"}),
        (lambda: replace(WHOLE, entries=WHOLE.entries[1:]), {"catalog"}),
        (lambda: replace(WHOLE, entries=[*WHOLE.entries, WHOLE.entries[1]]), {"catalog"}),
        (lambda: replace(WHOLE, objects={"a": WHOLE.objects["a"]}), {"lost", "ranges", "catalog"}),
        (lambda: replace(WHOLE, quarantine={**WHOLE.quarantine, "quarantine/2": ["perhaps"]}), {"catalog"}),
        (lambda: replace(WHOLE, sizes={**WHOLE.sizes, "a": SIZE + 1}), {"catalog"}),
        (lambda: found((contents("a", 1, 1, 1), ["one"]), (B, ["three"])), {"lost", "ledger"}),
        (
            lambda: found((contents("a", 1, 1, 4), ["one", "two", "perhaps", "never"]), (B, ["three"])),
            {"strange", "ledger"},
        ),
        (lambda: replace(WHOLE, lanes={LANE.stream: (2, 3)}), {"unpurged"}),
    ],
)
def test_damage_is_found(damaged: Callable[[], Found], finding: set[str]) -> None:
    """Loss, a double, a record that was not accepted, a gap, an overlap, a catalog unlike the bucket, a late purge."""
    verdict = check(SENT, damaged())
    assert {name for name, wrong in vars(verdict).items() if wrong} == finding


def test_missing_identity_is_found() -> None:
    """The checker finds an accepted submission without an identity in the catalog."""
    assert check(replace(SENT, submissions={"id": True}), WHOLE).identities == ["id has none"]
