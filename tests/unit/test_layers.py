"""Who may import what (design: layout). What decides is pure, clients are at the edges, and one module builds."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bronze

PACKAGE = Path(bronze.__file__).parent
TESTS = Path(__file__).parents[1]

PURE = ["sources", "encodings", "rejected", "submission", "chain", "parquet", "columnar", "declared", "preview"]
ROLES = {"bronze.api", "bronze.consumer", "bronze.publisher", "bronze.lineage", "bronze.quarantine"}
CLIENTS = {"nats", "boto3", "botocore", "fastapi", "starlette", "httpx", "uvicorn", "opentelemetry"}
#: What only the composition root makes.
BUILT = {"NatsQueue", "NatsCatalog", "Change", "Rebuild", "NatsLock", "S3Bucket", "LaneWriter", "Api"}


def name_of(file: Path) -> str:
    return ".".join(["bronze", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


@cache
def imports(file: Path) -> frozenset[str]:
    """Each module that a file imports, anywhere in it; `from a import b` is both `a` and `a.b`."""

    def found() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    yield from (alias.name for alias in names)
                case ast.ImportFrom(module=str(module), names=names, level=0):
                    yield from (module, *(f"{module}.{alias.name}" for alias in names))

    return frozenset(found())


def reached(module: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """All that a module imports, directly or through modules of ours."""
    direct = imports(MODULES[module]) - seen
    seen |= direct
    for name in direct & MODULES.keys():
        seen |= reached(name, seen)
    return seen


def importers(library: str) -> set[str]:
    return {
        module for module, file in MODULES.items() if any(name.partition(".")[0] == library for name in imports(file))
    }


def test_the_walk_sees_what_is_imported() -> None:
    """If it saw nothing, every test here would pass."""
    assert {"bronze.chain", "bronze.submission", "bronze.errors"} <= reached("bronze.parquet")
    assert "boto3" in reached("bronze.wiring")


@pytest.mark.parametrize("module", PURE)
def test_what_decides_reaches_no_client_library(module: str) -> None:
    """Not even through another module of ours."""
    assert {name.partition(".")[0] for name in reached(f"bronze.{module}")} & CLIENTS == set()


@pytest.mark.parametrize(
    ("library", "edge"), [("nats", "bronze.jetstream"), ("boto3", "bronze.bucket"), ("botocore", "bronze.bucket")]
)
def test_one_module_speaks_to_each_client(library: str, edge: str) -> None:
    assert importers(library) == {edge}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_roles_never_reach_roles(role: str) -> None:
    """They share the queue, the bucket and their contracts, and nothing else."""
    assert reached(role) & (ROLES | {"bronze.wiring"}) - {role} == set()


def test_only_the_composition_root_builds() -> None:
    """Whoever needs a part is given it, as a `Protocol`."""
    builders = {
        module
        for module, file in MODULES.items()
        if any(name.startswith("bronze.") and name.rpartition(".")[2] in BUILT for name in imports(file))
    }
    assert builders == {"bronze.wiring"}


def test_system_tests_import_nothing_of_ours() -> None:
    """They see what a user sees, so that a mistake of ours cannot hide itself."""
    for file in (TESTS / "system").rglob("*.py"):
        assert not {name for name in imports(file) if name.partition(".")[0] == "bronze"}, file
