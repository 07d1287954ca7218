"""What a tool cannot do, as it tells a user. Runs in the environments of tools."""

from __future__ import annotations


class Unable(Exception):
    """A sentence for the user, without its subject."""


def said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
