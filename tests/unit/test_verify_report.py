"""`bronze verify`: its arguments, its table, its JSON and its exit code."""

import argparse
import datetime as dt
import json
from pathlib import Path

import pytest

from bronze.admin import verify_command
from bronze.errors import Misconfigured
from bronze.telemetry.signals import VerifyCheck
from bronze.verify.results import CheckResult, Fault, Period

PERIOD = Period(dt.datetime(2026, 11, 27, 10, tzinfo=dt.UTC), dt.datetime(2026, 11, 27, 11, tzinfo=dt.UTC))
KEY = "bronze/source=status/date=2026-11-27/hour=10/e-0-000000000001.parquet"
TRACE = "00ab" + "c1" * 14


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verify_command.arguments(parser)
    return parser.parse_args(arguments)


def results(faults: int = 0) -> list[CheckResult]:
    """All checks, of 50 items each; `faults` of the entries are faulty."""
    found = [CheckResult(check, checked=50) for check in VerifyCheck]
    found[1].faults = [Fault("it is not in the bucket", "restore it", KEY, TRACE) for _ in range(faults)]
    return found


def test_the_default_is_the_last_hour() -> None:
    period = verify_command.period(parsed())
    assert period.until - period.since == dt.timedelta(hours=1)


def test_a_range_is_two_times_or_periods_up_to_now() -> None:
    assert verify_command.period(parsed("--since", "2026-11-27T10:00Z", "--until", "2026-11-27T11:00")) == PERIOD
    period = verify_command.period(parsed("--since", "2h", "--until", "90m"))
    assert round((period.until - period.since).total_seconds()) == 1800


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"--until .* is before --since"):
        verify_command.period(parsed("--since", "1h", "--until", "2h"))


@pytest.mark.parametrize("share", ["1.01", "-1", "most", "nan"])
def test_a_share_is_from_0_to_1(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--min-share={share}")
    assert "is not a share" in capsys.readouterr().err


def test_each_fault_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command.report(parsed(), PERIOD, results(faults=22)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2026-11-27 10:00:00 to 2026-11-27 11:00:00 UTC"
    assert lines[3].split()[-3:] == ["50", "28", "22"]
    named = f"entry: {KEY} (trace {TRACE}): it is not in the bucket. What to do: restore it"
    assert lines.count(named) == verify_command.PRINTED_MAX
    assert lines[-1] == "entry: and 2 more; --json lists all"


@pytest.mark.parametrize(("faults", "least", "code"), [(0, "1", 0), (1, "1", 1), (1, "0.98", 0), (2, "0.98", 1)])
def test_the_exit_code_is_by_the_smallest_share(faults: int, least: str, code: int) -> None:
    assert verify_command.report(parsed("--min-share", least), PERIOD, results(faults)) == code


def test_a_check_without_items_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """It says that there was nothing, since a wrong date would look the same."""
    assert verify_command.report(parsed(), PERIOD, [CheckResult(check) for check in VerifyCheck]) == 0
    assert "Nothing was checked" in capsys.readouterr().out


def test_json_has_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To a file, beside the table; to standard output, instead of it."""
    file = tmp_path / "verify.json"
    verify_command.report(parsed("--json", str(file)), PERIOD, results(faults=22))
    assert "2026-11-27 10:00:00" in capsys.readouterr().out
    verify_command.report(parsed("--json", "-"), PERIOD, results(faults=22))
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(file.read_text())
    assert document["passed"] is False
    entry = document["checks"][1]
    assert (entry["check"], entry["checked"], entry["correct"], entry["share"]) == ("entry", 50, 28, 0.56)
    assert len(entry["faults"]) == 22
    assert entry["faults"][0] == {
        "file_path": KEY,
        "trace_id": TRACE,
        "problem": "it is not in the bucket",
        "advice": "restore it",
    }


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"--json: .*none/verify.json cannot be written: No such file"):
        verify_command.report(parsed("--json", str(tmp_path / "none" / "verify.json")), PERIOD, results())
