"""TLS for a device whose clock may stand in 1970.

OpenSSL verifies chain, key and host name; its look at the clock is turned off, and validity is
judged here against the latest time that is known for sure. A certificate that begins in the future
proves that the clock is behind, since the fleet's authority has signed it; one that has ended is
refused. Source: RFC 5280 section 4.1.2.5; X509_V_FLAG_NO_CHECK_TIME, X509_VERIFY_PARAM(3).
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

__all__ = ["CertificateEnded", "client_context", "demand_valid"]

_NO_CHECK_TIME: Final = 0x200000


class CertificateEnded(ssl.SSLError):
    """The peer's certificate has expired."""


def client_context(
    *, root: Path, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """TLS 1.2 and newer, trusting the fleet's root alone; with the device's own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=str(root))
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    if certificate is not None:
        context.load_cert_chain(str(certificate), str(key) if key is not None else None)
    return context


def demand_valid(sock: ssl.SSLSocket, *, now: datetime) -> None:
    """Refuse a peer whose certificate ended before `now`. Errors: `CertificateEnded`."""
    certificate = sock.getpeercert()
    ends = certificate.get("notAfter") if certificate else None
    if not isinstance(ends, str):
        raise CertificateEnded("the broker or hub showed no certificate")
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), timezone.utc)
    if end < now:
        raise CertificateEnded(f"the certificate of the broker or hub ended on {end:%Y-%m-%d}")
