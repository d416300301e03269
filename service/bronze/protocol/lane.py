"""Lanes: one ordered stream per source and number, with the names of its streams and subjects."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lane:
    """One ordered stream of a source's messages, since `epoch` (when its stream was created)."""

    source: str
    number: int
    epoch: str

    @property
    def stream(self) -> str:
        return f"{stream_prefix(self.source, self.number)}_{self.epoch}"

    @property
    def since(self) -> str:
        """When the lane began, as the beginning of a server's time: to the hour."""
        e = self.epoch
        return f"{e[:4]}-{e[4:6]}-{e[6:8]}T{e[9:11]}"

    @property
    def entry_subject(self) -> str:
        return f"catalog.{self.source}.{self.number}.{self.epoch}"


def stream_prefix(source: str, number: int | str) -> str:
    return f"BRONZE_{source.upper()}_{number}"


def lane_subject(source: str, number: int | str, submission_id: str = "*") -> str:
    return f"bronze.{source}.{number}.{submission_id}"
