"""Quarantine: the keys of its objects, and their user metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from bronze.protocol.lane import Lane
from bronze.protocol.message import MessageKind

FOLDER = "quarantine/"
#: The ends of keys: of rejected records, of a message that cannot be decoded, and of the mark that records were
#: replayed.
REJECTED = ".rejected"
MESSAGE = ".message"
REPLAYED = ".replayed"
CONTENT_TYPE = "application/octet-stream"
#: S3 limits an object's user metadata to 2 KB in all.
REASON_CHARS_MAX = 512
FILE_PATH_CHARS_MAX = 1_024


def source_folder(source: str) -> str:
    """The folder of a source's quarantine."""
    return f"{FOLDER}source={source}/"


def quarantine_key(lane: Lane, sequence: int, kind: MessageKind = MessageKind.RECORDS) -> str:
    """The key of a message in quarantine; its end says whether the message holds rejected records."""
    suffix = REJECTED if kind is MessageKind.REJECTED else MESSAGE
    return f"{keys_of_lane(lane)}{sequence:012}{suffix}"


def keys_of_lane(lane: Lane) -> str:
    """What the keys of a lane's messages in quarantine begin with."""
    return f"{source_folder(lane.source)}{lane.epoch}-{lane.number}-"


def sequence_of(lane: Lane, key: str) -> int:
    """The sequence of a lane's message in quarantine, by its key or by that of a mark."""
    return int(key.removeprefix(keys_of_lane(lane)).partition(".")[0])


def is_quarantined(key: str) -> bool:
    """Whether a key is that of records or a message in quarantine, not that of a mark."""
    return key.startswith(FOLDER) and key.endswith((REJECTED, MESSAGE))


def source_of(key: str) -> str:
    """The source that a key in quarantine belongs to."""
    return key.removeprefix(f"{FOLDER}source=").partition("/")[0]


@dataclass(frozen=True, slots=True)
class QuarantineMetadata:
    """The user metadata of an object in quarantine.

    `subject`, `sequence` and `time` are those of the message in the queue; `file_path` is the object that lists it.
    """

    reason: str
    subject: str
    sequence: str
    time: str
    file_path: str
    #: what the last erasure removed from it; empty if there was none
    erased: str = ""

    def encode(self) -> dict[str, str]:
        """The metadata as S3 accepts it: in ASCII, and cut to its bounds."""
        return {
            "bronze-reason": self.reason.encode("ascii", "replace").decode()[:REASON_CHARS_MAX],
            "bronze-subject": self.subject,
            "bronze-sequence": self.sequence,
            "bronze-time": self.time,
            "bronze-file-path": quote(self.file_path, safe="/=")[:FILE_PATH_CHARS_MAX],
            **({"bronze-erased": self.erased} if self.erased else {}),
        }

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Self:
        """The metadata of an object; missing values are empty."""
        return cls(
            reason=metadata.get("bronze-reason", ""),
            subject=metadata.get("bronze-subject", ""),
            sequence=metadata.get("bronze-sequence", ""),
            time=metadata.get("bronze-time", ""),
            file_path=unquote(metadata.get("bronze-file-path", "")),
            erased=metadata.get("bronze-erased", ""),
        )

    @property
    def submission_id(self) -> str:
        return self.subject.rpartition(".")[2]
