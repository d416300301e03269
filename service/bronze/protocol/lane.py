"""Lanes: one ordered stream per source and lane number, with its stream and subject names."""

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
        """When the lane began, to the hour: a prefix of the time format of the queue's server."""
        epoch = self.epoch
        return f"{epoch[:4]}-{epoch[4:6]}-{epoch[6:8]}T{epoch[9:11]}"

    @property
    def entry_subject(self) -> str:
        return f"catalog.{self.source}.{self.number}.{self.epoch}"


def lane_of_entries(subject: str) -> Lane:
    """The lane of a catalog entry's subject."""
    _, source, number, epoch = subject.split(".")
    return Lane(source, int(number), epoch)


def stream_prefix(source: str, number: int | str) -> str:
    return f"BRONZE_{source.upper()}_{number}"


def lane_subject(source: str, number: int | str, submission_id: str = "*") -> str:
    return f"bronze.{source}.{number}.{submission_id}"
