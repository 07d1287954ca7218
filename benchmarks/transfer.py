"""How fast an update reaches a device over MQTT, and what it costs the receiver.

    python benchmarks/transfer.py [--mib N] [--rounds N] [--markdown]

Everything is the real thing, on loopback with mutual TLS: `edgekit fleet init`, mosquitto with the
configuration that it wrote, `edgekit hub`, devices enrolled by `edgekit-agent enroll`, a bundle by
`edgekit build`, a rollout. The agent's FETCH is timed from its journal; processor time is that of
the daemon (which holds the connection) and the updater (which asks, hashes and writes). In turn
with it a peer fetches the same file from the same hub: a plain paho client, same TLS, same window
of 64 KiB chunks, that writes what comes and neither relays, hashes nor syncs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import edgekit_profiles
from edgekit.build import BuildRequest, build
from edgekit_agent.transfer import WINDOW
from edgekit_contract.archive import open_archive
from edgekit_contract.envelope import ENVELOPE_PATH, decode
from edgekit_contract.limits import MAX_CHUNK_BYTES, MAX_ENVELOPE_BYTES
from edgekit_contract.manifest import FileEntry

PATIENCE_S = 300.0
POLL_S = 0.005
FLEET = "bench"
MODEL = "bulk"
PROFILE = "linux-x86-64"
_COLUMNS = 4096
_FRAME = struct.Struct(">4sB3xQQ")


def bulky_bundle(directory: Path, *, mib: int) -> tuple[Path, FileEntry]:
    """A bundle whose model is about `mib` MiB of weights; its model file's entry."""
    rows = mib * (1 << 20) // 4 // _COLUMNS
    weights = np.random.default_rng(1).standard_normal((rows, _COLUMNS), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, _COLUMNS])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = directory / "bulk.onnx"
    onnx.save(model, path)
    result = build(
        BuildRequest(
            model=path,
            profiles=(edgekit_profiles.load(PROFILE),),
            name=MODEL,
            version="1.0",
            output=directory,
            recipes=("float32*",),
            search_time_s=2.0,
        )
    )
    bundle = result.built[0].bundle.path
    raw = open_archive(bundle).read(ENVELOPE_PATH, limit_bytes=MAX_ENVELOPE_BYTES)
    manifest = decode(raw).manifest
    return bundle, manifest.file(manifest.model)


# --- the fleet


@dataclass(frozen=True, kw_only=True)
class Fleet:
    directory: Path
    mqtt_port: int
    hub: psutil.Process
    broker: psutil.Process


def edgekit(*words: str) -> str:
    """Run the command line; its stdout."""
    run = subprocess.run(
        [sys.executable, "-c", "from edgekit.cli import main; main()", *words],
        env=os.environ | {"EDGEKIT_PASSPHRASE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"edgekit {' '.join(words)}: {run.stderr}")
    return run.stdout


@contextlib.contextmanager
def process(command: list[str], log: Path) -> Iterator[psutil.Process]:
    with log.open("ab") as stream:
        started = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(30)


@contextlib.contextmanager
def fleet(directory: Path) -> Iterator[Fleet]:
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is None:
        raise SystemExit("mosquitto is not installed: apt-get install mosquitto.")
    mqtt, https, web = free_ports(3)
    path = directory / "fleet"
    edgekit(
        "fleet", "init", str(path), "--host", "localhost", "--name", FLEET,
        "--mqtt-port", str(mqtt), "--https-port", str(https), "--web-port", str(web),
    )  # fmt: skip
    hub = [sys.executable, "-c", "from edgekit.cli import main; main()"]
    with (
        process([mosquitto, "-c", str(path / "broker/mosquitto.conf")], directory / "b.log") as b,
        process([*hub, "hub", "--fleet", str(path)], directory / "hub.log") as h,
    ):
        for port in (mqtt, https):
            wait_for(lambda port=port: listens(port), f"port {port}")
        yield Fleet(directory=path, mqtt_port=mqtt, hub=h, broker=b)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_for(true: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end_s:
            raise RuntimeError(f"no {what} within {PATIENCE_S} s")
        time.sleep(POLL_S)


def enrol(found: Fleet, device: str, directory: Path) -> Path:
    answer = edgekit(
        "devices", "invite", device, "--fleet", str(found.directory), "--profile", PROFILE, "--json"
    )
    token = json.loads(answer)["token"]
    path = directory / device
    subprocess.run(
        [sys.executable, "-m", "edgekit_agent", "enroll", token, "--dir", str(path)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return path


# --- measuring


class Meter:
    """Processor seconds of processes from now on."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = processes
        self._begun_s = {name: cpu_s(p) for name, p in processes.items()}

    def read(self) -> dict[str, float]:
        return {name: cpu_s(p) - self._begun_s[name] for name, p in self._processes.items()}


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def figures(size_bytes: int, seconds: float, cpu: dict[str, float]) -> dict[str, Any]:
    mb = size_bytes / 1e6
    return {
        "seconds": round(seconds, 3),
        "mb_per_s": round(mb / seconds, 1),
        "cpu_ms_per_mb": {name: round(s * 1e3 / mb, 2) for name, s in cpu.items()},
    }


def agent_round(found: Fleet, device: Path, entry: FileEntry) -> dict[str, Any]:
    """One device's FETCH of the whole bundle, by its journal."""
    journal = device / "models" / MODEL / "journal.json"

    def phase() -> str:
        try:
            return str(json.loads(journal.read_bytes()).get("phase", "idle"))
        except (OSError, ValueError):
            return "none"

    command = [sys.executable, "-m", "edgekit_agent", "run", "--dir", str(device)]
    with process(command, device.with_suffix(".log")) as daemon:
        wait_for(lambda: phase() == "fetch", "FETCH")
        began = time.monotonic()
        (updater,) = (p for p in daemon.children() if "updater" in " ".join(p.cmdline()))
        meter = Meter(
            {"daemon": daemon, "updater": updater, "hub": found.hub, "broker": found.broker}
        )
        wait_for(lambda: phase() != "fetch", "end of FETCH")
        taken_s, cpu = time.monotonic() - began, meter.read()
        if phase() not in {"verify", "stage", "warmup", "switch", "probation", "commit"}:
            raise RuntimeError(f"after FETCH came {phase()}: {device.with_suffix('.log')}")
        wait_for(lambda: phase() in {"probation", "commit", "idle"}, "SWITCH")
        rss = daemon.memory_info().rss
    cpu["receiver"] = cpu["daemon"] + cpu["updater"]
    return figures(entry.size, taken_s, cpu) | {"daemon_rss_mib": round(rss / 2**20, 1)}


def peer_round(found: Fleet, device: Path, entry: FileEntry, out: Path) -> dict[str, Any]:
    """The same file by the peer, in a process of its own."""
    command = [sys.executable, __file__, "--peer", str(device), str(found.mqtt_port)]
    command += [entry.sha256, str(entry.size), str(out)]
    meter = Meter({"hub": found.hub, "broker": found.broker})
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer = json.loads(run.stdout)
    if hashlib.sha256(out.read_bytes()).hexdigest() != entry.sha256:
        raise RuntimeError("the peer fetched other bytes")
    out.unlink()
    cpu = {"receiver": answer["cpu_s"], **meter.read()}
    return figures(entry.size, answer["seconds"], cpu)


def be_peer(directory: str, port: str, sha256: str, size: str, out: str) -> None:
    """Fetch a blob with paho alone; prints seconds and processor seconds."""
    identity, device, total = Path(directory) / "identity", Path(directory).name, int(size)
    topic = f"edgekit/v1/{FLEET}/device/{device}"
    done, ready = threading.Event(), threading.Event()
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=device, protocol=MQTTProtocolVersion.MQTTv5
    )
    context = ssl.create_default_context(cafile=str(identity / "root-ca.pem"))
    context.load_cert_chain(identity / "device.pem", identity / "device.key")
    client.tls_set_context(context)
    client.max_inflight_messages_set(2 * WINDOW)
    client.on_subscribe = lambda *_: ready.set()
    descriptor = os.open(out, os.O_RDWR | os.O_CREAT, 0o600)
    state = {"asked": 0, "got": 0}

    def ask() -> None:
        if state["asked"] >= total:
            return
        offset = state["asked"]
        state["asked"] += MAX_CHUNK_BYTES
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = offset.to_bytes(8, "big")
        fetch = {"resource": f"blobs/{sha256}", "offset": offset, "length": MAX_CHUNK_BYTES}
        client.publish(f"{topic}/fetch", json.dumps(fetch), qos=1, properties=properties)

    def on_message(client: Client, userdata: Any, message: Any) -> None:
        _, status, offset, _ = _FRAME.unpack_from(message.payload)
        if status:
            raise RuntimeError(f"the hub answers {status}")
        state["got"] += os.pwrite(descriptor, memoryview(message.payload)[_FRAME.size :], offset)
        ask()
        if state["got"] >= total:
            done.set()

    client.on_message = on_message
    client.connect("localhost", int(port), clean_start=True)
    client.loop_start()
    client.subscribe(f"{topic}/blob", qos=1)
    if not ready.wait(PATIENCE_S):
        raise RuntimeError("no subscription")
    began, cpu_began = time.monotonic(), time.process_time()
    for _ in range(WINDOW):
        ask()
    if not done.wait(PATIENCE_S):
        raise RuntimeError(f"{state['got']} of {total} bytes came")
    print(
        json.dumps({"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu_began})
    )
    client.disconnect()
    client.loop_stop()
    os.close(descriptor)


def sha256_ms_per_mb() -> float:
    """What hashing alone costs here."""
    data = bytes(64 << 20)
    began = time.process_time()
    hashlib.sha256(data).digest()
    return round((time.process_time() - began) * 1e3 / (len(data) / 1e6), 2)


def measure(*, mib: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        bundle, entry = bulky_bundle(directory, mib=mib)
        found = stack.enter_context(fleet(directory))
        edgekit("release", "add", "--fleet", str(found.directory), str(bundle))
        devices = [enrol(found, f"agent-{i}", directory) for i in range(rounds)]
        peers = [enrol(found, f"peer-{i}", directory) for i in range(rounds)]
        chosen = ",".join(device.name for device in devices)
        edgekit("rollout", "start", f"{MODEL}@1.0", "--to", chosen, "--fleet", str(found.directory))
        agent, peer = [], []
        for device, other in zip(devices, peers, strict=True):
            agent.append(agent_round(found, device, entry))
            peer.append(peer_round(found, other, entry, directory / "peer.bin"))
            shutil.rmtree(device)
    return {
        "bytes": entry.size,
        "sha256_cpu_ms_per_mb": sha256_ms_per_mb(),
        "edgekit-agent": agent,
        "plain paho": peer,
    }


def markdown(results: dict[str, Any]) -> str:
    def median(rounds: list[dict[str, Any]], *keys: str) -> float:
        values = []
        for found in rounds:
            value: Any = found
            for key in keys:
                value = value.get(key, float("nan"))
            values.append(float(value))
        return machine.spread(values)["p50"]

    rows = ["| receiver | MB/s | receiver CPU ms/MB | hub CPU ms/MB | broker CPU ms/MB |"]
    rows.append("| --- | ---: | ---: | ---: | ---: |")
    for name in ("edgekit-agent", "plain paho"):
        cpu = [median(results[name], "cpu_ms_per_mb", who) for who in ("receiver", "hub", "broker")]
        rows.append(
            f"| {name} | {median(results[name], 'mb_per_s'):.1f} | "
            + " | ".join(f"{value:.1f}" for value in cpu)
            + " |"
        )
    return "\n".join(rows)


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        return be_peer(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    results = measure(mib=given.mib, rounds=given.rounds)
    if given.markdown:
        print(markdown(results))
    else:
        machine.emit(results)
    return None


if __name__ == "__main__":
    main()
