"""How fast a principal may send: what is admitted, when it may come again, and what the fields say."""

import os
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.api import rates
from bronze.api.rates import Policy, RateLimiter, Usages, create_memory
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

    def __init__(
        self, requests_per_s: float | None = None, bytes_per_s: float | None = None, memory: int | None = None
    ) -> None:
        self.clock = Clock()
        self.usages = Usages(memory)
        self.limiter = RateLimiter(Rates(requests_per_s, bytes_per_s), WINDOW_S, self.usages, self.clock)

    async def send(self, *pieces: int, caller: Caller = FLEET) -> int:
        """Send a request whose body has pieces of these sizes; returns the seconds to wait, or 0 if it is admitted."""
        rates = self.limiter.of(caller)
        assert rates
        arriving = iter(pieces)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"x" * next(arriving), "more_body": True}

        try:
            counted = rates.admit(receive)
        except Unavailable as error:
            self.error = error
            return error.retry_after_s
        for _ in pieces:
            await counted()
        return 0

    def use(self, name: str, s: float) -> None:
        """Use what it takes so long to add again."""
        self.usages.of(FLEET.principal).take(Policy(name, 1.0, WINDOW_S), s, self.clock.now_s)  # type: ignore[arg-type]

    async def fields(self) -> Sequence[str]:
        rates = self.limiter.of(FLEET)
        assert rates
        started: list[Any] = []

        async def send(message: Any) -> None:
            started.append(message)

        await rates.reporting(send)({"type": "http.response.start", "headers": []})
        return [value.decode() for _, value in started[0]["headers"]]


def test_without_rates_nothing_is_counted() -> None:
    assert RateLimiter(Rates(), WINDOW_S, Usages()).of(FLEET) is None


async def test_a_window_can_be_sent_at_once_and_then_the_rate() -> None:
    sender = Sender(requests_per_s=2)
    assert [await sender.send() for _ in range(20)] == [0] * 20
    assert await sender.send() == 1
    sender.clock.now_s += 0.5
    assert await sender.send() == 0
    assert await sender.send() == 1
    sender.clock.now_s += 1000
    assert [await sender.send() for _ in range(21)] == [0] * 20 + [1]


@given(per_s=st.floats(1e-5, 1e5))
async def test_who_waits_as_long_as_it_says_is_admitted(per_s: float) -> None:
    sender = Sender(requests_per_s=per_s)
    sender.use("requests", max(WINDOW_S, 1 / per_s))
    wait_s = await sender.send()
    assert wait_s >= 1
    sender.clock.now_s += wait_s
    assert await sender.send() == 0


async def test_a_refused_request_costs_nothing() -> None:
    """Else a client that retries too early would never get through."""
    sender = Sender(requests_per_s=1)
    while not await sender.send():
        pass
    for _ in range(100):
        assert await sender.send() == 1
    sender.clock.now_s += 1
    assert await sender.send() == 0


async def test_a_body_of_any_size_is_admitted_and_paid_later() -> None:
    """It counts while it arrives, so that what is announced and never sent costs nothing."""
    sender = Sender(bytes_per_s=100)
    assert await sender.send(3_000, 2_000) == 0
    assert await sender.send(1) == 41  # 50 s, less the window, and a byte
    assert sender.error.code is Outage.QUOTA_EXCEEDED
    assert sender.error.members == {"violated-policies": ["bytes"]}
    assert "fleet may send 100 bytes per second, averaged over 10 s" in sender.error.detail
    sender.clock.now_s += 41
    assert await sender.send() == 0


async def test_principals_do_not_share_their_rates() -> None:
    sender, other = Sender(requests_per_s=1), Caller("other", "other", "1")
    while not await sender.send():
        pass
    assert await sender.send(caller=other) == 0


async def test_a_principals_own_rates_replace_those_of_the_settings() -> None:
    """One of them or both; what was used before still counts."""
    sender = Sender(requests_per_s=1, bytes_per_s=100)
    slow = Caller("fleet", "fleet", "0", rates=Rates(requests_per_s=0.1))
    assert [await sender.send(caller=slow) for _ in range(2)] == [0, 10]
    sender.clock.now_s += 9
    assert await sender.send(3_000) == 0
    assert await sender.send(caller=slow) == 21
    assert sender.error.members["violated-policies"] == ["requests", "bytes"]


async def test_the_fields_have_the_form_of_the_draft() -> None:
    """draft-ietf-httpapi-ratelimit-headers-10: structured fields, integers, and a reset that is not after the wait."""
    sender = Sender(requests_per_s=2.5, bytes_per_s=1000)
    assert await sender.fields() == [
        '"requests";q=25;w=10;qu="requests", "bytes";q=10000;w=10;qu="content-bytes"',
        '"requests";r=25;t=1, "bytes";r=10000;t=1',
    ]
    await sender.send(12_000)
    assert (await sender.fields())[1] == '"requests";r=24;t=1, "bytes";r=0;t=3'
    assert await sender.send() == 3


@given(per_s=st.floats(1e-5, 1e12), used_s=st.floats(0, 1e9))
async def test_the_fields_are_integers_whatever_the_rate(per_s: float, used_s: float) -> None:
    sender = Sender(bytes_per_s=per_s)
    sender.use("bytes", used_s)
    policy, state = await sender.fields()
    assert re.fullmatch(r'"bytes";q=[1-9]\d*;w=[1-9]\d*;qu="content-bytes"', policy)
    assert re.fullmatch(r'"bytes";r=\d+;t=[1-9]\d*', state)


async def test_the_principals_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were idle for the longest time are forgotten first."""
    monkeypatch.setattr(rates, "PRINCIPALS_MAX", 3)
    sender = Sender(requests_per_s=0.1)

    async def admitted(names: str) -> str:
        sender.clock.now_s += 1
        return "".join([name for name in names if not await sender.send(caller=Caller(name, name, "0"))])

    for name in "abcde":
        assert await admitted(name)
    assert await admitted("cde") == ""
    assert await admitted("a") == "a"


async def test_processes_with_the_same_memory_count_together() -> None:
    """A principal may send what its rate says, whichever of them it sends to; the others' do not count."""
    memory = create_memory()
    workers = [Sender(requests_per_s=2, memory=memory) for _ in range(2)]
    assert [await workers[n % 2].send() for n in range(20)] == [0] * 20
    assert [await worker.send() for worker in workers] == [1, 1]
    assert await workers[0].send(caller=Caller("other", "other", "0")) == 0
    assert await Sender(requests_per_s=2).send() == 0
    os.close(memory)


async def test_the_log_has_a_principal_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(requests_per_s=1)
    for _ in range(100):
        await sender.send()
    assert len(caplog.records) == 1
    sender.clock.now_s += rates.LOG_S
    for _ in range(100):
        await sender.send()
    assert len(caplog.records) == 2
    assert "fleet: more than 1 requests per second" in caplog.text
