"""What a device knows of itself: configuration, record, slots, facts, health, reports."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import psutil
import pytest
from agents import wait_for
from hypothesis import given
from hypothesis import strategies as st

import edgekit_profiles
from edgekit_agent import config, facts
from edgekit_agent.clock import BUILT, latest
from edgekit_agent.config import DeviceConfig, Knobs, ThermalPaths
from edgekit_agent.control import MetadataVersions
from edgekit_agent.endpoints import connect_unix, listen_tcp, listen_unix
from edgekit_agent.health import HostMeter, ProcessMeter, _family
from edgekit_agent.record import Record, RecordFile, raised, raised_counter
from edgekit_agent.reporting import fitting_health, fitting_report
from edgekit_agent.slots import Active, Slot, Slots
from edgekit_contract.errors import Misused
from edgekit_contract.limits import MAX_CONTROL_BYTES
from edgekit_contract.messages import (
    BundleRef,
    DeviceFacts,
    Execution,
    Health,
    ModelHealth,
    Outcome,
    OutcomeKind,
    Phase,
    ProcessMetrics,
    Reported,
    ReportedModel,
    decode,
    encode,
)

AT = datetime(2026, 11, 1, tzinfo=timezone.utc)
CONFIG = DeviceConfig(
    id="d1",
    fleet="lab",
    profile="raspberry-pi-4",
    hub_url='https://h"ub\\:8443',
    mqtt_host="broker.example",
    mqtt_port=8883,
)


# --- configuration


def write_config(directory: Path, text: str) -> None:
    (directory / "device.toml").write_text(text)
    (directory / "profile.toml").write_bytes(edgekit_profiles.text("raspberry-pi-4"))


def test_what_enrolment_writes_is_read_back(tmp_path: Path) -> None:
    write_config(tmp_path, config.render(CONFIG))
    read, trimmed = config.load(tmp_path)
    assert read == CONFIG
    assert trimmed.thermal.temperature


def test_a_knob_can_be_turned_by_appending_a_line(tmp_path: Path) -> None:
    write_config(tmp_path, config.render(CONFIG) + "probation_s = 4\nhealth_s = 1\n")
    read, _ = config.load(tmp_path)
    assert (read.agent.probation_s, read.agent.health_s) == (4, 1)
    assert read.agent.probation.duration_s == 4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("probation_s = 0", "probation_s"),
        ("health_s = -1", "health_s"),
        ("helth_s = 1", "helth_s"),
        ("api_port = 70000", "api_port"),
        ("= 3", "device.toml"),
    ],
)
def test_a_wrong_knob_is_named(tmp_path: Path, line: str, says: str) -> None:
    write_config(tmp_path, config.render(CONFIG) + line + "\n")
    with pytest.raises(Misused, match=says):
        config.load(tmp_path)


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(Misused, match="edgekit-agent enroll"):
        config.load(tmp_path)


def test_every_knob_and_its_default_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (\S+) \|", page, re.MULTILINE)
    defaults = msgspec.structs.asdict(Knobs()).items()
    assert dict(rows) == {
        name: "none" if value is None else f"{value:g}" for name, value in defaults
    }


# --- record and slots


@given(
    first=st.tuples(*[st.integers(0, 9)] * 4),
    second=st.tuples(*[st.integers(0, 9)] * 4),
    days=st.integers(-400, 400),
)
def test_floors_never_sink(first: tuple[int, ...], second: tuple[int, ...], days: int) -> None:
    names = ("root", "timestamp", "snapshot", "targets")
    record = Record(versions=MetadataVersions(**dict(zip(names, first, strict=True))))
    proven = BUILT + timedelta(days=days)
    after = raised(record, MetadataVersions(**dict(zip(names, second, strict=True)), proven=proven))
    for name, a, b in zip(names, first, second, strict=True):
        assert getattr(after.versions, name) == max(a, b)
    assert after.time_floor == max(record.time_floor, proven)
    assert raised_counter(raised_counter(after, "m", 7), "m", 3).counters["m"] == 7


def test_one_damaged_copy_of_the_record_is_made_good_by_the_other(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    file.save(Record(generation=4))
    for name in ("record.json", "record.copy.json"):
        whole = (tmp_path / name).read_bytes()
        for broken in (b"", whole[:-5], whole.replace(b"4", b"5")):
            (tmp_path / name).write_bytes(broken)
            again = RecordFile(tmp_path)
            assert again.value.generation == 4
            assert not again.damaged
        (tmp_path / name).write_bytes(whole)


def test_a_record_that_is_lost_is_noticed(tmp_path: Path) -> None:
    assert not RecordFile(tmp_path).damaged
    RecordFile(tmp_path).save(Record(generation=4))
    for name in ("record.json", "record.copy.json"):
        (tmp_path / name).write_bytes(b"junk")
    assert RecordFile(tmp_path).damaged


def test_the_switch_is_one_file(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assert slots.active() is None
    assert slots.inactive is Slot.A
    active = Active(slot=Slot.A, version="1", digest="00", counter=1, floor=0)
    slots.switch(active)
    assert slots.active() == active
    assert slots.inactive is Slot.B
    slots.switch(None)
    slots.switch(None)
    assert slots.active() is None


def test_time_is_never_before_what_is_known() -> None:
    nineteen70 = datetime(1970, 1, 1, tzinfo=timezone.utc)
    assert latest(nineteen70) == BUILT
    assert latest(nineteen70, AT, None) == max(AT, BUILT)
    assert latest(AT + timedelta(days=900), AT) == AT + timedelta(days=900)


# --- facts and health


def fake_root(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_facts_of_a_board_are_read_from_proc(tmp_path: Path) -> None:
    core = "processor: {}\nFeatures\t: fp asimd evtstrm crc32 {}cpuid\n\n"
    root = fake_root(
        tmp_path,
        {
            "proc/cpuinfo": core.format(0, "asimddp ") + core.format(1, ""),
            "proc/meminfo": "MemTotal:         441568 kB\nMemFree: 1 kB\n",
            "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        },
    )
    found = facts.collect("raspberry-pi-zero-2w", root=root)
    assert found.features == ("asimd", "crc32"), "what not every core has is left out"
    assert found.ram_bytes == 441568 * 1024
    assert found.board == "Raspberry Pi Zero 2 W Rev 1.0"
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert found.runtimes["null"]


def test_facts_of_this_machine_fit_a_message() -> None:
    assert len(encode(facts.collect("demo-small"))) < MAX_CONTROL_BYTES / 4


@pytest.mark.parametrize(
    ("word", "throttled"), [("0x0", False), ("50005", True), ("0x50000", False), ("junk", None)]
)
def test_temperature_and_throttling_come_from_the_profiles_paths(
    tmp_path: Path, word: str, throttled: bool | None
) -> None:
    root = fake_root(tmp_path, {"zone0": "48312\n", "zone1": "61250\n", "word": word + "\n"})
    paths = ThermalPaths(temperature=(f"{root}/zone*",), throttled=(f"{root}/word",))
    host = HostMeter(tmp_path, paths).measure()
    assert host.temperature_c == 61.25
    assert host.throttled is throttled
    assert host.disk_free_bytes and host.ram_used_bytes


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    paths = ThermalPaths(temperature=(f"{tmp_path}/no*",), throttled=(f"{tmp_path}/no",))
    host = HostMeter(tmp_path, paths).measure()
    assert host.temperature_c is None
    assert host.throttled is None


def test_a_process_is_measured_and_a_dead_one_is_not() -> None:
    meter = ProcessMeter()
    ours = meter.measure(os.getpid())
    assert ours is not None and ours.rss_bytes == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.2
    )
    assert meter.measure(2**22 + 1) is None


def test_the_updater_is_measured_with_what_it_has_started() -> None:
    script = "import subprocess, sys; subprocess.run(['cat'], stdin=sys.stdin)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        wait_for(lambda: psutil.Process(process.pid).children())
        meter = ProcessMeter()
        family = _family(process.pid)
        both, alone = meter.sum(family), meter.measure(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert len(family) == 2
    assert both is not None and alone is not None
    assert both.rss_bytes > alone.rss_bytes


# --- what fits a message

_LONG = "m" * 60


def report(count: int) -> Reported:
    last = Outcome(
        kind=OutcomeKind.REFUSED,
        version="2026.11-rc1",
        digest="ab" * 32,
        phase=Phase.WARMUP,
        reason="r" * 200,
        at=AT,
    )
    models = {
        f"{_LONG}{n:03}": ReportedModel(
            active=BundleRef(version="2026.11-rc1", digest="cd" * 32, counter=12),
            phase=Phase.FETCH,
            target="2026.12",
            progress=0.123,
            last=last,
            port=8000 + n,
            execution=Execution(
                asked=("TensorrtExecutionProvider", "CUDAExecutionProvider"),
                used=("CPUExecutionProvider",),
                reason="r" * 200,
            ),
        )
        for n in range(count)
    }
    facts_ = DeviceFacts(
        profile="p" * 60,
        arch="aarch64",
        features=tuple(f"feature{n}" for n in range(30)),
        cores=8,
        ram_bytes=2**33,
        board="b" * 80,
        os="o" * 60,
        python="3.11.2",
        agent="0.1.0",
        runtimes={"onnxruntime": "1.32.0", "litert": "2.3.0"},
    )
    return Reported(at=AT, generation=5, models=models, device=facts_)


def longest(count: int) -> Reported:
    """Names and versions as long as they may be, in every field."""
    version = "2" * 31 + "-" + "r" * 16
    short = report(count)
    models = {
        name[:61].ljust(61, "x") + f"{n:03}": msgspec.structs.replace(
            model,
            active=BundleRef(version=version, digest="cd" * 32, counter=2**53 - 1),
            phase=Phase.PROBATION,
            target=version,
            port=65535,
        )
        for n, (name, model) in enumerate(short.models.items())
    }
    return msgspec.structs.replace(short, models=models, generation=2**53 - 1)


@pytest.mark.parametrize("count", [0, 1, 4, 8, 11, 14, 16])
@pytest.mark.parametrize("report", [report, longest])
def test_a_report_fits_whatever_the_device_has_to_say(
    report: Callable[[int], Reported], count: int
) -> None:
    data = fitting_report(report(count))
    assert len(data) <= MAX_CONTROL_BYTES
    assert len(decode(data, Reported).models) == count


def test_a_report_of_more_models_than_a_hub_may_want_leaves_some_out() -> None:
    assert 0 < len(decode(fitting_report(longest(40)), Reported).models) < 40


def test_a_fallback_is_told_longer_than_that_all_is_well() -> None:
    """Of seven models a report holds all but the words that say nothing new."""
    lame = report(7)
    name = next(iter(lame.models))
    well = Execution(asked=("CPUExecutionProvider",), used=("CPUExecutionProvider",))
    models = {
        other: msgspec.structs.replace(model, execution=well) if other != name else model
        for other, model in lame.models.items()
    }
    sent = decode(fitting_report(msgspec.structs.replace(lame, models=models)), Reported).models
    told = sent.pop(name).execution
    assert told is not None and told.missed
    assert all(model.execution is None for model in sent.values())


def test_a_short_report_is_not_cut() -> None:
    assert decode(fitting_report(report(1)), Reported) == report(1)


def test_health_fits_with_the_most_models() -> None:
    process = ProcessMetrics(rss_bytes=2**30, cpu_percent=99.9)
    models = {
        f"{_LONG}{n:03}": ModelHealth(
            version="2026.11-rc1",
            worker=process,
            inferences=2**40,
            errors=2**30,
            rejected=2**30,
            restarts=9,
            p50_ms=1.2345,
            p95_ms=2.3456,
            p99_ms=3.4567,
        )
        for n in range(16)
    }
    fitted = fitting_health(Health(stream="s" * 16, seq=2**40, at=AT, models=models))
    assert len(encode(fitted)) <= MAX_CONTROL_BYTES


# --- sockets


def test_a_unix_socket_may_lie_deeper_than_an_address_reaches(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with listen_unix(deep / "model.sock") as listener:
        assert (deep / "model.sock").stat().st_mode & 0o777 == 0o600
        with connect_unix(deep / "model.sock", timeout_s=5) as client:
            server, _ = listener.accept()
            with server:
                server.sendall(b"hello")
            assert client.recv(10) == b"hello"


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert listen_tcp(other.getsockname()[1]) is None


def test_a_control_message_survives_its_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(report(1)), type=Reported) == report(1)
