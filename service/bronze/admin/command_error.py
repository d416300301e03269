"""The error of a command that an operator has to correct."""


class CommandError(Exception):
    """A command cannot be executed; the message says why, and what to do."""
