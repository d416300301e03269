"""How fast a principal may send: what is admitted, when it may come again, and what the fields say."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.api import rates
from bronze.api.rates import RateLimiter
from bronze.errors import Outage, Unavailable
from bronze.protocol.principals import Caller, Rates

FLEET = Caller("fleet", "fleet", "0")
WINDOW_S = 10


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Sender:
    """A principal that sends to a limiter."""

    def __init__(self, requests_per_s: float | None = None, bytes_per_s: float | None = None) -> None:
        self.clock = Clock()
        self.limiter = RateLimiter(Rates(requests_per_s, bytes_per_s), WINDOW_S, self.clock)

    def send(self, body_bytes: int | None = 0, caller: Caller = FLEET) -> int:
        """Send a request (without a length if that is None); returns the seconds after which to send it again, or 0."""
        limits = self.limiter.of(caller)
        assert limits
        headers = [] if body_bytes is None else [(b"content-length", str(body_bytes).encode())]
        try:
            self.receive = limits.admit({"type": "http", "headers": headers}, self._chunk)
        except Unavailable as error:
            self.error = error
            return error.retry_after_s
        return 0

    async def _chunk(self) -> Any:
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def fields(self) -> Sequence[str]:
        limits = self.limiter.of(FLEET)
        assert limits
        started: list[Any] = []

        async def send(message: Any) -> None:
            started.append(message)

        await limits.reporting(send)({"type": "http.response.start", "headers": []})
        return [value.decode() for _, value in started[0]["headers"]]


def test_without_rates_nothing_is_counted() -> None:
    assert RateLimiter(Rates(), WINDOW_S).of(FLEET) is None


def test_a_window_can_be_sent_at_once_and_then_the_rate() -> None:
    sender = Sender(requests_per_s=2)
    assert [sender.send() for _ in range(20)] == [0] * 20
    assert sender.send() == 1
    sender.clock.now_s += 0.5
    assert sender.send() == 0
    assert sender.send() == 1
    sender.clock.now_s += 1000
    assert [sender.send() for _ in range(21)] == [0] * 20 + [1]


@given(per_s=st.floats(1e-5, 1e5), used=st.integers(0, 5))
def test_who_waits_as_long_as_it_says_is_admitted(per_s: float, used: int) -> None:
    """And who waits a second less is not, unless the wait was rounded up."""
    sender = Sender(requests_per_s=per_s)
    for _ in range(used):
        sender.send()
    sender.limiter.of(FLEET)
    sender.limiter._usages["fleet"].full_at_s["requests"] = sender.clock.now_s + max(WINDOW_S, 1 / per_s)
    wait_s = sender.send()
    assert wait_s >= 1
    sender.clock.now_s += wait_s
    assert sender.send() == 0


def test_a_refused_request_costs_nothing() -> None:
    """Else a client that retries too early would never get through."""
    sender = Sender(requests_per_s=1)
    while not sender.send():
        pass
    for _ in range(100):
        assert sender.send() == 1
    sender.clock.now_s += 1
    assert sender.send() == 0


def test_a_body_of_any_size_is_admitted_and_paid_later() -> None:
    sender = Sender(bytes_per_s=100)
    assert sender.send(5_000) == 0
    assert sender.send(1) == 41  # 50 s, less the window, and a byte
    assert sender.error.code is Outage.QUOTA_EXCEEDED
    assert sender.error.members == {"violated-policies": ["bytes"]}
    assert "fleet may send 100 bytes per second, averaged over 10 s" in sender.error.detail
    sender.clock.now_s += 41
    assert sender.send(1) == 0


async def test_a_body_without_a_length_is_counted_while_it_arrives() -> None:
    sender = Sender(bytes_per_s=100)
    assert sender.send(None) == 0
    for _ in range(20):
        await sender.receive()
    assert sender.send(1) == 11


def test_principals_do_not_share_their_rates() -> None:
    sender, other = Sender(requests_per_s=1), Caller("other", "other", "1")
    while not sender.send():
        pass
    assert sender.send(caller=other) == 0


def test_a_principals_own_rates_replace_those_of_the_settings() -> None:
    """One of them or both; what was used before still counts."""
    sender = Sender(requests_per_s=1, bytes_per_s=100)
    slow = Caller("fleet", "fleet", "0", rates=Rates(requests_per_s=0.1))
    assert [sender.send(caller=slow) for _ in range(2)] == [0, 10]
    sender.clock.now_s += 9
    assert sender.send(3_000) == 0
    assert sender.send(caller=slow) == 21
    assert sender.error.members["violated-policies"] == ["requests", "bytes"]


async def test_the_fields_have_the_form_of_the_draft() -> None:
    """draft-ietf-httpapi-ratelimit-headers-10: structured fields, integers, and a reset that is not after the wait."""
    sender = Sender(requests_per_s=2.5, bytes_per_s=1000)
    assert await sender.fields() == [
        '"requests";q=25;w=10;qu="requests", "bytes";q=10000;w=10;qu="content-bytes"',
        '"requests";r=25;t=1, "bytes";r=10000;t=1',
    ]
    sender.send(12_000)
    assert (await sender.fields())[1] == '"requests";r=24;t=1, "bytes";r=0;t=3'
    assert sender.send() == 3


@given(per_s=st.floats(1e-5, 1e12), used=st.integers(0, 2**40))
async def test_the_fields_are_integers_whatever_the_rate(per_s: float, used: int) -> None:
    sender = Sender(bytes_per_s=per_s)
    sender.send(used)
    policy, state = await sender.fields()
    assert re.fullmatch(r'"bytes";q=[1-9]\d*;w=[1-9]\d*;qu="content-bytes"', policy)
    assert re.fullmatch(r'"bytes";r=\d+;t=[1-9]\d*', state)


def test_the_principals_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not heard of for the longest time are forgotten first."""
    monkeypatch.setattr(rates, "PRINCIPALS_MAX", 3)
    sender = Sender(requests_per_s=0.1)
    for name in "abcade":
        sender.send(caller=Caller(name, name, "0"))
    assert list(sender.limiter._usages) == ["a", "d", "e"]


def test_the_log_has_a_principal_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(requests_per_s=1)
    for _ in range(100):
        sender.send()
    assert len(caplog.records) == 1
    sender.clock.now_s += rates.LOG_S
    for _ in range(100):
        sender.send()
    assert len(caplog.records) == 2
    assert "fleet: more than 1 requests per second" in caplog.text
