"""`edgekit-agent selftest`: does all that an agent is made of work on this machine?

Invariant: each check runs in a child, in a directory that goes with it, so that one which crashes
or hangs is told as such and the others go on; nothing is left behind, and only loopback is used.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pkgutil
import select
import signal
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit_agent import storage
from edgekit_agent.control import (
    Channel,
    Drain,
    Drained,
    Failed,
    FromWorker,
    Ready,
    Serve,
    socket_pair,
)
from edgekit_agent.endpoints import listen_tcp
from edgekit_agent.record import Record, RecordFile
from edgekit_agent.tls import client_context
from edgekit_contract.errors import EdgekitError, Refused
from edgekit_contract.messages import cut
from edgekit_contract.profile import RuntimeKind

if TYPE_CHECKING:
    from edgekit_contract.trust import PublicKey

__all__ = ["Check", "run_checks"]

_TIMEOUT_S: Final = 120.0
_PACKAGES: Final = ("edgekit_contract", "edgekit_runtime", "edgekit_agent")
_NAME: Final = "selftest"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One answer."""

    name: str
    passed: bool
    detail: str
    """What was found, or why it failed."""


def run_checks() -> tuple[Check, ...]:
    """Every check, in order. Errors: none."""
    return tuple(_in_child(name, check) for name, check in _checks().items())


def _checks() -> Mapping[str, Callable[[Path], str]]:
    from edgekit_runtime.plugins import plugin_kinds
    from edgekit_runtime.session import own_runtimes

    runtimes, plugins = own_runtimes(), plugin_kinds()
    checks: dict[str, Callable[[Path], str]] = {
        "imports": _imports,
        "storage": _storage,
        "cryptography": _cryptography,
        "tls": _tls,
        "local API": _local_api,
    }
    for kind, version in runtimes.items():
        checks[kind.value] = partial(_runtime, kind, version)
    for kind in plugins:
        checks[kind.value] = partial(_plugin, kind)
    if not plugins and runtimes.keys() <= {RuntimeKind.NULL}:
        checks["runtimes"] = _no_runtime
    return checks


def _in_child(name: str, check: Callable[[Path], str]) -> Check:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(_answer(check)).encode())
        os._exit(0)
    os.close(writer)
    told, hung = b"", False
    ends = time.monotonic() + _TIMEOUT_S
    while select.select([reader], [], [], max(0.0, ends - time.monotonic()))[0]:
        if not (piece := os.read(reader, 65_536)):
            break
        told += piece
    else:
        hung = True
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if hung:
        return Check(name=name, passed=False, detail=f"it did not end within {_TIMEOUT_S:.0f} s.")
    if os.WIFSIGNALED(status):
        signal_name = signal.Signals(os.WTERMSIG(status)).name
        return Check(name=name, passed=False, detail=f"it crashed ({signal_name}).")
    try:
        passed, detail = json.loads(told)
    except ValueError:
        passed, detail = False, f"it ended with code {os.waitstatus_to_exitcode(status)}."
    return Check(name=name, passed=passed, detail=detail)


def _answer(check: Callable[[Path], str]) -> tuple[bool, str]:
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-selftest-") as directory:
            return True, check(Path(directory))
    except EdgekitError as error:
        return False, cut(str(error))
    except Exception as error:  # whatever it is, it is why the check failed
        return False, cut(f"{type(error).__name__}: {error}.")


def _require(fact: bool, otherwise: str) -> None:
    if not fact:
        raise Refused(otherwise)


# The checks. Each says what it found or raises.


def _imports(_: Path) -> str:
    count = 0
    for package in _PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            importlib.import_module(module.name)
            count += 1
    return f"{count} modules"


def _storage(directory: Path) -> str:
    text = b"edgekit"
    storage.create_directory(directory / "a" / "b")
    storage.write(directory / "a" / "b" / "file", text)
    storage.copy_file(directory / "a" / "b" / "file", directory / "copy")
    storage.sync_file(directory / "copy")
    storage.move(directory / "copy", directory / "a" / "copy")
    found = storage.read(directory / "a" / "copy", limit_bytes=len(text))
    _require(found == text, f"a file of {text!r} reads as {found!r}.")
    record = Record(generation=7)
    RecordFile(directory).save(record)
    _require(RecordFile(directory).value == record, "the record reads as another.")
    storage.remove(directory / "a")
    return f"written, synced, moved and read; {storage.free_bytes(directory) >> 20} MiB free"


def _cryptography(_: Path) -> str:
    from cryptography.hazmat.backends.openssl import backend
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    from edgekit_contract.trust import PublicKey

    data = b"edgekit"
    edwards, curve = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    for key, signature in (
        (PublicKey(edwards.public_key()), edwards.sign(data)),
        (PublicKey(curve.public_key()), curve.sign(data, ec.ECDSA(hashes.SHA256()))),
    ):
        _require_vouching(key, signature, data)
    return f"Ed25519 and ECDSA P-256, {backend.openssl_version_text()}"


def _require_vouching(key: PublicKey, signature: bytes, data: bytes) -> None:
    _require(key.verifies(signature, data), f"{key.algorithm} refuses its own signature.")
    _require(not key.verifies(signature, data + b"!"), f"{key.algorithm} accepts other data.")


def _tls(directory: Path) -> str:
    """Mutual TLS 1.2 or newer with itself, through memory."""
    certificate, key = directory / "device.pem", directory / "device.key"
    _write_identity(certificate, key)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    server_side.load_verify_locations(certificate)
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = client_context(root=certificate, certificate=certificate, key=key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname=_NAME)
    server = server_side.wrap_bio(up, down, server_side=True)
    for _ in range(8):
        done = [_shaken(side) for side in (client, server)]
        if all(done):
            break
    else:
        raise Refused("the handshake does not come to an end.")
    return f"{client.version()} with {(client.cipher() or ('',))[0]}"


def _write_identity(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(timezone.utc)
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _shaken(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _local_api(directory: Path) -> str:
    """The worker of a bundle is started, asked and drained, as the daemon does it."""
    from edgekit_agent.specimens import write_bundle

    digest = write_bundle(directory)
    ours, theirs = socket_pair()
    listener = listen_tcp(0)
    if listener is None:
        raise Refused("127.0.0.1 has no free port.")
    child = os.fork()
    if child == 0:
        ours.close()
        os._exit(_work(directory, digest, theirs.fileno(), listener.fileno()))
    theirs.close()
    channel: Channel[FromWorker] = Channel(ours, FromWorker)
    try:
        _expect(channel, Ready)
        channel.send(Serve())
        port = listener.getsockname()[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        body = json.dumps({"inputs": [tensor]})
        connection.request("POST", f"/v2/models/{_NAME}/infer", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        _require(response.status == http.HTTPStatus.OK, f"it answers {response.status}: {answer}")
        given = answer["outputs"][0]["data"]
        _require(given == [10.0], f"the sum of 1, 2, 3 and 4 is {given}.")
        channel.send(Drain())
        _expect(channel, Drained)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    _require(status == 0, f"the worker ended with {os.waitstatus_to_exitcode(status)}.")
    return "a worker started, answered and drained"


def _work(directory: Path, digest: str, control: int, listener: int) -> int:
    from edgekit_agent.worker import main

    words = ["--bundle", str(directory), "--digest", digest]
    return main([*words, "--control-fd", str(control), "--listen-fd", str(listener)])


def _expect(channel: Channel[FromWorker], kind: type) -> None:
    ends = time.monotonic() + _TIMEOUT_S
    while (left_s := ends - time.monotonic()) > 0:
        message = channel.receive(left_s)
        if isinstance(message, kind):
            return
        if isinstance(message, Failed):
            raise Refused(message.reason)
    raise Refused(f"the worker never said {kind.__name__}.")


def _runtime(kind: RuntimeKind, version: str, directory: Path) -> str:
    import numpy as np

    from edgekit_agent.specimens import SPECIMENS
    from edgekit_runtime.session import SessionOptions, open_session

    specimen = SPECIMENS[kind]
    path = directory / specimen.filename
    path.write_bytes(specimen.model)
    session = open_session(kind, path, SessionOptions(threads=2))
    got = session.run({"x": np.array([[1, -2, 3, 4]], np.float32)})["y"].ravel().tolist()
    session.close()
    _require(got == list(specimen.answer), f"{got} is not {list(specimen.answer)}.")
    return f"version {version} runs a model"


def _plugin(kind: RuntimeKind, _: Path) -> str:
    from edgekit_runtime.plugins import find_plugin

    version = find_plugin(kind).version()
    _require(version is not None, f"the plug-in {kind.value} says that it runs no models here.")
    return f"version {version}; there is no model to try it with"


def _no_runtime(_: Path) -> str:
    raise Refused("no runtime is installed: pip install 'edgekit[agent,onnx]', or tflite.")
