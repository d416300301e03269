"""Secrets are random, made once, and readable by nobody else."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from local.secret_files import SecretFiles, add_required

COMPOSE = "services: {a: ${FIRST:?run make secrets}, b: ${SECOND:?x}, c: ${FIRST:?x}, d: $${NOT:?x}, e: ${OTHER:-1}}"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    secret = SecretFiles(tmp_path / "up" / "secrets").value("queue")
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    again = SecretFiles(tmp_path / "up" / "secrets")
    assert (again.value("queue"), again.path("queue").read_text()) == (secret, secret)
    assert again.value("bucket") != secret


def test_only_this_user_reads_secrets(tmp_path: Path) -> None:
    """Whatever the umask is, and whoever created the folder before."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        path = SecretFiles(folder).path("queue")
    finally:
        os.umask(before)
    assert (mode(folder), mode(path)) == (0o700, 0o600)


def test_who_asks_at_once_gets_the_same_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(lambda _: SecretFiles(tmp_path / "secrets").value("queue"), range(64)))
    assert len(values) == 1
    assert [file.name for file in (tmp_path / "secrets").iterdir()] == ["queue"]


def test_composes_secrets_are_added_and_never_replaced(tmp_path: Path) -> None:
    compose, settings = tmp_path / "compose.yaml", tmp_path / ".env"
    compose.write_text(COMPOSE)
    settings.write_text("# mine\nSECOND=own\nFIRST=\nOTHER=2")
    settings.chmod(0o644)
    assert add_required(compose, settings) == ["FIRST"]
    written = settings.read_text()
    assert re.fullmatch(r"# mine\nSECOND=own\nFIRST=\nOTHER=2\nFIRST=[0-9a-f]{64}\n", written)
    assert mode(settings) == 0o600
    assert add_required(compose, settings) == []
    assert settings.read_text() == written
    assert sorted(file.name for file in tmp_path.iterdir()) == [".env", "compose.yaml"]


def test_a_file_of_settings_is_made(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    assert add_required(tmp_path / "compose.yaml", tmp_path / ".env") == ["FIRST", "SECOND"]
    assert re.fullmatch(r"FIRST=([0-9a-f]{64})\nSECOND=(?!\1)[0-9a-f]{64}\n", (tmp_path / ".env").read_text())
    assert mode(tmp_path / ".env") == 0o600
