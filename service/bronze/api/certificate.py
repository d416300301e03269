"""The API's TLS certificate, which is read again when its files change."""

import asyncio
import logging
import ssl
from pathlib import Path

from bronze.errors import Misconfigured
from bronze.settings import Settings

log = logging.getLogger(__name__)

#: How often the files are looked at, in seconds.
LOOK_S = 10.0


class Certificate:
    """`context` is for the server. New connections get the certificate that was read last."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Raises `Misconfigured` if the files are no certificate with its key."""
        self._files = cert_file, key_file
        self._read_at = self._changed_at()
        try:
            self.context = _context(cert_file, key_file)
        except OSError as error:  # includes errors of TLS
            raise Misconfigured(
                f"BRONZE_TLS_CERT_FILE={cert_file} and BRONZE_TLS_KEY_FILE={key_file} cannot be used as a certificate "
                f"and its key: {error}"
            ) from error

    async def follow(self) -> None:
        """Reads the certificate again whenever its files change. Ends only by cancellation."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.renew)

    def renew(self) -> None:
        """Reads the files if they have changed. If they cannot be used, the certificate stays as it is."""
        changed_at = self._changed_at()
        if changed_at == self._read_at:
            return
        self._read_at = changed_at
        try:
            _context(*self._files)  # a failed attempt must not change the context in use
            self.context.load_cert_chain(*self._files)
        except OSError as error:
            log.error("the changed TLS certificate cannot be used, the earlier one stays in use: %s", error)
        else:
            log.info("the TLS certificate was renewed")

    def _changed_at(self) -> tuple[int, ...]:
        return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in self._files)


def _context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert_file, key_file)
    return context


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate that the settings name. Raises `Misconfigured` if it cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Certificate(settings.tls_cert_file, settings.tls_key_file)
