"""Attempts to decode a cut, so that a message that kills its decoder is found (rule 7 of `docs/delivery.md`)."""

from collections.abc import Sequence

import msgspec

from bronze.protocol.limits import Limits
from bronze.protocol.message import Message

#: Deaths while decoding at one beginning from which the cut is halved, or its only message set aside.
DEATHS_TOLERATED = 3


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of decoding at one beginning, so that a message that kills its decoder is found.

    `size` messages from `first` were being decoded; `deaths` at this `first`, and those of a message alone are counted
    from 0: what a larger cut died of may be its neighbour. `limit` messages (0: none) bound each cut up to the sequence
    `until`, the end of the suspect range.
    """

    first: int = 0
    size: int = 0
    deaths: int = 0
    limit: int = 0
    until: int = 0

    def begin(self, cut: Sequence[Message]) -> "Attempt":
        """The attempt at a cut."""
        first, last = cut[0].sequence, cut[-1].sequence
        suspect = self.limit > 0 and first <= self.until
        same = first == self.first and (len(cut) > 1 or self.size == 1)
        return Attempt(
            first=first,
            size=len(cut),
            deaths=self.deaths if same else 0,
            limit=self.limit if suspect else 0,
            until=max(self.until, last) if suspect else last,
        )

    def died(self) -> "Attempt":
        """The attempt after the process that made it died while decoding."""
        deaths = self.deaths + 1
        halve = self.limit > 0 or deaths >= DEATHS_TOLERATED
        return msgspec.structs.replace(self, deaths=deaths, limit=max(1, self.size // 2) if halve else 0)

    def bound(self, first: int, limits: Limits) -> Limits:
        """The limits of a cut that begins at a sequence."""
        if self.limit == 0 or first > self.until:
            return limits
        return Limits(limits.bytes_max, min(self.limit, limits.messages_max), limits.submissions_max, limits.age_s_max)

    def hopeless(self, cut: Sequence[Message]) -> bool:
        """Whether the cut is one message that has killed its decoder too often."""
        return len(cut) == 1 and self.size == 1 and self.first == cut[0].sequence and self.deaths >= DEATHS_TOLERATED
