"""`bronze table compact`, `expire` and `reprocess`: one table after another."""

from collections.abc import Callable

import pytest

from bronze.__main__ import parser
from bronze.admin.confirmation import Confirmation
from bronze.admin.maintain_tables import run
from bronze.errors import Halted, NotPermitted, Outage, Unavailable
from bronze.maintenance.task import Done, TooManyConflicts

HALTED = Halted("the table bronze.a lacks the column speed")
AWAY = Unavailable(Outage.UNAVAILABLE, "a file is lost")


class Compacted:
    def __str__(self) -> str:
        return "compacted"

    def as_dict(self) -> dict[str, str | int | None]:
        return {}


class Tables:
    """A task that fails for some tables."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self._errors = errors
        self.tried: list[str] = []

    def plan(self, source: str) -> Done:
        self.tried.append(source)
        if error := self._errors.get(source):
            raise error
        return Compacted()

    def run(self, source: str, on_file: Callable[[], None]) -> Done:
        on_file()
        return self.plan(source)


@pytest.mark.parametrize("word", ["--yes", "--dry-run"])
@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ({}, 0),
        ({"a": HALTED}, 1),
        ({"a": TooManyConflicts("a")}, 1),
        ({"a": AWAY}, 3),
        ({"a": AWAY, "b": HALTED}, 3),
    ],
)
async def test_the_tables_after_one_that_fails_are_maintained_too(
    errors: dict[str, Exception], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard error has a line per failure, which names the table."""
    task = Tables(errors)
    args = parser().parse_args(["table", "compact", word])
    assert await run(args, task, ["a", "b", "c"], "Compact?", Confirmation([], yes=True)) == code
    assert task.tried == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert shown.out.count("compacted") == 3 - len(errors)
    assert [line[:16] for line in shown.err.splitlines() if line] == [f"bronze table: {name}:" for name in errors]


async def test_a_refused_right_ends_the_command() -> None:
    """It is the same for all tables."""
    task = Tables({"a": NotPermitted("the account reader")})
    args = parser().parse_args(["table", "compact", "--yes"])
    with pytest.raises(NotPermitted):
        await run(args, task, ["a", "b"], "Compact?", Confirmation([], yes=True))
    assert task.tried == ["a"]
