"""Quarantine: the keys of what became no rows, and the user metadata beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from bronze.protocol.lane import Lane
from bronze.protocol.message import MessageKind

FOLDER = "quarantine/"
#: How keys end: rejected records, a message that cannot be decoded, and the mark of what was replayed.
REJECTED = ".rejected"
MESSAGE = ".message"
REPLAYED = ".replayed"
CONTENT_TYPE = "application/octet-stream"
#: An object's user metadata is 2 KB in all.
REASON_CHARS_MAX = 512
FILE_PATH_CHARS_MAX = 1_024


def source_folder(source: str) -> str:
    """Where the quarantine of a source is."""
    return f"{FOLDER}source={source}/"


def quarantine_key(lane: Lane, sequence: int, kind: MessageKind = MessageKind.RECORDS) -> str:
    """The key of a message in quarantine; its end says whether it holds rejected records."""
    end = REJECTED if kind is MessageKind.REJECTED else MESSAGE
    return f"{source_folder(lane.source)}{lane.epoch}-{lane.number}-{sequence:012}{end}"


def is_quarantined(key: str) -> bool:
    """Whether records or a message lie under a key: a mark beside them is neither."""
    return key.startswith(FOLDER) and key.endswith((REJECTED, MESSAGE))


def source_of(key: str) -> str:
    """The source that a key in quarantine belongs to."""
    return key.removeprefix(f"{FOLDER}source=").partition("/")[0]


@dataclass(frozen=True, slots=True)
class QuarantineMetadata:
    """The user metadata of an object in quarantine.

    `subject`, `sequence` and `time` are the message's, by the queue; `file_path` is the object that lists it.
    """

    reason: str
    subject: str
    sequence: str
    time: str
    file_path: str

    def encode(self) -> dict[str, str]:
        """As S3 takes it: ASCII, and cut to its bounds."""
        return {
            "bronze-reason": self.reason.encode("ascii", "replace").decode()[:REASON_CHARS_MAX],
            "bronze-subject": self.subject,
            "bronze-sequence": self.sequence,
            "bronze-time": self.time,
            "bronze-file-path": quote(self.file_path, safe="/=")[:FILE_PATH_CHARS_MAX],
        }

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Self:
        """What is missing is empty."""
        return cls(
            reason=metadata.get("bronze-reason", ""),
            subject=metadata.get("bronze-subject", ""),
            sequence=metadata.get("bronze-sequence", ""),
            time=metadata.get("bronze-time", ""),
            file_path=unquote(metadata.get("bronze-file-path", "")),
        )

    @property
    def submission_id(self) -> str:
        return self.subject.rpartition(".")[2]
