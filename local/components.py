"""What the system consists of, and under which licences: `make sbom`.

It writes a CycloneDX document for the Python packages, for each program that is compiled here and for Zipkin's jar, and
a list of all components with their licences.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from local.builds import (
    COLLECTOR,
    REPOSITORY,
    ZIPKIN_VERSION,
    Built,
    build_all,
    build_tool,
    go_binaries,
    go_environment,
    modules,
    version,
)
from local.programs import LocalError

TOOL_S_MAX = 600

#: Licences with conditions for whoever runs a service, or that are not open source: AGPL, SSPL, Business Source License
#: (SPDX: BUSL; SPDX's BSL-1.0 is Boost's), Elastic License, Commons Clause.
FORBIDDEN = re.compile(
    r"AGPL|Affero|SSPL|Server Side Public|BUSL|BSL[- ]1\.1|Business Source|Elastic|Commons.Clause", re.IGNORECASE
)
#: Licences that are in the component, but not in its metadata.
READ_BY_US = {
    "github.com/twmb/murmur3": "BSD-3-Clause",  # LICENSE, with a name that no tool recognises
    "protobuf": "BSD-3-Clause",  # LICENSE of the wheel
    "supervisor": "BSD-3-Clause-Modification",  # LICENSES.txt: Repoze Public License
}
#: Programs that are run as they are, neither imported nor compiled here. Their libraries seldom state a licence.
RUN_ONLY = {"zipkin"}


@dataclass(frozen=True, order=True)
class Component:
    part: str
    name: str
    version: str
    #: Empty if the component states none.
    licence: str


def write_sbom(folder: Path, say: Callable[[str], None]) -> None:
    """Writes all documents and the list. Raises `LocalError` if a licence is forbidden or not known."""
    built = build_all(say)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents = {"python": _python(folder / "python.cdx.json"), "zipkin": _jar(built, folder / "zipkin.cdx.json")}
    for program in built.compiled:
        # The collector does not know its own version, and then the tool does not find the licences of all modules.
        options = ("-version", f"v{version(COLLECTOR)}") if program == built.collector else ()
        documents[program.name] = _compiled(program, folder / f"{program.name}.cdx.json", say, *options)
    components = sorted(found for part, document in documents.items() for found in read(part, document))
    listing = folder / "licences.tsv"
    with listing.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(field.name for field in fields(Component))
        table.writerows(map(astuple, components))
    say(f"{len(components)} components of {len(documents)} parts are in {folder.relative_to(REPOSITORY)}")
    if wrong := list(faults(components)):
        raise LocalError("licences:\n" + "\n".join(wrong))


def read(part: str, document: Mapping[str, Any]) -> Iterator[Component]:
    """The components of a CycloneDX document."""
    for component in document.get("components", []):
        name = component["name"]
        stated = component.get("licenses") or component.get("evidence", {}).get("licenses", [])
        licence = " AND ".join(dict.fromkeys(map(_licence, stated))) or READ_BY_US.get(name, "")
        yield Component(part, name, component.get("version", ""), licence)


def faults(components: Iterable[Component]) -> Iterator[str]:
    """Why each of these components cannot be used."""
    for component in components:
        subject = f"{component.name} {component.version} ({component.part})"
        if FORBIDDEN.search(component.licence):
            yield f"{subject} has the licence {component.licence}: use something else"
        elif not component.licence and component.part not in RUN_ONLY:
            yield f"{subject} states no licence: read it, and add it to READ_BY_US of local/components.py"


def _licence(choice: Mapping[str, Any]) -> str:
    licence = choice.get("license", {})
    text: str = choice.get("expression") or licence.get("id") or licence["name"]
    return text.rpartition(" :: ")[2].strip()


def _python(file: Path) -> Mapping[str, Any]:
    """Of the environment that `requirements.lock` was installed into."""
    _run(
        [Path(sys.executable).parent / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON"],
        *("--pyproject", str(REPOSITORY / "pyproject.toml"), "--output-file", str(file), sys.executable),
    )
    return _load(file)


def _compiled(program: Path, file: Path, say: Callable[[str], None], *options: str) -> Mapping[str, Any]:
    """Of the modules that Go has written into the program. Their sources are fetched, since licences are only there."""
    sources = ["@".join(line.split()[:2]) for line in sorted(modules(program))]
    with tempfile.TemporaryDirectory() as scratch:
        _run([go_binaries() / "go", "mod", "download"], *sources, cwd=scratch)
    _run(
        [build_tool("cyclonedx-gomod", say), "bin", "-json", "-licenses"], *options, "-output", str(file), str(program)
    )
    return _load(file)


def _jar(built: Built, file: Path) -> Mapping[str, Any]:
    """Of the jars in Zipkin's jar, by their file names."""
    with zipfile.ZipFile(built.zipkin) as jar:
        names = [Path(name).stem for name in jar.namelist() if re.fullmatch(r"BOOT-INF/lib/[^/]+\.jar", name)]
    libraries = [re.fullmatch(r"(.+?)-(\d.*)", name) for name in sorted(names)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "zipkin-server",
                "version": ZIPKIN_VERSION,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": f"pkg:maven/io.zipkin/zipkin-server@{ZIPKIN_VERSION}?classifier=slim",
            }
        },
        "components": [{"type": "library", "name": found[1], "version": found[2]} for found in libraries if found],
    }
    file.write_text(json.dumps(document, indent=2) + "\n")
    return document


def _load(file: Path) -> Mapping[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def _run(command: list[Path | str], *arguments: str, cwd: str | None = None) -> None:
    ended = subprocess.run(
        [*command, *arguments],
        env=go_environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TOOL_S_MAX,
        check=False,
    )
    if ended.returncode:
        raise LocalError(f"{Path(command[0]).name} failed:\n{ended.stdout}")
