"""Isolation: functions run in child processes that may crash, hang or eat memory without harm."""

from edgekit_converters.isolation.calls import (
    Conversation,
    Limits,
    Neighbours,
    StepRefused,
    cause_of,
    last_words,
    limits_for,
)
from edgekit_converters.isolation.letters import DISK_FAILED, StepFailed
from edgekit_converters.isolation.workshop import Run, Workshop, run

__all__ = [
    "DISK_FAILED",
    "Conversation",
    "Limits",
    "Neighbours",
    "Run",
    "StepFailed",
    "StepRefused",
    "Workshop",
    "cause_of",
    "last_words",
    "limits_for",
    "run",
]
