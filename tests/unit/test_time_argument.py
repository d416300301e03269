"""Days, hours and times in arguments: what cannot be computed with is refused, and so is what is not documented."""

import argparse
import datetime as dt

import pytest

from bronze.__main__ import parser
from bronze.admin.time_argument import day, since, whole


@pytest.mark.parametrize(
    "words",
    [
        "retain --days 800000",
        "retain --days 0",
        "retain --entries-days 99999999999",
        "table expire --expire-days 999999999999",
        "table expire --expire-days 0",
        "table compact --older-than 99999999999999",
        "table compact --older-than -1",
        "table compact --target-size 0",
        f"table compact --target-size {'9' * 5000}",
        "table reprocess --day 20261130",
        "table reprocess --day 2026-W49-1",
        "table reprocess --day 2026-02-30",
        "verify --since 99999999999999d",
        "verify --since 0001-01-01",
    ],
)
def test_what_cannot_work_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words.split())
    assert ended.value.code == 2
    assert f"argument {words.split()[-2]}: " in capsys.readouterr().err


def test_the_documented_forms_are_accepted() -> None:
    assert day("2026-11-30") == dt.date(2026, 11, 30)
    assert whole("36500", 0, 36_500) == 36_500
    assert since("2026-11-27T10:00Z") == "2026-11-27T10:00:00Z"
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 36,500"):
        whole("\u0663", 1, 36_500)  # a digit, but not of ASCII
