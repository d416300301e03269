"""Numbers of things in the output of commands.

Pure. Imports: none.
Libraries: none.
"""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`1 record`, `2,107 records`; `plural` is needed if it is not the singular with an s."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
