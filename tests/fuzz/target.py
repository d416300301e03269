"""One target under atheris, until its time is over or it has found something: `make fuzz-intake` starts it."""

import sys

import atheris

with atheris.instrument_imports(include=["bronze"]):
    from tests.fuzz import invariants


def main() -> None:
    target, *arguments = sys.argv[1:]
    invariants.bound_memory(2 * 2**30)
    atheris.Setup([sys.argv[0], *arguments], lambda data: invariants.check(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
