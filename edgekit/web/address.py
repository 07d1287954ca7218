"""Addresses to views: the one table that pages and the WebSocket both go by."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from edgekit.web.table import parse
from edgekit.web.views.device import Device
from edgekit.web.views.devices import Devices
from edgekit.web.views.overview import Overview
from edgekit.web.views.page import Desk, Page
from edgekit.web.views.releases import Releases
from edgekit.web.views.rollouts import RolloutPage, Rollouts

__all__ = ["MAX_ADDRESS_CHARS", "open_view"]

MAX_ADDRESS_CHARS: Final = 1000
MAX_ASKED: Final = 20

Asked = Mapping[str, str]


async def _devices(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page:
    return Devices(desk, parse(asked))


async def _device(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page | None:
    return await Device.open(desk, ids[0])


async def _overview(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page:
    return await Overview.open(desk)


async def _rollouts(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page:
    return await Rollouts.open(desk, release=asked.get("release", ""))


async def _rollout(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page | None:
    return await RolloutPage.open(desk, ids[0])


async def _releases(desk: Desk, ids: tuple[str, ...], asked: Asked) -> Page:
    return Releases(desk)


_VIEWS: Final[
    tuple[
        tuple[re.Pattern[str], Callable[[Desk, tuple[str, ...], Asked], Awaitable[Page | None]]],
        ...,
    ]
] = (
    (re.compile(r"/"), _overview),
    (re.compile(r"/devices"), _devices),
    (re.compile(r"/devices/([a-z0-9-]{1,64})"), _device),
    (re.compile(r"/rollouts"), _rollouts),
    (re.compile(r"/rollouts/([A-Za-z0-9._@+-]{1,128})"), _rollout),
    (re.compile(r"/releases"), _releases),
)


async def open_view(desk: Desk, address: str) -> Page | None:
    """The view at a path with its query, such as `/devices?sort=latency`; None: there is none."""
    if len(address) > MAX_ADDRESS_CHARS or not address.startswith("/"):
        return None
    try:
        parts = urlsplit(address)
        asked = dict(parse_qsl(parts.query, max_num_fields=MAX_ASKED))
    except ValueError:
        return None
    for pattern, view in _VIEWS:
        if match := pattern.fullmatch(parts.path):
            return await view(desk, match.groups(), asked)
    return None
