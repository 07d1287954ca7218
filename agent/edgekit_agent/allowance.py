"""How much time of each hour may go into something that serves nobody. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Allowance"]

_WINDOW_S: Final = 3600.0


class Allowance:
    """`limit_s` of any hour. Instants are monotonic seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._spent: deque[tuple[float, float]] = deque()

    def spend(self, began: float, ended: float) -> None:
        self._spent.append((began, ended))

    def is_spent(self, now: float) -> bool:
        """Whether no more may be spent now."""
        since = now - _WINDOW_S
        while self._spent and self._spent[0][1] <= since:
            self._spent.popleft()
        total = sum(ended - max(began, since) for began, ended in self._spent)
        return total >= self._limit_s
