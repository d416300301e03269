"""A checked submission: its messages' payloads in a spool, with the size and digest of its body."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import msgspec

from bronze.protocol.message import AcceptedSubmission, MessageKind, Part
from bronze.records.refusals import too_large


@dataclass(frozen=True, slots=True)
class MessageSlice:
    """One message's payload, as a place in the spool."""

    start: int
    end: int
    first_record: int
    records: int
    kind: MessageKind
    zstd: bool = False


class CheckedSubmission:
    """A submission that was checked whole: what its messages hold, spooled within a memory bound."""

    def __init__(
        self,
        spool: IO[bytes],
        slices: Sequence[MessageSlice],
        *,
        tally: "BodyDigest",
        records: int,
        classifications: Iterable[str],
        unclassified: int,
        invalid: Mapping[str, int],
    ) -> None:
        self._spool = spool
        self._slices = slices
        self.records = records
        self.body_bytes = tally.bytes
        self.digest = tally.digest()
        #: the classification_ids that records name, in order of appearance
        self.classifications = tuple(classifications)
        #: how many records name none
        self.unclassified = unclassified
        #: how many records were rejected, by what is wrong with them
        self.invalid = invalid

    @property
    def rejected(self) -> int:
        return sum(self.invalid.values())

    @property
    def messages(self) -> int:
        return len(self._slices)

    def parts(self, accepted: AcceptedSubmission) -> Iterator[tuple[Part, bytes]]:
        """The submission's messages, in order."""
        for number, piece in enumerate(self._slices, start=1):
            self._spool.seek(piece.start)
            payload = self._spool.read(piece.end - piece.start)
            if piece.kind is MessageKind.REJECTED:
                payload = msgspec.json.encode(accepted) + b"\n" + payload
            count = len(self._slices)
            yield Part(accepted, number, count, piece.first_record, piece.records, piece.kind, piece.zstd), payload

    def close(self) -> None:
        self._spool.close()


class BodyDigest:
    """The digest and the size of a decoded body, within a bound."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._sha = hashlib.sha256()
        self.bytes = 0

    def add(self, piece: bytes) -> None:
        """Raises `Refused` past the bound."""
        self.bytes += len(piece)
        if self.bytes > self._bytes_max:
            raise too_large(self._bytes_max)
        self._sha.update(piece)

    def digest(self) -> str:
        """SHA-256, in hexadecimal."""
        return self._sha.hexdigest()
