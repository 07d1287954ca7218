"""The sysroot's ground: Debian's arm64 packages of libc, libstdc++ and Python, unpacked.

Invariant: this machine's apt is only asked which mirror it uses. Lists, status and archives are in
a directory of their own that goes when the layer is made; apt checks the signatures of Debian's
archive; no package's script is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Final

from edgekit.emulation import commands, layers
from edgekit_contract.errors import Misused

__all__ = ["SUITES", "Suite", "base_layer", "make_base", "suite_for", "unpack"]

_MIRROR: Final = "EDGEKIT_DEBIAN_MIRROR"
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES: Final = re.compile("bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing")
_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A release of Debian."""

    name: str
    python: str
    glibc_minor: int
    """Of glibc 2.x: wheels of `manylinux_2_x` and older run on it."""


SUITES: Final[Mapping[str, Suite]] = {
    "3.11": Suite(name="bookworm", python="3.11", glibc_minor=36),
    "3.13": Suite(name="trixie", python="3.13", glibc_minor=41),
}
"""By Python version."""


def suite_for(python: str) -> Suite:
    """The suite of a profile's Python. Debian never had 3.10 or 3.12 in a release: they stand for
    the next one, whose wheels hold the same native code."""
    return SUITES.get(python) or SUITES["3.11" if python < "3.11" else "3.13"]


def base_layer(suite: Suite) -> Path:
    return layers.layer(f"debian-{suite.name}-arm64", _packages(suite))


def make_base(suite: Suite) -> bool:
    """Download and unpack; False where it was there. Errors: `Misused`, `Refused`."""
    return layers.make(
        base_layer(suite), lambda directory: unpack(directory, suite, _packages(suite))
    )


def _packages(suite: Suite) -> Sequence[str]:
    return (f"python{suite.python}-minimal", f"libpython{suite.python}-stdlib", "libstdc++6")


def unpack(directory: Path, suite: Suite, packages: Sequence[str]) -> None:
    """Put arm64 packages, and those that they depend on, into `directory`, which is empty and has a
    parent for scratch. Errors: `Misused`, `Refused`."""
    apt_get = commands.need("apt-get", package="apt")
    dpkg_deb = commands.need("dpkg-deb", package="dpkg")
    if not _KEYRING.is_file():
        raise Misused(
            f"{_KEYRING}, which Debian's packages are checked with, is not there: apt-get install "
            "debian-archive-keyring."
        )
    state = directory.parent / "apt"
    for made in ("state/lists/partial", "cache/archives/partial"):
        (state / made).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {_mirror(apt_get)} {suite.name} main\n"
    )
    apt = [apt_get, "--quiet", *(f"-o{option}" for option in _options(state))]
    title = f"fetching Debian's packages for arm64 ({suite.name})"
    commands.run(title, [*apt, "update"], timeout_s=_TIMEOUT_S)
    install = [*apt, "install", "--yes", "--download-only", "--no-install-recommends"]
    commands.run(title, [*install, *packages], timeout_s=_TIMEOUT_S)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        commands.run(
            f"unpacking {package.name}",
            [dpkg_deb, "--extract", package, directory],
            timeout_s=_TIMEOUT_S,
        )
    for name in ("bin", "lib"):
        if not (directory / name).exists():  # from trixie on the package base-files makes them
            (directory / name).symlink_to(Path("usr", name))


def _options(state: Path) -> tuple[str, ...]:
    return (
        "APT::Architecture=arm64",
        "APT::Architectures=arm64",
        f"Dir::State={state}/state",
        f"Dir::State::status={state}/status",
        f"Dir::Cache={state}/cache",
        f"Dir::Etc::sourcelist={state}/sources.list",
        "Dir::Etc::sourceparts=-",
        "APT::Sandbox::User=root",  # apt's own user may not enter a home directory
        "Acquire::Languages=none",
        "Acquire::Retries=3",
        "APT::Keep-Downloaded-Packages=true",
    )


def _mirror(apt_get: str) -> str:
    """The URI of a Debian mirror: the one that is named, or this machine's."""
    if named := environ.get(_MIRROR):
        return named
    asked = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    command = [apt_get, "indextargets", "--format", asked, "Created-By: Packages"]
    for line in commands.run("asking apt for its mirror", command, timeout_s=60).splitlines():
        release, component, uri = line.split(" ", 2)
        if component == "main" and _RELEASES.fullmatch(release):
            return uri
    raise Misused(
        f"apt knows no mirror of Debian here: set {_MIRROR} to the URL of one, as a sources.list "
        "would name it."
    )
