"""Attempts to decode a cut: they find a message that kills its decoder (rule 7 of `docs/delivery.md`)."""

from collections.abc import Sequence

import msgspec

from bronze.protocol.limits import Limits
from bronze.protocol.message import Message

#: From this number of deaths while decoding at one sequence, the cut is halved, or its only message goes to quarantine.
DEATHS_TOLERATED = 3


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of decoding from one sequence on, so that a message that kills its decoder is found.

    `size` messages from `first` on were being decoded. `deaths` counts the deaths at this `first`; for a message alone
    it counts from 0, since a larger cut may have died because of another message. No cut up to the sequence `until`,
    the end of the suspect range, has more than `limit` messages (0: no limit).
    """

    first: int = 0
    size: int = 0
    deaths: int = 0
    limit: int = 0
    until: int = 0

    def begin(self, cut: Sequence[Message]) -> "Attempt":
        """The attempt to decode a cut."""
        first, last = cut[0].sequence, cut[-1].sequence
        suspect = self.limit > 0 and first <= self.until
        same_attempt = first == self.first and (len(cut) > 1 or self.size == 1)
        return Attempt(
            first=first,
            size=len(cut),
            deaths=self.deaths if same_attempt else 0,
            limit=self.limit if suspect else 0,
            until=max(self.until, last) if suspect else last,
        )

    def after_death(self) -> "Attempt":
        """The attempt after the process that made it died while decoding."""
        deaths = self.deaths + 1
        halve = self.limit > 0 or deaths >= DEATHS_TOLERATED
        return msgspec.structs.replace(self, deaths=deaths, limit=max(1, self.size // 2) if halve else 0)

    @property
    def suspect(self) -> bool:
        """Whether a process died while it decoded messages from here on: decoding them may kill the next one too."""
        return self.deaths > 0 or self.limit > 0

    def cut_limits(self, first: int, limits: Limits) -> Limits:
        """The limits of a cut that begins at the sequence `first`."""
        if self.limit == 0 or first > self.until:
            return limits
        return Limits(limits.bytes_max, min(self.limit, limits.messages_max), limits.submissions_max, limits.age_s_max)

    def exhausted(self, cut: Sequence[Message]) -> bool:
        """Whether the cut is a single message that has killed its decoder `DEATHS_TOLERATED` times."""
        return len(cut) == 1 and self.size == 1 and self.first == cut[0].sequence and self.deaths >= DEATHS_TOLERATED
