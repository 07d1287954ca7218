"""Isolation: functions run in child processes that may crash, hang or eat memory without harm."""

from edgekit_converters.isolation.letters import DISK_FAILED, StepFailed
from edgekit_converters.isolation.workshop import (
    Limits,
    Neighbours,
    Run,
    StepRefused,
    Workshop,
    limits_for,
    run,
)

__all__ = [
    "DISK_FAILED",
    "Limits",
    "Neighbours",
    "Run",
    "StepFailed",
    "StepRefused",
    "Workshop",
    "limits_for",
    "run",
]
