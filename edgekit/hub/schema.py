"""The tables of the hub's store. Instants are Unix seconds; messages are kept as their JSON."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "METADATA",
    "assignments",
    "benches",
    "counters",
    "devices",
    "events",
    "health",
    "invitations",
    "rollouts",
    "streams",
]

METADATA: Final = MetaData()

counters = Table(
    "counters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)
"""`orders` grows with every change that an operator or an enrolment makes; `schema` is the form."""

devices = Table(
    "devices",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("profile", Text, nullable=False, default=""),
    Column("enrolled_at", Float),
    Column("certificate_serial", Text),
    Column("certificate_ends_at", Float),
    Column("heard_at", Float),
    Column("status", LargeBinary),
    Column("reported", LargeBinary),
    Column("generation", Integer, nullable=False, default=0),
    Column("desired", LargeBinary, nullable=False, default=b"{}"),
)

invitations = Table(
    "invitations",
    METADATA,
    Column("device", Text, primary_key=True),
    Column("secret_sha256", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("profile_toml", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)
"""The newest invitation of each device; the ones before it are void."""

streams = Table(
    "streams",
    METADATA,
    Column("device", Text, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("health", Integer, nullable=False),
    Column("event", Integer, nullable=False),
    Column("seen_at", Float, nullable=False),
)
"""What was acknowledged to each device's queue."""


def _messages(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", Integer, primary_key=True, autoincrement=True),
        Column("device", Text, nullable=False),
        Column("stream", Text, nullable=False),
        Column("seq", Integer, nullable=False),
        Column("at", Float, nullable=False),
        Column("body", LargeBinary, nullable=False),
        UniqueConstraint("device", "stream", "seq"),
        Index(f"{name}_by_time", "device", "at"),
    )


health = _messages("health")
events = _messages("events")
Index("events_by_arrival", events.c.at)

rollouts = Table(
    "rollouts",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("waves", LargeBinary, nullable=False),
    Column("status", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
)

assignments = Table(
    "assignments",
    METADATA,
    Column("rollout", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("standing", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("previous", Text),
)

benches = Table(
    "benches",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("device", Text, nullable=False),
    Column("ordered_at", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("answer", LargeBinary),
)
"""Measurements that operators asked devices for, and what the devices answered."""
