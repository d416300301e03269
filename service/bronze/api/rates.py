"""How fast each principal may send: requests and bytes, each as a token bucket. Each API process counts for itself.

A request is admitted if a token of each bucket is left. Its body may be larger than what is left, else no large body
could be sent: the bucket is then in debt, and the next request waits until that is paid.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import Message, Receive, Send

from bronze.errors import Outage, Unavailable
from bronze.protocol.principals import Caller, Rates

log = logging.getLogger(__name__)

#: Principals whose use is known. Those of API keys are fewer; those of an issuer of tokens may be any number.
PRINCIPALS_MAX = 10_000
#: Seconds between two lines in the log about the same principal.
LOG_S = 60.0
REQUESTS = "requests"
BYTES = "bytes"
#: The names of the units in the fields.
_UNITS = {REQUESTS: "requests", BYTES: "content-bytes"}


@dataclass(frozen=True)
class Policy:
    """A token bucket of `per_s` times `window_s` tokens, to which `per_s` tokens per second are added."""

    name: str
    per_s: float
    window_s: int

    @property
    def quota(self) -> int:
        return int(self.per_s * self.window_s)

    @property
    def field(self) -> str:
        return f'"{self.name}";q={self.quota};w={self.window_s};qu="{_UNITS[self.name]}"'

    def wait_s(self, used_s: float) -> float:
        """The time until a token is left, if the tokens that are gone take `used_s` to be added."""
        return max(0.0, used_s + 1 / self.per_s - self.window_s - 1e-9)

    def state(self, used_s: float) -> str:
        left = max(0, int((self.window_s - used_s) * self.per_s))
        return f'"{self.name}";r={left};t={max(1, math.ceil(self.wait_s(used_s)))}'


@dataclass(frozen=True)
class Policies:
    """Those that hold together, and the field that says so."""

    all: Sequence[Policy]
    field: bytes


@lru_cache(maxsize=1024)
def policies(rates: Rates, window_s: int) -> Policies:
    """The policies of these rates. A window is long enough for one token."""
    given = ((REQUESTS, rates.requests_per_s), (BYTES, rates.bytes_per_s))
    found = tuple(Policy(name, per_s, max(window_s, math.ceil(1 / per_s))) for name, per_s in given if per_s)
    return Policies(found, ", ".join(policy.field for policy in found).encode())


class Usage:
    """What a principal has used: for each policy, when all of it will have been added again."""

    def __init__(self) -> None:
        self.full_at_s = {REQUESTS: 0.0, BYTES: 0.0}
        self.logged_at_s = -math.inf

    def used_s(self, policy: Policy, now_s: float) -> float:
        return max(0.0, self.full_at_s[policy.name] - now_s)

    def take(self, policy: Policy, tokens: int, now_s: float) -> None:
        self.full_at_s[policy.name] = max(self.full_at_s[policy.name], now_s) + tokens / policy.per_s


class RateLimiter:
    """What all principals have used. `defaults` hold for those that have no rates of their own."""

    def __init__(self, defaults: Rates, window_s: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._defaults = defaults
        self._window_s = window_s
        self._now_s = now_s
        #: The one that was used last is at the end.
        self._usages: dict[str, Usage] = {}

    def of(self, caller: Caller) -> "RequestRates | None":
        """The rates of a caller's request; None if there are none."""
        found = policies(caller.rates.or_else(self._defaults), self._window_s)
        if not found.all:
            return None
        usage = self._usages.pop(caller.principal, None) or Usage()
        self._usages[caller.principal] = usage
        if len(self._usages) > PRINCIPALS_MAX:
            del self._usages[next(iter(self._usages))]
        return RequestRates(found, usage, caller.principal, self._now_s)


class RequestRates:
    """The rates that a request counts for."""

    def __init__(self, policies: Policies, usage: Usage, principal: str, now_s: Callable[[], float]) -> None:
        self._policies = policies
        self._usage = usage
        self._principal = principal
        self._now_s = now_s

    def admit(self, receive: Receive) -> Receive:
        """Count a request; returns what its body is to be received from. Raises `Unavailable`.

        A body is counted while it arrives: if its announced length were, one header could use up the rate for years.
        """
        now_s = self._now_s()
        waits_s = {policy: wait_s for policy in self._policies.all if (wait_s := self._wait_s(policy, now_s))}
        if waits_s:
            raise self._exceeded(waits_s, now_s)
        for policy in self._policies.all:
            if policy.name == REQUESTS:
                self._usage.take(policy, 1, now_s)
            else:
                receive = self._counting(policy, receive)
        return receive

    def reporting(self, send: Send) -> Send:
        """What the answer is to be sent to: it gets the fields."""

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._fields()]
            await send(message)

        return send_with_fields

    def _fields(self) -> Sequence[tuple[bytes, bytes]]:
        now_s = self._now_s()
        states = [policy.state(self._usage.used_s(policy, now_s)) for policy in self._policies.all]
        return ((b"ratelimit-policy", self._policies.field), (b"ratelimit", ", ".join(states).encode()))

    def _counting(self, policy: Policy, receive: Receive) -> Receive:
        async def receive_and_count() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self._usage.take(policy, len(message.get("body", b"")), self._now_s())
            return message

        return receive_and_count

    def _wait_s(self, policy: Policy, now_s: float) -> float:
        return policy.wait_s(self._usage.used_s(policy, now_s))

    def _exceeded(self, waits_s: dict[Policy, float], now_s: float) -> Unavailable:
        retry_after_s = math.ceil(max(waits_s.values()))
        rates = " and ".join(f"{policy.per_s:,.6g} {policy.name} per second" for policy in waits_s)
        who = self._principal or "The clients"
        if now_s >= self._usage.logged_at_s + LOG_S:
            self._usage.logged_at_s = now_s
            log.warning("%s: more than %s; requests get a 429", who, rates)
        return Unavailable(
            Outage.QUOTA_EXCEEDED,
            f"{who} may send {rates}, averaged over {max(policy.window_s for policy in waits_s)} s. Nothing was kept: "
            f"send it again after {retry_after_s} s.",
            retry_after_s=retry_after_s,
            **{"violated-policies": [policy.name for policy in waits_s]},
        )
