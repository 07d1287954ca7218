"""Reports for people and programs: Markdown, HTML, JSON, and the table that a build prints."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from edgekit.build.rendering.html import html_page
from edgekit.build.rendering.markdown import markdown_page
from edgekit.build.rendering.subject import Subject, open_subject
from edgekit.build.rendering.table import frontier_titles

__all__ = ["Format", "Subject", "open_subject", "render"]


class Format(enum.Enum):
    MD = "md"
    HTML = "html"
    JSON = "json"


def render(subject: Subject, kind: Format) -> str:
    """The report as the whole text of a file, ending in a newline."""
    return _RENDERERS[kind](subject)


def _json(subject: Subject) -> str:
    raw = msgspec.json.format(msgspec.json.encode(_builtins(subject)), indent=2)
    return raw.decode() + "\n"


def _builtins(subject: Subject) -> dict[str, Any]:
    report, manifest = subject.report, subject.manifest
    return {
        "verified": False,
        "digest": subject.digest,
        "signatures": subject.signers,
        "report": report,
        "frontier": frontier_titles(report),
        "provenance": manifest.provenance,
        "files": [{"path": file.path, "size_bytes": file.size} for file in manifest.files],
    }


_RENDERERS: Final[dict[Format, Callable[[Subject], str]]] = {
    Format.MD: markdown_page,
    Format.HTML: html_page,
    Format.JSON: _json,
}
