"""The dashboard with many devices: what open pages cost, and how soon the first row is seen.

A process of its own folds health messages of DEVICES devices at RATE a second, as a hub does, and
serves the dashboard. Pages are WebSocket clients that apply each frame at once; the first row is
timed in Chromium. The CPU of pages is that of the process with them less that without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SETTLE_S = 3.0
"""Before a page is measured, unless measuring is shorter."""
VIEWS = ("/devices", "/", "/devices?sort=latency", "/devices/pi-00007")
CHROMIUM = "/usr/bin/chromium"


async def be_hub(port: int, devices: int, rate: int) -> None:
    """Serve and fold until killed."""
    import fleet_messages
    import uvicorn
    from stage import Stage

    from edgekit.hub.state import advance
    from edgekit.web.app import create_app
    from edgekit_contract import messages
    from edgekit_contract.messages import Health

    stage = Stage()
    names = [f"pi-{number:05d}" for number in range(devices)]
    for name in names:
        stage.say(name, fleet_messages.online(), fleet_messages.reported("1.0"))
    config = uvicorn.Config(create_app(stage), log_config=None, lifespan="off", port=port)
    server = uvicorn.Server(config)

    async def feed() -> None:
        began, sent, sample = time.monotonic(), 0, fleet_messages.health()
        while True:
            due = int((time.monotonic() - began) * rate)
            for number in range(sent, due):
                fresh = msgspec.structs.replace(
                    sample,
                    seq=sample.seq + number // devices,
                    at=fleet_messages.instant(),
                    models={
                        "digits": msgspec.structs.replace(
                            sample.models["digits"],
                            p95_ms=2 + number * 31 % 97 / 10,
                            inferences=number,
                        )
                    },
                )
                message = messages.decode(messages.encode(fresh), Health)
                stage.say(names[number % devices], message, kept=False)
            sent = due
            advance(stage.state, stage.now())
            await asyncio.sleep(0.02)

    feeding = asyncio.create_task(feed())
    try:
        await server.serve()
    finally:
        feeding.cancel()


class Hub:
    """The hub's process."""

    def __init__(self, *, devices: int, rate: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, __file__, "--hub", str(self.port), str(devices), str(rate)]
        self._process = subprocess.Popen(command)

    def __enter__(self) -> Hub:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the hub did not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def watch(port: int, views: Sequence[str], *, seconds: float) -> list[int]:
    """Bytes that each page received after it had settled."""
    from websockets.asyncio.client import connect

    counting = asyncio.Event()

    async def page(view: str) -> int:
        size = 0
        async with connect(f"ws://127.0.0.1:{port}/live", compression=None) as live:
            await live.send(json.dumps({"view": view}))
            async for text in live:
                assert isinstance(text, str)
                if counting.is_set():
                    size += len(text)
                await live.send(json.dumps({"applied": json.loads(text)["n"]}))
                if counting.is_set() and time.monotonic() >= ends_at:
                    break
        return size

    settle_s = min(SETTLE_S, seconds)
    ends_at = time.monotonic() + settle_s + seconds
    pages = [asyncio.create_task(page(view)) for view in views]
    await asyncio.sleep(settle_s)
    counting.set()
    return await asyncio.gather(*pages)


def cost(hub: Hub, views: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """CPU of the hub in percent of one core while these pages are open."""

    async def run() -> tuple[float, list[int]]:
        watching = asyncio.create_task(watch(hub.port, views, seconds=seconds))
        await asyncio.sleep(min(SETTLE_S, seconds))
        before, began = hub.cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        percent = 100 * (hub.cpu_s() - before) / (time.monotonic() - began)
        return percent, await watching

    percent, sizes = asyncio.run(run())
    return {
        "pages": len(views),
        "hub_cpu_percent": round(percent, 2),
        "bytes_per_s_per_page": round(sum(sizes) / seconds / len(sizes)) if sizes else 0,
    }


def first_row_s(port: int, *, rounds: int) -> list[float]:
    """From the click on an address to a row on the screen, in a fresh browser context each."""
    from playwright.sync_api import sync_playwright

    arguments = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync".split()
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for _ in range(rounds):
            context = browser.new_context()
            page = context.new_page()
            began = time.perf_counter()
            page.goto(f"http://127.0.0.1:{port}/devices", wait_until="commit")
            page.wait_for_selector("tbody tr")
            found.append(time.perf_counter() - began)
            context.close()
        browser.close()
    return found


def measure(*, devices: int, rate: int, seconds: float, rounds: int) -> dict[str, Any]:
    with Hub(devices=devices, rate=rate) as hub:
        time.sleep(SETTLE_S)
        alone = cost(hub, (), seconds=seconds)
        results: dict[str, Any] = {
            "devices": devices,
            "updates_per_s": rate,
            "hub_cpu_percent_without_pages": alone["hub_cpu_percent"],
            "views": {},
        }
        for view in VIEWS:
            results["views"][view] = {}
            for pages in (1, 10):
                found = cost(hub, [view] * pages, seconds=seconds)
                more = found["hub_cpu_percent"] - alone["hub_cpu_percent"]
                found["pages_cpu_percent"] = round(more, 2)
                results["views"][view][str(pages)] = found
        times = first_row_s(hub.port, rounds=rounds)
        results["first_row_s"] = {k: round(v, 3) for k, v in machine.spread(times).items()}
        results["hub_rss_mib"] = round(hub.rss_mib(), 1)
    return results


def main() -> None:
    if sys.argv[1:2] == ["--hub"]:
        asyncio.run(be_hub(*(int(word) for word in sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000, help="health messages a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=10, help="of the first row")
    given = parser.parse_args()
    machine.emit(
        measure(devices=given.devices, rate=given.rate, seconds=given.seconds, rounds=given.rounds)
    )


if __name__ == "__main__":
    main()
