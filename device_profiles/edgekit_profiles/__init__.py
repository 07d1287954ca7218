"""The profiles that edgekit ships, one TOML file each, and the way to any other.

Invariant: a shipped profile's name is its file's name. Each fact in a file has its source there.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final

from edgekit_contract import limits
from edgekit_contract.errors import Misused
from edgekit_contract.profile import Profile, parse_profile

__all__ = ["UnknownProfile", "load", "names", "text"]

_DIRECTORY: Final = Path(__file__).parent
_SUFFIX: Final = ".toml"


class UnknownProfile(Misused):
    """No shipped profile has this name. `nearest` is the one that was probably meant."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known, self.nearest = name, tuple(known), _nearest(name, known)
        super().__init__(
            f"unknown profile {name[:80]!r}; did you mean {self.nearest}? "
            f"Known are {', '.join(self.known)}, and the path of any TOML file."
        )


def names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in _DIRECTORY.glob(f"*{_SUFFIX}"))


def load(name_or_path: str) -> Profile:
    """The profile of this name, or in this TOML file.

    A value with a `/` or ending in `.toml` is a path.
    Errors: `UnknownProfile`; `Misused` where a file cannot be read or is not a profile.
    """
    return parse_profile(text(name_or_path), source=name_or_path)


def text(name_or_path: str) -> bytes:
    """The TOML of a profile, as it is on disk: what a device keeps from its enrolment.

    Errors: as `load`, but what the file says is not looked at.
    """
    path = Path(name_or_path)
    if "/" not in name_or_path and path.suffix != _SUFFIX:
        if name_or_path not in (known := names()):
            raise UnknownProfile(name_or_path, known)
        path = _DIRECTORY / f"{name_or_path}{_SUFFIX}"
    try:
        with path.open("rb") as stream:
            toml = stream.read(limits.MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise Misused(
            f"cannot read the profile {name_or_path}: {error.strerror}; check the path."
        ) from error
    if len(toml) > limits.MAX_PROFILE_BYTES:
        raise Misused(f"{name_or_path} is too long to be a profile; check the path.")
    return toml


def _nearest(name: str, known: Sequence[str]) -> str:
    """People shorten (`rpi5`) more than they mistype, so letters in order count first."""
    wanted = [char for char in name.casefold() if char.isalnum()]

    def likeness(candidate: str) -> tuple[bool, float]:
        rest = iter(candidate)
        return (
            all(char in rest for char in wanted),
            SequenceMatcher(None, name.casefold(), candidate).ratio(),
        )

    return max(known, key=likeness)
