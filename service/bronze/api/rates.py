"""How fast each principal may send: requests and bytes, each as a token bucket. The workers of an API count together.

A request is admitted if a token of each bucket is left. Its body may be larger than what is left, else no large body
could be sent: the bucket is then in debt, and the next request waits until that is paid.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

import hashlib
import logging
import math
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import Message, Receive, Send

from bronze.errors import Outage, Unavailable
from bronze.protocol.principals import Caller, Rates

log = logging.getLogger(__name__)

#: Principals whose use is known. Those of API keys are fewer; those of an issuer of tokens may be any number.
PRINCIPALS_MAX = 16_384
#: The places where a principal may be; if others have all of them, the one that was idle longest is forgotten.
PLACES = 16
#: Seconds between two lines in the log about the same principal.
LOG_S = 60.0
REQUESTS = "requests"
BYTES = "bytes"
#: A principal's digest, and three numbers: for each policy, when all that was used will have been added again, and when
#: a line was logged. Times are of the machine's monotonic clock, which its processes share.
DIGEST_BYTES = 16
PRINCIPAL_BYTES = DIGEST_BYTES + 3 * 8
_FULL_AT = {REQUESTS: 0, BYTES: 1}
_LOGGED_AT = 2
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


@dataclass(frozen=True)
class Usage:
    """What a principal has used: the numbers from `first` on."""

    numbers: "memoryview[float]"
    first: int

    def used_s(self, policy: Policy, now_s: float) -> float:
        return max(0.0, self.numbers[self.first + _FULL_AT[policy.name]] - now_s)

    def take(self, policy: Policy, tokens: int, now_s: float) -> None:
        at = self.first + _FULL_AT[policy.name]
        self.numbers[at] = max(self.numbers[at], now_s) + tokens / policy.per_s

    def may_log(self, now_s: float) -> bool:
        """Whether a line may be logged now; the next one then waits."""
        at = self.first + _LOGGED_AT
        if now_s < self.numbers[at] + LOG_S:
            return False
        self.numbers[at] = now_s
        return True


def create_memory() -> int:
    """The file descriptor of memory for `Usages` that processes can share."""
    memory = os.memfd_create("bronze-rates")
    os.truncate(memory, PRINCIPALS_MAX * PRINCIPAL_BYTES)
    return memory


class Usages:
    """What all principals have used, in memory of this process, or in `memory`, which it shares with others.

    There is no lock: of two requests that two processes count within the same microsecond, one may not be counted.
    """

    def __init__(self, memory: int | None = None) -> None:
        self._memory = mmap.mmap(-1 if memory is None else memory, PRINCIPALS_MAX * PRINCIPAL_BYTES)
        self._numbers = memoryview(self._memory).cast("d")

    def of(self, principal: str) -> Usage:
        digest = hashlib.blake2b(principal.encode(), digest_size=DIGEST_BYTES).digest()
        for place in _places(digest):
            if self._memory[place : place + DIGEST_BYTES] == digest:
                return self._usage(place)
        place = min(_places(digest), key=self._idle_at_s)
        usage = self._usage(place)
        usage.numbers[usage.first : usage.first + 3] = array("d", (0.0, 0.0, -math.inf))
        self._memory[place : place + DIGEST_BYTES] = digest
        return usage

    def _usage(self, place: int) -> Usage:
        return Usage(self._numbers, (place + DIGEST_BYTES) // 8)

    def _idle_at_s(self, place: int) -> float:
        usage = self._usage(place)
        return max(usage.numbers[usage.first + at] for at in _FULL_AT.values())


def _places(digest: bytes) -> Iterator[int]:
    first = int.from_bytes(digest[:4])
    return ((first + n) % PRINCIPALS_MAX * PRINCIPAL_BYTES for n in range(PLACES))


class RateLimiter:
    """Admits the requests of all principals. `defaults` hold for those that have no rates of their own."""

    def __init__(
        self, defaults: Rates, window_s: int, usages: Usages, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._defaults = defaults
        self._window_s = window_s
        self._usages = usages
        self._now_s = now_s

    def of(self, caller: Caller) -> "RequestRates | None":
        """The rates of a caller's request; None if there are none."""
        found = policies(caller.rates.or_else(self._defaults), self._window_s)
        if not found.all:
            return None
        return RequestRates(found, self._usages.of(caller.principal), caller.principal, self._now_s)


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
        if self._usage.may_log(now_s):
            log.warning("%s: more than %s; requests get a 429", who, rates)
        return Unavailable(
            Outage.QUOTA_EXCEEDED,
            f"{who} may send {rates}, averaged over {max(policy.window_s for policy in waits_s)} s. Nothing was kept: "
            f"send it again after {retry_after_s} s.",
            retry_after_s=retry_after_s,
            **{"violated-policies": [policy.name for policy in waits_s]},
        )
