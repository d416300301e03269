"""A checked submission: the payloads of its messages in a spool, and the size and digest of its body."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import msgspec

from bronze.protocol.message import AcceptedSubmission, MessageKind, Part
from bronze.records.refusals import too_large


@dataclass(frozen=True, slots=True)
class MessageSlice:
    """The place of one message's payload in the spool, and the message's facts."""

    start: int
    end: int
    first_record: int
    records: int
    kind: MessageKind
    zstd: bool = False


class CheckedSubmission:
    """A completely checked submission; the payloads of its messages are spooled within a memory bound."""

    def __init__(
        self,
        spool: IO[bytes],
        slices: Sequence[MessageSlice],
        *,
        tally: "BodyDigest",
        records: int,
        classifications: Iterable[str],
        unclassified: int,
        rejected_by_code: Mapping[str, int],
        undeclared: Iterable[str] = (),
    ) -> None:
        self._spool = spool
        self._slices = slices
        self.records = records
        self.body_bytes = tally.bytes
        self.digest = tally.digest()
        #: the classification_ids that the records name, in order of appearance
        self.classifications = tuple(classifications)
        #: the number of records that name none
        self.unclassified = unclassified
        #: the number of rejected records, by error code
        self.rejected_by_code = rejected_by_code
        #: the names of fields that are not declared, as they are shown; of many, only the first
        self.undeclared = tuple(undeclared)
        self._on_close: list[Callable[[], None]] = []

    @property
    def rejected(self) -> int:
        return sum(self.rejected_by_code.values())

    @property
    def messages(self) -> int:
        return len(self._slices)

    def parts(self, accepted: AcceptedSubmission) -> Iterator[tuple[Part, bytes]]:
        """The submission's messages, in order."""
        count = len(self._slices)
        for number, place in enumerate(self._slices, start=1):
            self._spool.seek(place.start)
            payload = self._spool.read(place.end - place.start)
            if place.kind is MessageKind.REJECTED:
                payload = msgspec.json.encode(accepted) + b"\n" + payload
            yield Part(accepted, number, count, place.first_record, place.records, place.kind, place.zstd), payload

    @property
    def spooled_bytes(self) -> int:
        return max((place.end for place in self._slices), default=0)

    def on_close(self, act: Callable[[], None]) -> None:
        self._on_close.append(act)

    def close(self) -> None:
        self._spool.close()
        for act in self._on_close:
            act()


class BodyDigest:
    """Computes the digest and the size of a decoded body, and refuses a body that is too large."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._sha = hashlib.sha256()
        self.bytes = 0

    def add(self, piece: bytes) -> None:
        """Add a piece of the body; raises `Refused` if the body is larger than the bound."""
        self.bytes += len(piece)
        if self.bytes > self._bytes_max:
            raise too_large(self._bytes_max, "BRONZE_BODY_BYTES_MAX")
        self._sha.update(piece)

    def digest(self) -> str:
        """SHA-256, in hexadecimal."""
        return self._sha.hexdigest()
