"""Limits of time grow with what this machine takes longer than the one that they were chosen on."""

import os
import time

import pytest

from local import machine
from local.machine import SLOWNESS_MAX, Deadline


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.parametrize(
    ("load", "of_core", "expected"),
    [
        pytest.param(0.0, 1.0, 1, id="idle"),
        pytest.param(4.0, 1.0, 1, id="with the tests alone"),
        pytest.param(0.0, 0.5, 1, id="a faster machine has no shorter limits"),
        pytest.param(4.0, 2.0, 2, id="half as fast"),
        pytest.param(20.0, 1.0, 5, id="a load of 20"),
        pytest.param(20.0, 1.5, 7.5, id="both"),
        pytest.param(200.0, 1.0, SLOWNESS_MAX, id="too busy"),
    ],
)
def test_limits_follow_the_machine(
    load: float, of_core: float, expected: float, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(machine, "_slowness_of_core", lambda: of_core)
    assert machine.slowness() == expected
    assert machine.limit_s(2) == 2 * expected
    assert machine.is_too_busy() == (expected == SLOWNESS_MAX)


def test_a_deadline_moves_away_while_the_load_grows(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits already is given more time, too; on an idle machine it is not."""
    load, now_s = [0.0], [100.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    monkeypatch.setattr(machine, "_slowness_of_core", lambda: 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    deadline = Deadline(10)
    now_s[0] += 10
    assert not deadline.passed()
    now_s[0] += 1
    assert deadline.passed()
    load[0] = 8.0
    assert not deadline.passed()
    now_s[0] += 10
    assert deadline.passed()


def test_the_header_says_what_was_measured() -> None:
    assert f"{len(os.sched_getaffinity(0))} cores" in machine.describe()
    assert "time limits are multiplied by" in machine.describe()
