"""The hours of the day in which an update may fetch. Pure: the time is handed in."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Final

__all__ = ["WINDOW_PATTERN", "closed_s"]

WINDOW_PATTERN: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"
"""`22:00-05:00`, in UTC; it may pass midnight."""
_DAY_S: Final = 24 * 3600
_TIME: Final = re.compile(r"([0-9]{2}):([0-9]{2})")


def closed_s(window: str | None, now: datetime) -> float:
    """Seconds until `window` opens; 0 while it is open. None, and one without length: always."""
    if window is None:
        return 0.0
    opens_s, closes_s = (
        int(hours) * 3600 + int(minutes) * 60 for hours, minutes in _TIME.findall(window)
    )
    at = now.astimezone(timezone.utc)
    now_s = at.hour * 3600 + at.minute * 60 + at.second + at.microsecond / 1e6
    length_s = (closes_s - opens_s) % _DAY_S or _DAY_S
    into_s = (now_s - opens_s) % _DAY_S
    return 0.0 if into_s < length_s else _DAY_S - into_s
