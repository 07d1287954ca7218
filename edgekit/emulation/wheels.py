"""What pip puts into a sysroot: the aarch64 wheels that an agent needs, and edgekit's own wheel.

Invariant: nothing foreign is built or run: pip only unpacks wheels of another platform.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edgekit.emulation import commands, layers
from edgekit.emulation.debian import Suite
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Runtime, RuntimeKind

__all__ = ["make_own", "make_wheels", "own_layer", "wheels_layer"]

_DISTRIBUTIONS: Final = {
    RuntimeKind.ONNXRUNTIME: "onnxruntime",
    RuntimeKind.LITERT: "ai-edge-litert",
}
"""The null runtime is part of edgekit."""
_DEVICE_PACKAGES: Final = ("edgekit_contract", "edgekit_runtime", "edgekit_agent")
_OLDEST_GLIBC_MINOR: Final = 17
_EXTRA: Final = re.compile(r";.*\bextra\s*==\s*['\"](\w[\w-]*)['\"]")
_TIMEOUT_S: Final = 900.0
_NOT_IN_WHEEL: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})


def wheels_layer(suite: Suite, runtimes: Sequence[Runtime]) -> Path:
    return layers.layer(f"wheels-{suite.name}-arm64", _requirements(runtimes))


def make_wheels(suite: Suite, runtimes: Sequence[Runtime]) -> bool:
    """Install the runtimes and what an agent needs. Errors: `Misused`, `Refused`."""
    wanted = _requirements(runtimes)
    return layers.make(
        wheels_layer(suite, runtimes),
        lambda directory: _install(
            f"installing {' and '.join(_pins(runtimes)) or 'wheels'} for Python {suite.python}",
            directory,
            suite,
            wanted,
        ),
    )


def own_layer() -> Path:
    """Named by the code itself, so that a sysroot never holds another edgekit than this."""
    return layers.layer(f"edgekit-{importlib.metadata.version('edgekit')}", _own_code())


def make_own(suite: Suite) -> bool:
    """Make edgekit's wheel and install it. Errors: `Misused`, `Refused`."""

    def fill(directory: Path) -> None:
        wheel = _own_wheel(directory.parent)
        _install("installing edgekit's own wheel", directory, suite, ["--no-deps", str(wheel)])

    return layers.make(own_layer(), fill)


def _pins(runtimes: Sequence[Runtime]) -> list[str]:
    return [
        f"{_DISTRIBUTIONS[runtime.kind]}=={runtime.version}"
        for runtime in runtimes
        if runtime.kind in _DISTRIBUTIONS
    ]


def _requirements(runtimes: Sequence[Runtime]) -> list[str]:
    """As pip takes them, of edgekit[agent] and the runtimes."""
    required = importlib.metadata.requires("edgekit") or []
    of_agent = []
    for line in required:
        extra = _EXTRA.search(line)
        if extra is None or extra.group(1) == "agent":
            of_agent.append(line.partition(";")[0].strip() if extra else line)
    return sorted([*of_agent, *_pins(runtimes)])


def _install(title: str, directory: Path, suite: Suite, wanted: Sequence[str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Misused("emulation needs pip: python3 -m ensurepip, or install edgekit in a venv.")
    platforms = [
        f"manylinux_2_{minor}_aarch64"
        for minor in range(suite.glibc_minor, _OLDEST_GLIBC_MINOR - 1, -1)
    ]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", f"--target={directory}"]
    command += ["--implementation=cp", f"--python-version={suite.python}"]
    command += [f"--platform={name}" for name in (*platforms, "manylinux2014_aarch64")]
    try:
        commands.run(title, [*command, *wanted], timeout_s=_TIMEOUT_S)
    except Refused as error:
        if "No matching distribution" not in str(error):
            raise
        raise Refused(
            f"{error} Name a version in the profile that PyPI has wheels of for Python "
            f"{suite.python} on aarch64."
        ) from error


def _own_code() -> Iterator[bytes]:
    for package in _DEVICE_PACKAGES:
        root = _package_root(package)
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield str(path.relative_to(root.parent)).encode()
                yield path.read_bytes()


def _package_root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed")
    return Path(spec.origin).parent


def _own_wheel(scratch: Path) -> Path:
    """Of a checkout as its build makes it; of an installed edgekit its files, packed again."""
    distribution = importlib.metadata.distribution("edgekit")
    source = _checkout(distribution)
    if source is None:
        return _packed_again(distribution, scratch)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    if importlib.util.find_spec("hatchling") is not None:
        command += ["--no-build-isolation"]
    title = "building edgekit's own wheel"
    commands.run(
        title, [*command, "--no-deps", f"--wheel-dir={scratch}", source], timeout_s=_TIMEOUT_S
    )
    return next(scratch.glob("edgekit-*.whl"))


def _checkout(distribution: importlib.metadata.Distribution) -> Path | None:
    """Where an editable install has its source (PEP 610)."""
    told = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not told.get("dir_info", {}).get("editable"):
        return None
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(told["url"]).path))


def _packed_again(distribution: importlib.metadata.Distribution, scratch: Path) -> Path:
    """The wheel that an installed distribution came from: the binary distribution format is its
    files and their list (PyPA, binary-distribution-format)."""
    wheel = scratch / f"{distribution.name}-{distribution.version}-py3-none-any.whl"
    record, rows = "", []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in distribution.files or ():
            if ".." in file.parts or file.suffix == ".pyc" or file.name in _NOT_IN_WHEEL:
                record = str(file) if file.name == "RECORD" else record
                continue
            data = Path(str(file.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{file},sha256={digest},{len(data)}\n")
            archive.writestr(str(file), data)
        archive.writestr(record, "".join([*rows, f"{record},,\n"]))
    return wheel
