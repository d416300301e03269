"""Erasure: the document of a person's erasure, and the proof of what it has removed. Neither has the person's id.

Both lie below the prefix, in a folder that readers of datasets ignore. The document is created before anything is
changed, the proof when everything is done: so a document without a proof is an erasure that has to be continued.
"""

import hashlib
import secrets
from typing import Literal, Self

import msgspec

FOLDER = ".erased/"
CONTENT_TYPE = "application/json"
#: The version of the proof's form.
PROOF_FORMAT = 1
_DOCUMENT, _PROOF = ".json", ".proof.json"
#: The cost of a hash: 16 MiB and about 50 ms, since ids can be guessed.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What is erased: all records of a classification, or those of a source that meet a condition."""

    classification_id: str | None = None
    source: str | None = None
    where: str | None = None

    @property
    def kind(self) -> Literal["classification_id", "condition"]:
        return "classification_id" if self.classification_id is not None else "condition"


class SelectionHash(msgspec.Struct, frozen=True, kw_only=True):
    """The scrypt hash of a selection with a salt of its own (hexadecimal). Only who knows the selection can check it.

    It is over the classification_id, or over source, a line feed and condition, in UTF-8.
    """

    salt: str
    hash: str
    function: str = f"scrypt n={_SCRYPT_N} r={_SCRYPT_R} p={_SCRYPT_P}"

    @classmethod
    def of(cls, selection: Selection, salt: bytes | None = None) -> Self:
        salt = salt or secrets.token_bytes(16)
        text = selection.classification_id
        if text is None:
            text = f"{selection.source}\n{selection.where}"
        hashed = hashlib.scrypt(text.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=32)
        return cls(salt=salt.hex(), hash=hashed.hex())

    def is_of(self, selection: Selection) -> bool:
        return SelectionHash.of(selection, bytes.fromhex(self.salt)).hash == self.hash


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """The document of an erasure: what is erased, as a hash; who does it, why, and since when (RFC 3339 in UTC)."""

    erasure_id: str
    kind: Literal["classification_id", "condition"]
    source: str | None
    selection: SelectionHash
    erased_by: str
    note: str
    began_at: str

    def key(self, prefix: str) -> str:
        return f"{prefix}/{FOLDER}{self.erasure_id}{_DOCUMENT}"


def proof_key(prefix: str, erasure_id: str) -> str:
    """The key of an erasure's proof."""
    return f"{prefix}/{FOLDER}{erasure_id}{_PROOF}"


def open_documents(keys: list[str]) -> list[str]:
    """Of the keys of a folder, those of documents of erasures without a proof."""
    done = {key.removesuffix(_PROOF) for key in keys if key.endswith(_PROOF)}
    return [key for key in keys if not key.endswith(_PROOF) and key.removesuffix(_DOCUMENT) not in done]


class RewrittenObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object that was rewritten in place."""

    file_path: str
    rows_before: int
    rows_erased: int
    rows_after: int
    bytes_before: int
    bytes_after: int
    sha256_before: str
    sha256_after: str | None


class RewrittenMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message in quarantine that was rewritten in place. `records_erased` is None if it could not be read, and was
    erased as a whole.
    """

    key: str
    records_erased: int | None
    bytes_before: int
    bytes_after: int
    sha256_before: str
    sha256_after: str | None


class LaneRest(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane of the queue still has: so many stored messages with records of the person.

    They are purged when they are older than the grace period; the last one, if it is the `anchor`, when what was
    submitted behind it is.
    """

    lane: str
    messages: int
    anchor: bool


class Searched(msgspec.Struct, frozen=True, kw_only=True):
    """How much was searched."""

    objects: int
    messages_in_quarantine: int
    removal_records: int
    lanes: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure has searched and removed, and what it has not.

    `not_searched` are objects that are missing or damaged, and keys in quarantine of which not all content can be read.
    `old_versions_deleted` counts versions of rewritten keys, if the bucket keeps them; `old_versions_left` are keys
    that still have some, with the reason.
    `tables` is None if no catalog of tables is set. `not_reached` are the copies outside of the bucket and the queue.
    """

    erasure: Erasure
    finished_at: str
    searched: Searched
    objects: list[RewrittenObject]
    quarantine: list[RewrittenMessage]
    removal_records: list[str]
    catalog_rebuilt: bool
    old_versions_deleted: int
    old_versions_left: dict[str, str]
    not_searched: list[str]
    lanes: list[LaneRest]
    tables: list[dict[str, str | int | None]] | None
    not_reached: dict[str, str]
    format: int = PROOF_FORMAT

    @property
    def rows_erased(self) -> int:
        return sum(rewritten.rows_erased for rewritten in self.objects)
