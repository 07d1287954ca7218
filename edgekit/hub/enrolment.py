"""Enrolment over HTTPS: EST (RFC 7030) cacerts and simpleenroll, and what a device must know.

Invariants: nothing is issued without an open invitation, and one invitation issues once; who has
none learns the CA certificates, which are public, and no more. The device's wire text is in
docs/wire.md.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgekit.hub.authority import CsrRejected
from edgekit.hub.database import StoreBusy, StoreFailed
from edgekit.hub.fleet import Fleet
from edgekit.hub.registry import Registry, TokenRefused

__all__ = ["EnrolmentTerms", "create_enrolment"]

MAX_CSR_BYTES: Final = 16_384
_log = logging.getLogger(__name__)


class EnrolmentTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is told before it asks for its certificate."""

    fleet: str
    mqtt_host: str
    mqtt_port: int
    profile_toml: str
    root_json: str
    """TUF root metadata, version 1."""


def create_enrolment(fleet: Fleet, registry: Registry, *, now: Callable[[], datetime]) -> Starlette:
    """The ASGI application of the hub's HTTPS side."""
    service = _Enrolment(fleet, registry, now)
    return Starlette(
        routes=[
            Route("/.well-known/est/cacerts", service.cacerts, methods=["GET"]),
            Route("/.well-known/est/simpleenroll", service.simpleenroll, methods=["POST"]),
            Route("/.well-known/edgekit/enrolment", service.terms, methods=["GET"]),
        ],
        exception_handlers={
            TokenRefused: _unauthorized,
            CsrRejected: _bad_request,
            StoreBusy: _unavailable,
            StoreFailed: _unavailable,
        },
    )


class _Enrolment:
    def __init__(self, fleet: Fleet, registry: Registry, now: Callable[[], datetime]) -> None:
        self._fleet, self._registry, self._now = fleet, registry, now
        self._authority = fleet.issuing_authority()
        root = x509.load_pem_x509_certificate(fleet.root_ca.read_bytes())
        self._cacerts = _certs_only(self._authority.certificate, root)
        self._root_json = fleet.repository.first_root().decode()

    async def cacerts(self, request: Request) -> Response:
        """RFC 7030, 4.1: the issuing CA and the root."""
        return self._cacerts

    async def terms(self, request: Request) -> Response:
        device, secret = _credentials(request)
        invitation = await run_in_threadpool(
            self._registry.invitation, device, secret, now=self._now().timestamp()
        )
        settings = self._fleet.settings
        terms = EnrolmentTerms(
            fleet=settings.name,
            mqtt_host=settings.hosts[0],
            mqtt_port=settings.mqtt_port,
            profile_toml=invitation.profile_toml,
            root_json=self._root_json,
        )
        return Response(msgspec.json.encode(terms), media_type="application/json")

    async def simpleenroll(self, request: Request) -> Response:
        """RFC 7030, 4.2: a certificate for a PKCS#10 request."""
        device, secret = _credentials(request)
        csr = _decoded(await _body(request.stream()))
        now = self._now()
        certificate = await run_in_threadpool(
            self._registry.enrol,
            device,
            secret,
            lambda: self._authority.device(csr, device, now=now),
            now=now,
        )
        _log.info("%s enrolled, certificate %x", device, certificate.serial_number)
        return _certs_only(certificate)


async def _body(stream: AsyncIterator[bytes]) -> bytes:
    body = b""
    async for piece in stream:
        body += piece
        if len(body) > MAX_CSR_BYTES:
            raise CsrRejected(f"the request is over {MAX_CSR_BYTES} bytes.")
    return body


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise CsrRejected("the request is not base64 (RFC 7030, 4.2.1).") from error


def _credentials(request: Request) -> tuple[str, str]:
    """Device id and secret of HTTP Basic. Errors: `TokenRefused`."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        device, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError as error:  # no base64, no UTF-8, or no ASCII to begin with
        raise TokenRefused from error
    if scheme.lower() != "basic" or not colon:
        raise TokenRefused
    return device, secret


def _certs_only(*certificates: x509.Certificate) -> Response:
    der = pkcs7.serialize_certificates(list(certificates), serialization.Encoding.DER)
    return Response(
        base64.encodebytes(der),
        media_type="application/pkcs7-mime; smime-type=certs-only",
        headers={"Content-Transfer-Encoding": "base64"},
    )


def _unauthorized(request: Request, error: Exception) -> Response:
    peer = request.client.host if request.client else "somebody"
    _log.warning("%s was refused at %s: %s", peer, request.url.path, error)
    return PlainTextResponse(
        f"{error}\n", 401, {"WWW-Authenticate": 'Basic realm="edgekit enrolment"'}
    )


def _bad_request(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 400)


def _unavailable(request: Request, error: Exception) -> Response:
    _log.error("%s: %s", request.url.path, error)
    return PlainTextResponse("The hub cannot use its store: try again later.\n", 503)
