"""`make soak`: its account of records, its faults, and its page."""

import itertools
import json

from local.builds import REPOSITORY
from tests.soak import report
from tests.soak.load import Account
from tests.soak.report import SERIES, TELLING_S_MIN, Series, judged, page
from tests.soak.run import TARGETS, compare, faults
from tests.soak.slopes import Verdict

NAME = "api memory, MB"


def samples(per_sample: float, count: int, interval_s: float = 30.0) -> list[dict[str, float]]:
    return [{"at": n * interval_s, NAME: 100 + n * per_sample, "api life": 1} for n in range(count)]


def test_each_record_is_compared_by_its_number() -> None:
    """Records 0 to 2 are accepted, 3 and 4 got no answer: only of an accepted one is it a loss if it is not there."""
    account = Account()
    account.accept(account.begin(3), 3)
    account.begin(2)
    found = compare(account, [1, 0, 2, 1, 0])
    assert found == {"accepted": 3, "lost": 1, "doubled": 1, "without an answer": 2}
    assert account.submissions == 1


def test_each_process_is_killed_and_paused_before_any_is_again() -> None:
    """In an order from the seed."""
    of_round = list(itertools.islice(faults(7), 2 * len(TARGETS)))
    assert {(one.target, bool(one.pause_s)) for one in of_round} == set(itertools.product(TARGETS, (True, False)))
    assert of_round == list(itertools.islice(faults(7), len(of_round)))
    assert of_round != list(itertools.islice(faults(8), len(of_round)))


def test_only_a_long_run_says_that_a_series_grows() -> None:
    """The same growth in a run of minutes may be the warm-up."""
    for count, expected in ((int(TELLING_S_MIN / 30) + 2, Verdict.GROWS), (40, Verdict.UNDECIDED)):
        (of_api,) = [one for one in judged(samples(1.0, count)) if one.series.name == NAME]
        assert of_api.verdict is expected
        assert of_api.last == 100 + count - 1


def test_the_warm_up_of_each_process_is_left_out() -> None:
    """The memory of two processes rises for two minutes after each start, and then stays."""
    long = samples(0.0, 400)
    for n, one in enumerate(long):
        one["api life"] = 1 + n // 200
        one[NAME] = 100 + 10 * min(n % 200, 4)
    (of_api,) = [one for one in judged(long) if one.series.name == NAME]
    assert of_api.verdict is Verdict.FLAT


def test_the_time_in_which_caches_get_full_is_left_out() -> None:
    """The memory rises for a quarter of the run, and then stays."""
    long = samples(0.0, 400)
    for n, one in enumerate(long):
        one[NAME] = 100 + min(n, 60)
    (of_api,) = [one for one in judged(long) if one.series.name == NAME]
    assert of_api.verdict is Verdict.FLAT
    for n, one in enumerate(long):
        one[NAME] = 100 + n
    (of_api,) = [one for one in judged(long) if one.series.name == NAME]
    assert of_api.verdict is Verdict.GROWS


def test_what_each_submission_adds_by_design_is_subtracted() -> None:
    series = Series("memory", 1, per_submission=0.5)
    assert series.parts([{"at": 1.0, "memory": 6.0, "submissions": 4}]) == [[(1.0, 4.0)]]


def test_what_grows_by_design_is_divided_by_what_it_grows_with() -> None:
    series = Series("disk", 1, per="entries")
    assert series.title == "disk per entries"
    taken = [{"at": 1.0, "disk": 0.0, "entries": 0}, {"at": 2.0, "disk": 6.0, "entries": 3}, {"at": 3.0}]
    assert series.parts(taken) == [[(2.0, 2.0)]]


def test_a_run_without_samples_judges_nothing() -> None:
    assert judged([]) == []
    assert len({series.title for series in SERIES}) == len(SERIES)


def test_the_committed_page_is_what_the_result_says() -> None:
    docs = REPOSITORY / "docs"
    result = json.loads((docs / "soak.json").read_text())
    assert (docs / "soak.md").read_text() == page(result)
    assert all((docs / "images" / f"soak-{name}.svg").exists() for name in report.PICTURES)
    failed = page({**result, "problems": ["2 records are lost"], "interrupted": True})
    assert "- **Problem**: 2 records are lost\n" in failed
    assert ", interrupted.\n" in failed
