"""Known vulnerabilities of the Python packages and of the programs that are compiled here: `make audit`.

A check passes only if it has looked everything up. The tools alone are not enough for that: pip-audit calls a package
that its source does not know "skipped", and succeeds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from local.builds import REPOSITORY, build_all, build_tool, go_environment
from local.programs import LocalError

LOCK_FILES = ("requirements.lock", "requirements-uv.lock", "requirements-fuzz.lock", "requirements-plots.lock")
AUDIT_S_MAX = 600


def audit(say: Callable[[str], None]) -> None:
    """Checks everything. Raises `LocalError` with what is vulnerable and with what could not be looked up."""
    pip_audit = Path(sys.executable).parent / "pip-audit"
    errors = []
    for file in LOCK_FILES:
        errors += _reported(say, file, partial(audit_packages, pip_audit, REPOSITORY / file))
    govulncheck = build_tool("govulncheck", say)
    for program in build_all(say).compiled:
        errors += _reported(say, program.name, partial(audit_program, govulncheck, program))
    if errors:
        raise LocalError("\n".join(errors))


def audit_packages(pip_audit: Path, lock: Path) -> list[str]:
    """The vulnerabilities of locked packages, one per line. Raises `LocalError` if a package was not looked up."""
    command: list[Path | str] = [
        pip_audit,
        "--strict",
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
        "--requirement",
        lock,
    ]
    ended = _run(*command, "--progress-spinner", "off")
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise LocalError(_last_line(ended)) from None
    if skipped := [f"{package['name']}: {package['skip_reason']}" for package in packages if "skip_reason" in package]:
        raise LocalError("\n".join(skipped))
    if not packages:
        raise LocalError("it names no package")
    return [
        f"{package['name']} {package['version']}: {found['id']}, corrected in {', '.join(found['fix_versions']) or '-'}"
        for package in packages
        for found in package["vulns"]
    ]


def audit_program(govulncheck: Path, program: Path) -> list[str]:
    """The vulnerabilities of the modules in a program, whether their code can be reached or not, one per line.

    Raises `LocalError` if they could not be looked up.
    """
    ended = _run(govulncheck, "-mode=binary", "-format=json", program)
    if ended.returncode:
        raise LocalError(_last_line(ended))
    messages = _json_documents(ended.stdout)
    if not any("SBOM" in message for message in messages):
        raise LocalError("it names no module")
    findings = [message["finding"] for message in messages if "finding" in message]
    return sorted(
        {
            f"{finding['osv']} in {frame['module']} {frame.get('version', '')}, "
            f"corrected in {finding.get('fixed_version', '-')}"
            for finding in findings
            for frame in finding["trace"][:1]
        }
    )


def _reported(say: Callable[[str], None], subject: str, check: Callable[[], list[str]]) -> list[str]:
    try:
        found = check()
    except LocalError as error:
        return [f"{subject}: not audited: {error}"]
    say(f"{subject}: {len(found)} known vulnerabilities")
    return [f"{subject}: {vulnerability}" for vulnerability in found]


def _json_documents(text: str) -> list[Mapping[str, Any]]:
    decoder, documents, rest = json.JSONDecoder(), [], text.lstrip()
    while rest:
        document, end = decoder.raw_decode(rest)
        documents.append(document)
        rest = rest[end:].lstrip()
    return documents


def _run(*command: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=go_environment() | {"COLUMNS": "200", "HOME": os.environ.get("HOME", "/")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=AUDIT_S_MAX,
        check=False,
    )


def _last_line(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {ended.returncode}"
