"""The wheel in clean environments: what a device installs, and what a bare install says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from agent_processes import join
from fleets import eventually, make_fleet
from wheels import ROOT, build_wheel, clean_environment, environment, interpreters, run

PACKAGES = {
    "edgekit",
    "edgekit_agent",
    "edgekit_contract",
    "edgekit_converters",
    "edgekit_profiles",
    "edgekit_runtime",
}
HOST_ONLY = (
    "click rich onnx PIL aiomqtt sqlalchemy fastapi starlette pydantic uvicorn jinja2 "
    "websockets torch tensorflow edgekit_converters edgekit_profiles edgekit.build edgekit.hub"
).split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("device"), f"{wheel}[agent]")


def test_wheel_holds_the_six_packages_and_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == PACKAGES
    assert "edgekit_profiles/raspberry-pi-4.toml" in names
    assert "edgekit/web/static/vendor/uplot.js" in names
    assert "edgekit/demo/digits/digits.onnx" in names


def test_device_install_imports_every_device_module_and_no_host_one(device: Path) -> None:
    script = """
import importlib, json, pkgutil, sys
for package in ("edgekit_contract", "edgekit_runtime", "edgekit_agent"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(json.loads(run(device, "-c", script).stdout))
    assert "edgekit_agent.daemon" in loaded
    assert not loaded & set(HOST_ONLY)


def test_device_install_brings_no_host_distribution(device: Path) -> None:
    listed = json.loads(run(device, "-m", "pip", "list", "--format=json").stdout)
    installed = {entry["name"].lower() for entry in listed}
    assert not installed & {*HOST_ONLY, "pillow"}


def test_agent_of_a_device_install_runs_an_enrolled_device_without_its_broker(
    device: Path, tmp_path: Path
) -> None:
    where = join(make_fleet(tmp_path / "fleet"), tmp_path / "d1", "d1").directory
    agent = device.parent / "edgekit-agent"
    log = tmp_path / "agent.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [agent, "run", "--dir", where], stderr=stream, env=clean_environment(), cwd="/"
        )
    try:

        def state() -> dict[str, Any]:
            assert process.poll() is None, log.read_text()
            answer = run(agent, "status", "--json", "--dir", where, check=False)
            return json.loads(answer.stdout) if answer.returncode == 0 else {}

        eventually(lambda: "trying again" in state().get("connection", ""))
        assert (state()["id"], state()["fleet"]) == ("d1", "lab")
        said = run(agent, "status", "--dir", where).stdout
        assert said.startswith("d1 of lab: ") and "trying again" in said
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_agent_of_a_device_install_says_what_to_do_without_an_enrolment(
    device: Path, tmp_path: Path
) -> None:
    agent = device.parent / "edgekit-agent"
    answer = run(agent, "run", "--dir", tmp_path / "nowhere", check=False)
    assert answer.returncode in (1, 2)
    assert "edgekit-agent enroll" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "enroll" in run(agent, "--help").stdout


def test_host_command_on_a_device_says_how_to_install_it(device: Path) -> None:
    answer = run(device.parent / "edgekit", "build", check=False)
    assert answer.returncode != 0
    assert "edgekit[host]" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_base_install_holds_only_what_the_contract_needs(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = environment(tmp_path_factory.mktemp("base"), str(wheel))
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json").stdout)
    names = {entry["name"].lower() for entry in listed} - {"pip", "setuptools"}
    allowed = {"edgekit", "msgspec", "cryptography", "cffi", "pycparser", "tomli"}
    assert names <= allowed | {"typing-extensions", "typing_extensions"}
    run(python, "-c", "import edgekit_contract.trust, edgekit_contract.messages")
    answer = run(python.parent / "edgekit", check=False)
    assert (answer.returncode != 0, "edgekit[host]" in answer.stderr) == (True, True)


def test_agent_tells_its_version(device: Path) -> None:
    assert "edgekit-agent" in run(device, "-m", "edgekit_agent", "--version").stdout


def device_tests() -> list[Path]:
    """Tests of what ships to devices: they import no host package that needs host libraries."""
    folders = [ROOT / "tests" / "contract"]
    units = [
        *(ROOT / "tests" / "unit").glob("test_agent_*.py"),
        *(
            ROOT / "tests" / "unit" / f"test_{name}.py"
            for name in ("compatibility", "errors", "golden", "names", "oip", "worker_stats")
        ),
    ]
    return folders + sorted(units)


VERSIONS = [f"3.{minor}" for minor in range(10, 14) if minor != sys.version_info.minor]


@pytest.mark.parametrize("version", VERSIONS)
def test_device_packages_work_on_python(
    version: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if version not in interpreters():
        pytest.skip(f"Python {version} is not on this machine")
    where = tmp_path_factory.mktemp(f"python{version}")
    python = environment(
        where,
        f"{wheel}[agent,onnx,tflite]",
        "pytest",
        "pytest-asyncio",
        "hypothesis",
        "onnx",
        python=interpreters()[version],
    )
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *device_tests(), cwd=ROOT)
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
