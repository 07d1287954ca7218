"""How long `edgekit demo` takes from its start to its end, once everything is installed.

    python benchmarks/demo.py [--rounds N] [--broker mosquitto|iotcore] [--markdown]

Each round is a process of its own. Seconds are those of the whole process, Python's start and the
end of all processes included; those of each release are from its rollout to its end on the last
device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import machine


def played(broker: str) -> dict[str, Any]:
    """Seconds of one demo."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "demo", "--json", "--broker", broker],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began
    chapters = json.loads(done.stdout)["chapters"]
    return {"seconds": seconds, "releases": {c["version"]: c["seconds"] for c in chapters}}


def as_markdown(rounds: list[dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md: medians of the rounds."""
    versions = list(rounds[0]["releases"])
    whole = machine.spread([r["seconds"] for r in rounds])["p50"]
    each = [machine.spread([r["releases"][v] for r in rounds])["p50"] for v in versions]
    titles = ["whole demo, s", *(f"{version}, s" for version in versions)]
    figures = [f"{seconds:.1f}" for seconds in (whole, *each)]
    rule = "| ---: " * len(titles) + "|"
    return "\n".join([f"| {' | '.join(titles)} |", rule, f"| {' | '.join(figures)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--broker", choices=("mosquitto", "iotcore"), default="mosquitto")
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    rounds = [played(asked.broker) for _ in range(asked.rounds)]
    if asked.markdown:
        print(as_markdown(rounds))
    else:
        machine.emit(rounds)


if __name__ == "__main__":
    main()
