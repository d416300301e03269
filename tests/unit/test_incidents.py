"""`make incidents`: its claims are about tiles that exist, and find a tile that shows what is not true."""

from collections.abc import Callable, Sequence

import pytest

from tests.incidents import page
from tests.incidents.claims import CLAIMS, TITLES, Look, lies
from tests.incidents.faults import INCIDENTS
from tests.incidents.readings import Readings
from tests.incidents.senders import Attempt
from tests.proxy import Put
from tests.tiles import Shown, tiles

SECONDS = 600
#: From then on, and for so long, something is wrong.
WRONG_AT, WRONG_S = 200.0, 100.0

GREEN = Shown({"": 0.0}, "OK", frozenset({"green"}))
YELLOW = Shown({"": 100.0}, "now well", frozenset({"yellow"}))
RED = Shown({"": 200.0}, "failing", frozenset({"red"}))
UNKNOWN = Shown({"": 300.0}, "not known: see Telemetry", frozenset({"purple"}))

Colours = Callable[[float], Shown]


def test_each_tile_of_the_first_rows_has_a_claim() -> None:
    titles = [tile["title"] for tile in tiles("bronze-overview")]
    assert CLAIMS.keys() <= set(titles)
    assert CLAIMS.keys() >= set(titles[: titles.index("Refused records")])


def test_incidents_have_names_of_their_own() -> None:
    assert len({incident.name for incident in INCIDENTS}) == len(INCIDENTS)


@pytest.mark.parametrize("title", TITLES)
def test_green_is_a_lie_when_something_is_wrong_for_thirty_seconds(title: str) -> None:
    assert found(title, lambda _: GREEN, wrong()) == pytest.approx(WRONG_AT + 30, abs=10)


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("shown", [RED, YELLOW, UNKNOWN])
def test_another_colour_is_a_lie_when_nothing_is_wrong(title: str, shown: Shown) -> None:
    assert found(title, lambda at: shown if at >= 500 else GREEN, readings()) == 500


@pytest.mark.parametrize("title", TITLES)
def test_red_may_last_a_minute_and_yellow_five(title: str) -> None:
    over = WRONG_AT + WRONG_S

    def colours(at: float) -> Shown:
        if WRONG_AT + 25 < at < over + 60:
            return RED
        return YELLOW if over + 60 <= at else GREEN

    assert found(title, colours, wrong()) is None
    assert found(title, lambda at: RED if at > WRONG_AT + 25 else GREEN, wrong()) == pytest.approx(over + 85, abs=15)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Successful uploads", 100.0),
        ("Requests", 1000.0),
        ("Mean upload", 1.0),
        ("Missing data", 1.0),
        ("Records that wait now", 50.0),
        ("Refused records", 1.0),
    ],
)
def test_a_wrong_number_is_a_lie(title: str, shown: float) -> None:
    tile = Shown({"submissions": shown}, f"{shown:g}", frozenset({"blue"}))
    assert found(title, lambda _: tile, readings()) is not None


def test_a_percentile_has_the_colour_of_the_share_above_its_limit() -> None:
    slow = [Put(f"bronze/source=status/{at}.parquet", at, at + 3, 200) for at in range(100, 500)]
    assert found("p95 upload", lambda _: GREEN, readings(slow)) == pytest.approx(105, abs=30)
    assert found("p95 upload", lambda _: RED, readings()) is not None


def test_the_page_says_what_did_not_hold() -> None:
    incident = INCIDENTS[-1]
    faults = [("incident", WRONG_AT, WRONG_AT + WRONG_S)]
    of = readings(faults=faults)
    looks = seen("Upload", lambda at: RED if at >= 300 else GREEN)
    result = page.result(incident, lies(of, looks), page.Seen(of, looks, [], []))
    assert "Upload, +100 s: is red (failing) without a reason (60 looks)" in result.problems
    text = page.written([result])
    assert "*Upload* after 100 s (failing)" in text
    assert "- latency-creeps: Upload, +100 s: is red" in text


# --- what was read and seen


def readings(
    puts: Sequence[Put] = (), attempts: Sequence[Attempt] = (), faults: Sequence[tuple[str, float, float]] = ()
) -> Readings:
    """An upload per second, and a submission that it stores."""
    well = [Attempt("status", 5, at, at + 0.1, 202, f"{at}") for at in range(SECONDS) if at != WRONG_AT]
    puts = puts or [Put(f"bronze/source=status/{at}.parquet", at, at + 0.1, 200) for at in range(SECONDS)]
    stored = {a.submission_id: a.ended + 0.5 for a in well}
    return Readings(0, SECONDS, [*well, *attempts], puts, stored, faults)


def wrong() -> Readings:
    """Everything is wrong."""
    end = WRONG_AT + WRONG_S
    failed = [Attempt("status", 5, at, at + 0.1, 503) for at in _steps()]
    waits = Attempt("status", 5, WRONG_AT - 3, WRONG_AT - 3, 202, "waits")
    puts = [Put(f"bronze/source=status/{at}.parquet", at, at + 0.1, 0) for at in _steps()]
    of = readings(puts, [*failed, waits], [("otel-collector", WRONG_AT, end)])
    return Readings(0, SECONDS, of.attempts, of.puts, {**of.stored, "waits": end}, of.faults)


def _steps() -> range:
    return range(int(WRONG_AT), int(WRONG_AT + WRONG_S), 5)


def seen(title: str, colours: Colours) -> list[Look]:
    return [Look(at, {title: colours(at)}, frozenset()) for at in range(5, SECONDS, 5)]


def found(title: str, colours: Colours, of: Readings) -> float | None:
    """The time of the first lie."""
    return next((at for at, _, _ in lies(of, seen(title, colours))), None)
