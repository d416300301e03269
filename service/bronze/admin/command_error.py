"""The errors of commands, which an operator has to correct."""

from collections.abc import Iterator
from contextlib import contextmanager

from bronze.errors import Gone, Outage, Unavailable


class CommandError(Exception):
    """A command cannot be executed; the message says why, and what to do."""


@contextmanager
def run_again_if_replaced() -> Iterator[None]:
    """A part of a command that uses the catalog. The advice of `Gone` is for roles: nobody starts a command again."""
    try:
        yield
    except Gone as error:
        raise Unavailable(
            Outage.CONFLICT, "the catalog was replaced meanwhile, by another command: run this command again"
        ) from error
