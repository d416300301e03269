"""Who may import what. Each folder of the package says so itself, in its docstring; this test holds the code to it.

    Imports: errors, protocol.      what it imports of ours: exactly this, and nothing that imports it back
    Libraries: msgspec, zstandard.  what it imports beside that and the standard library
    Pure.                           it does no I/O, and reaches nothing that does
    A role.                         it runs as a process of its own, so it reaches no other role

Above that, the docstring of a folder lists its modules and subfolders, each with what it is for.

Nothing passes because a list here forgot it: a folder or a module at the top that says nothing fails.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import bronze

PACKAGE = Path(bronze.__file__).parent
TESTS = Path(__file__).parents[1]

#: They join everything, so they may import everything; nothing imports them.
ROOTS = {"__main__", "wiring"}
#: The standard library's ways to the outside. What is pure imports none of them.
OUTSIDE = {
    "asyncio",
    "http",
    "multiprocessing",
    "os",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
}
#: Libraries that only compute. What is pure imports no others.
COMPUTING = {"msgspec", "pyarrow", "uuid_utils", "zstandard"}
#: What speaks to the Bronze bucket, and to the buckets of those who send files.
S3 = {"servers.s3", "publisher.object_files"}
#: Libraries that speak to a server, and the module that does, one for each server.
CLIENTS = {"boto3": S3, "botocore": S3, "nats": {"servers.jetstream"}, "uvicorn": {"api.connection"}}
#: Classes with a constructor that others than `wiring` make, since they live as long as one piece of work.
MADE_PER_PIECE = {
    "SpooledBody": "a request's body",
    "BodyShare": "what a request's body uses",
    "SubmissionTelemetry": "a request's span and measurements",
    "Progress": "a command's progress bar",
    "UploadTelemetry": "an object's spans and measurements",
    "BucketErasure": "a search for a person's records",
    "QueueErasure": "the lanes that it is about",
    "RowSearch": "what was read of a table",
}


@dataclass(frozen=True)
class Statement:
    """What a folder says of itself."""

    imports: frozenset[str]
    libraries: frozenset[str]
    pure: bool
    role: bool

    @classmethod
    def of(cls, docstring: str) -> "Statement | None":
        text = " ".join(docstring.split())
        imports = re.search(r"Imports: ([\w, ]+)\.", text)
        if imports is None:
            return None
        libraries = re.search(r"Libraries: ([\w, ]+)\.", text)
        return cls(
            imports=_names(imports[1]),
            libraries=_names(libraries[1] if libraries else "none"),
            pure=re.search(r"(?<!\w)Pure\.", text) is not None,
            role=re.search(r"(?<!\w)A role\.", text) is not None,
        )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",")) - {"none"}


def _module(file: Path) -> str:
    """`protocol.chain` for service/bronze/protocol/chain.py; a package has its folder's name."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES: Mapping[str, Path] = {_module(file): file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"}
FOLDERS = sorted({module.partition(".")[0] for module in MODULES})


def statement(folder: str) -> Statement | None:
    return Statement.of(ast.get_docstring(ast.parse(MODULES[folder].read_text())) or "")


@cache
def _imported(file: Path) -> frozenset[str]:
    """What a file imports, anywhere in it: `from a import b` is `a.b`, whether that is a module or a name of one."""

    def found() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    yield from (alias.name for alias in names)
                case ast.ImportFrom(module=str(module), names=names, level=0):
                    yield from (f"{module}.{alias.name}" for alias in names)

    return frozenset(found())


def ours(module: str) -> set[str]:
    """The modules of ours that a module imports."""
    names = {name.removeprefix("bronze.") for name in _imported(MODULES[module]) if name.startswith("bronze.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys() - {module}


def outside(module: str) -> set[str]:
    """The libraries that a module imports, the standard library's among them."""
    return {name.partition(".")[0] for name in _imported(MODULES[module])} - {"bronze"}


def libraries(module: str) -> set[str]:
    return outside(module) - sys.stdlib_module_names


def modules_of(folder: str) -> list[str]:
    return [module for module in MODULES if module.partition(".")[0] == folder]


def folders_imported(folder: str) -> set[str]:
    """A package's own `__init__` counts where something of it is used: `from bronze.telemetry import Telemetry`."""
    found = {name.partition(".")[0] for module in modules_of(folder) for name in ours(module)}
    return found - {folder}


def reached(module: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """All modules of ours that a module imports, directly or through others."""
    seen |= {module}
    for name in ours(module) - seen:
        seen |= reached(name, seen)
    return seen


def test_the_walk_sees_what_is_imported() -> None:
    """If it saw nothing, every test here would pass."""
    assert {"protocol.chain", "protocol.message", "errors"} <= reached("objects.encoder")
    assert "boto3" in {library for module in reached("wiring.servers") for library in outside(module)}
    assert "NatsQueue" in _constructed("servers.queue")


@pytest.mark.parametrize(
    "folder", sorted(file.parent for file in PACKAGE.rglob("*/__init__.py")), ids=lambda folder: folder.name
)
def test_a_folder_lists_what_it_contains(folder: Path) -> None:
    """As `name, name  purpose` or `name/  purpose`, one line each."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    listed = [
        name
        for names in re.findall(r"^([\w/]+(?:, [\w/]+)*) {2,}\S", docstring, re.MULTILINE)
        for name in names.split(", ")
    ]
    modules = [file.stem for file in folder.glob("*.py") if file.name != "__init__.py"]
    subfolders = [f"{child.name}/" for child in folder.iterdir() if child.is_dir() and child.name != "__pycache__"]
    assert sorted(listed) == sorted(modules + subfolders)


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ROOTS])
def test_a_folder_imports_what_it_says_it_does(folder: str) -> None:
    says = statement(folder)
    assert says, f"the docstring of {folder} does not say what it imports"
    assert folders_imported(folder) == says.imports
    assert {library for module in modules_of(folder) for library in libraries(module)} == says.libraries


def test_folders_import_one_another_in_one_direction() -> None:
    """There is an order of the folders in which each imports only those before it."""
    left = {folder: folders_imported(folder) for folder in FOLDERS}
    while left:
        free = {folder for folder, imports in left.items() if not imports & left.keys()}
        assert free, f"these import one another in a circle: {left}"
        left = {folder: imports for folder, imports in left.items() if folder not in free}


def test_no_module_imports_itself_through_others() -> None:
    circles = {module for module in MODULES for name in ours(module) if module in reached(name)}
    assert circles == set()


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if (says := statement(folder)) and says.pure])
def test_what_is_pure_reaches_nothing_outside(folder: str) -> None:
    for module in modules_of(folder):
        for name in reached(module):
            assert not outside(name) & OUTSIDE, name
            assert libraries(name) <= COMPUTING, name


def test_what_decides_is_pure() -> None:
    """What the proofs of delivery rest on; a docstring cannot drop it unseen."""
    assert {"errors", "protocol", "records"} <= {
        folder for folder in FOLDERS if (says := statement(folder)) and says.pure
    }


def test_the_floor_of_coverage_is_on_what_is_pure() -> None:
    """And on objects, which are pure but for the reading from the bucket."""
    config = ConfigParser()
    config.read(TESTS / "pure.coveragerc")
    covered = {
        Path(pattern).relative_to("service/bronze").parts[0].removesuffix(".py")
        for pattern in config["report"]["include"].split()
    }
    assert covered == {folder for folder in FOLDERS if (says := statement(folder)) and says.pure} | {"objects"}


@pytest.mark.parametrize(("library", "edges"), sorted(CLIENTS.items()))
def test_one_module_speaks_to_each_server(library: str, edges: set[str]) -> None:
    assert {module for module in MODULES if library in libraries(module)} == edges


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if (says := statement(folder)) and says.role])
def test_roles_never_reach_roles(folder: str) -> None:
    """They share the queue, the bucket and what is written down, and nothing else."""
    roles = {name for name in FOLDERS if (says := statement(name)) and says.role} | ROOTS
    for module in modules_of(folder):
        assert not {name.partition(".")[0] for name in reached(module)} & (roles - {folder}), module


def _constructed(module: str) -> set[str]:
    """The classes with a constructor of their own that a module defines, but for exceptions."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ClassDef):
            exception = any(ast.unparse(base).endswith(("Error", "Exception", "Unavailable")) for base in node.bases)
            constructor = any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in node.body)
            if constructor and not exception:
                found.add(node.name)
    return found


def _made(module: str) -> set[str]:
    """The names that a module calls, or calls a method of, and has imported: `Claims(…)`, `JetStream.connect(…)`."""
    tree = ast.parse(MODULES[module].read_text())
    imported = {
        (alias.asname or alias.name): alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bronze.")
        for alias in node.names
    }
    called: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
                called.add(name)
    return {imported[name] for name in called & imported.keys()}


def test_only_the_composition_root_builds() -> None:
    """Whoever needs a part is given it. Pure classes are computing, and a publisher composes what it alone has."""
    composed = {"servers", "lineage", "api", "consumer", "canary", "admin"}
    parts = {name for folder in composed for module in modules_of(folder) for name in _constructed(module)}
    assert {"NatsQueue", "S3Bucket", "LaneWriter"} <= parts
    builders = {
        (module, name)
        for module in MODULES
        if module.partition(".")[0] not in ROOTS
        for name in _made(module) & parts - MADE_PER_PIECE.keys()
    }
    assert builders == set()


def test_ingest_knows_no_http() -> None:
    """So the model of delivery checks the code that runs, and no web framework."""
    reached_in_api = {module for module in reached("api.ingest") if module.startswith("api.")}
    assert {"api.ingest", "api.submit_telemetry"} == reached_in_api
    assert not {library for module in reached_in_api for library in libraries(module)} & {"fastapi", "starlette"}


def test_system_tests_import_nothing_of_ours() -> None:
    """They see what a user sees, so that a mistake of ours cannot hide itself."""
    for file in (TESTS / "system").rglob("*.py"):
        assert not {name for name in _imported(file) if name.partition(".")[0] == "bronze"}, file


def test_nothing_but_tests_imports_tests() -> None:
    """What others need too stands where both may import it, in `local`."""
    others = [
        file
        for folder in ("benchmarks", "docs", "grafana", "local", "prometheus", "samples", "service")
        for file in (TESTS.parent / folder).rglob("*.py")
    ]
    assert TESTS.parent / "benchmarks" / "outage_volume.py" in others
    assert [file for file in others if any(name.partition(".")[0] == "tests" for name in _imported(file))] == []


def test_the_table() -> None:
    """What may import what, lowest first: `pytest -s tests/unit/test_layers.py -k table` prints it."""
    lines = []
    left = {folder: folders_imported(folder) for folder in FOLDERS}
    while left:
        free = sorted(folder for folder, imports in left.items() if not imports & left.keys())
        for folder in free:
            says = statement(folder)
            marks = " ".join(
                mark for mark, there in (("pure", says and says.pure), ("role", says and says.role)) if there
            )
            lines.append(f"{folder:<12}{marks:<6}{', '.join(sorted(left.pop(folder))) or '-'}")
    legend = (
        "Each line is a folder or a module of service/bronze, and all that it imports of the others; it may import\n"
        "only what is above it. pure: does no I/O; role: runs as a process, and imports no other role."
    )
    print("\n" + "\n".join([legend, "", *lines]))  # noqa: T201  the table is what it is for
    assert len(lines) == len(FOLDERS)
