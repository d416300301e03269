"""The cursor of a follower of the HTTP feed: what it has received, per lane and epoch.

A catalog that is rebuilt is another stream, and a change of lanes begins new epochs. Neither changes what a cursor
means, since the last message of an object and the epoch of its lane are in the object itself.
"""

import base64
import binascii
import hashlib
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated

import msgspec

from bronze.errors import Refusal, Refused
from bronze.protocol.lane import Lane

#: The first part of a cursor's text: the version of its format.
VERSION = "1"
#: The longest text of a cursor, which has to fit into the line of a request.
CURSOR_CHARS_MAX = 24 * 2**10
#: The largest document in it, so that a small text cannot expand without a limit.
DOCUMENT_BYTES_MAX = 96 * 2**10
#: Separate ranges of removed messages that a cursor remembers; of more, it forgets the first ones. After the catalog
#: was rebuilt, their removals are sent again.
RANGES_MAX = 256
#: Level 1 is twice as fast as the default, for texts that are a tenth longer.
COMPRESSION = 1

_Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Source = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}\Z")]
_Epoch = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{8}T[0-9]{9}\Z")]
_Range = tuple[_Sequence, _Sequence]


class _LaneState(msgspec.Struct, frozen=True, array_like=True):
    source: _Source
    number: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    epoch: _Epoch
    last: _Sequence
    removed: list[_Range] = []

    @property
    def lane(self) -> Lane:
        return Lane(self.source, self.number, self.epoch)


class _Document(msgspec.Struct, frozen=True, array_like=True):
    system: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    lanes: list[_LaneState]
    stream: Annotated[str, msgspec.Meta(max_length=64)]
    removals: dict[_Source, _Sequence]


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of messages, each from a first to a last one. Ranges that touch are one range."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()

    def __contains__(self, sequence: int) -> bool:
        place = bisect_right(self.firsts, sequence) - 1
        return place >= 0 and sequence <= self.lasts[place]

    def cover(self, first: int, last: int) -> bool:
        """Whether all messages from `first` to `last` are in one of these ranges."""
        place = bisect_right(self.firsts, first) - 1
        return place >= 0 and last <= self.lasts[place]

    def __len__(self) -> int:
        return len(self.firsts)

    def with_range(self, first: int, last: int) -> "Ranges":
        """These ranges, and the messages from `first` to `last`."""
        begin = bisect_left(self.lasts, first - 1)
        end = bisect_right(self.firsts, last + 1)
        first = min(first, *self.firsts[begin:end][:1]) if begin < end else first
        last = max(last, *self.lasts[begin:end][-1:]) if begin < end else last
        return Ranges((*self.firsts[:begin], first, *self.firsts[end:]), (*self.lasts[:begin], last, *self.lasts[end:]))

    def newest(self, count: int) -> "Ranges":
        """The last `count` of them."""
        return Ranges(self.firsts[-count:], self.lasts[-count:]) if count else Ranges()


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """What a follower has received.

    Of each lane, the objects up to the message `positions`, and the removals of the messages in `removed`. `removals`
    are the sequences up to which the removals of each source on the catalog's stream `stream` were read: they save
    reading them again, and are void if the stream was replaced.
    """

    positions: Mapping[Lane, int] = field(default_factory=dict)
    removed: Mapping[Lane, Ranges] = field(default_factory=dict)
    stream: str = ""
    removals: Mapping[str, int] = field(default_factory=dict)

    def after_object(self, lane: Lane, last: int) -> "FeedCursor":
        """The cursor after the object that ends with message `last` of a lane."""
        return replace(self, positions={**self.positions, lane: last})

    def after_removal(self, lane: Lane, first: int, last: int) -> "FeedCursor":
        """The cursor after the removal of messages of a lane."""
        ranges = self.removed.get(lane, Ranges()).with_range(first, last)
        return replace(self, removed={**self.removed, lane: ranges})

    def with_removals_read(self, stream: str, read: Mapping[str, int]) -> "FeedCursor":
        """The cursor after the removals on a stream, up to a sequence for each of these sources."""
        before = self.removals if stream == self.stream else {}
        return replace(self, stream=stream, removals={**before, **read})

    def removals_read(self, stream: str, source: str) -> int:
        """The sequence on a stream up to which the removals of a source were read."""
        return self.removals.get(source, 0) if stream == self.stream else 0

    def encode(self, system: str) -> str:
        """The cursor's text, for clients of a system. Equal cursors have equal texts.

        Raises `Refused` if it would be too long.
        """
        removed = self._newest_removed()
        lanes = sorted({*self.positions, *removed}, key=lambda lane: (lane.source, lane.epoch, lane.number))
        document = _Document(
            system,
            [
                _LaneState(
                    lane.source,
                    lane.number,
                    lane.epoch,
                    self.positions.get(lane, 0),
                    list(zip(ranges.firsts, ranges.lasts, strict=True)) if (ranges := removed.get(lane)) else [],
                )
                for lane in lanes
            ],
            self.stream,
            dict(sorted(self.removals.items())),
        )
        encoded = msgspec.json.encode(document)
        text = f"{VERSION}.{base64.urlsafe_b64encode(zlib.compress(encoded, COMPRESSION)).rstrip(b'=').decode()}"
        if len(text) > CURSOR_CHARS_MAX or len(encoded) > DOCUMENT_BYTES_MAX:
            raise Refused(
                Refusal.INVALID_CURSOR,
                f"The cursor would be longer than {CURSOR_CHARS_MAX} characters, because the data has {len(lanes)} "
                "lanes. Follow fewer sources per request, with the parameter source.",
                limit=CURSOR_CHARS_MAX,
            )
        return text

    def _newest_removed(self) -> Mapping[Lane, Ranges]:
        """The ranges, without the first ones of the lanes with the most if there are too many."""
        removed = {lane: ranges for lane, ranges in self.removed.items() if ranges}
        excess = sum(map(len, removed.values())) - RANGES_MAX
        while excess > 0:
            longest = max(removed, key=lambda lane: len(removed[lane]))
            kept = max(1, len(removed[longest]) // 2, len(removed[longest]) - excess)
            if kept == len(removed[longest]):
                break  # a range per lane; the length of the text bounds these
            excess -= len(removed[longest]) - kept
            removed[longest] = removed[longest].newest(kept)
        return removed

    @classmethod
    def decode(cls, text: str, system: str) -> "FeedCursor":
        """The cursor that a client sent. Raises `Refused` if it is not one of this system."""
        document = _document(text)
        if document.system != system:
            raise Refused(
                Refusal.INVALID_CURSOR,
                "The cursor is of another system: of another bucket or prefix. Begin without a cursor.",
            )
        states = {state.lane: state for state in document.lanes}
        if len(states) < len(document.lanes):
            raise _invalid("it names a lane twice")
        ranges = {lane: _ranges(state.removed) for lane, state in states.items() if state.removed}
        positions = {lane: state.last for lane, state in states.items() if state.last}
        return cls(positions, ranges, document.stream, document.removals)


def system_of(bucket: str, prefix: str) -> str:
    """What cursors of this system say of it."""
    return hashlib.sha256(f"{bucket}\0{prefix}".encode()).hexdigest()[:16]


def _document(text: str) -> _Document:
    if len(text) > CURSOR_CHARS_MAX:
        raise _invalid(f"it is longer than {CURSOR_CHARS_MAX} characters")
    version, _, encoded = text.partition(".")
    if version != VERSION:
        raise _invalid(f"this version of Bronze reads cursors that begin with {VERSION}.")
    try:
        compressed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        decompressor = zlib.decompressobj()
        document = decompressor.decompress(compressed, DOCUMENT_BYTES_MAX)
        if not decompressor.eof or decompressor.unused_data:
            raise _invalid("it is incomplete, or too large")
        return msgspec.json.decode(document, type=_Document)
    except (binascii.Error, ValueError, zlib.error, RecursionError) as error:
        raise _invalid("it was changed, or is no cursor") from error


def _ranges(pairs: list[_Range]) -> Ranges:
    firsts, lasts = zip(*pairs, strict=True)
    ordered = [sequence for pair in pairs for sequence in pair]
    if any(later < earlier for earlier, later in pairwise(ordered)):
        raise _invalid("its ranges of removed messages are not in order")
    return Ranges(firsts, lasts)


def _invalid(reason: str) -> Refused:
    return Refused(
        Refusal.INVALID_CURSOR, f"The cursor is not valid: {reason}. Send it exactly as the API returned it."
    )
