"""`edgekit new` and `edgekit build` with an edgekit.toml, as a user types them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_requests import DIGITS
from command_line import edgekit

from edgekit.build.project import FILENAME, load_project
from edgekit.build.request import Objective
from edgekit.release.keys import new_key
from edgekit_contract.manifest import ImagePreprocess

PLAN = ("build", "--dry-run", "--json", "--recipe", "float32")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*words: object) -> list[str]:
    """The profiles of the plan that `edgekit build` prints."""
    answer = edgekit(*PLAN, *words)
    assert answer.code == 0, answer.err
    return [plan["profile"] for plan in json.loads(answer.out)["plan"]]


def test_new_file_is_what_build_alone_repeats() -> None:
    made = edgekit(
        "new", DIGITS / "digits.onnx", "--profile", "raspberry-pi-4", "--profile", "demo-small",
        "--objective", "size", "--max-drop", "2%", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert json.loads(made.out)["project"]["max_drop"] == 0.02
    project = load_project(Path(FILENAME))
    assert project.objective is Objective.SIZE
    assert Path(str(project.validation)).resolve() == DIGITS / "validation.npz"
    assert project.postprocess is not None and project.preprocess is None
    assert planned() == ["raspberry-pi-4", "demo-small"]


def test_option_overrides_the_file() -> None:
    edgekit("new", DIGITS / "digits.onnx", "--profile", "raspberry-pi-4", "-o", "mine.toml")
    assert planned("mine.toml") == ["raspberry-pi-4"]
    assert planned("mine.toml", "--profile", "raspberry-pi-5") == ["raspberry-pi-5"]
    answer = edgekit("build", "mine.toml", "--objective", "speed")
    assert answer.code == 2 and "latency, size, accuracy" in answer.err


def test_new_overwrites_nothing() -> None:
    Path(FILENAME).write_text("mine")
    answer = edgekit("new", DIGITS / "digits.onnx", "--profile", "demo-small")
    assert answer.code == 1 and "not overwritten" in answer.err
    assert Path(FILENAME).read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Model"),
        (("absent.onnx",), "absent.onnx"),
        ((DIGITS / "digits.onnx",), "Profiles"),
        ((DIGITS / "digits.onnx", "--profile", "rpi4"), "did you mean raspberry-pi-4"),
        ((DIGITS / "digits.onnx", "--profile", "demo-small", "--validation", "no"), "no data"),
        ((DIGITS / "digits.onnx", "--profile", "demo-small", "--name", "A B"), "model name"),
        ((DIGITS / "digits.onnx", "--profile", "demo-small", "--profile", "demo-small"), "twice"),
    ],
)
def test_new_without_a_terminal_names_what_is_missing_or_wrong(
    words: tuple[object, ...], told: str
) -> None:
    answer = edgekit("new", *words)
    assert answer.code == 2 and told in answer.err
    assert not Path(FILENAME).exists()


def test_build_without_model_and_file_says_what_to_do() -> None:
    answer = edgekit("build")
    assert answer.code == 2 and "edgekit new" in answer.err


def test_named_model_takes_only_what_is_about_it(tmp_path: Path) -> None:
    Path("labels.txt").write_text("a\nb\n")
    Path(FILENAME).write_text('labels = "labels.txt"\nprofiles = ["raspberry-pi-4"]\nmax_mb = 1')
    answer = edgekit("build", DIGITS / "digits.onnx", "--dry-run")
    assert answer.code == 2 and "--profile" in answer.err and FILENAME in answer.err


def test_dry_run_opens_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "right")
    new_key(Path("release.key"), b"right")
    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "wrong")
    edgekit(
        "new", DIGITS / "digits.onnx", "--profile", "demo-small", "--key", "release.key",
    )  # fmt: skip
    assert planned() == ["demo-small"]
    assert edgekit("build").code != 0


def test_build_repeats_the_file_and_writes_a_report_of_each_profile() -> None:
    answer = edgekit(
        "build", DIGITS / FILENAME, "--recipe", "float32*", "--search-time", "1", "-o", "out",
        "--report", "report.html",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    for profile in ("raspberry-pi-4", "demo-small"):
        assert Path(f"out/digits-1.0-{profile}.ekb").exists()
        assert f"for {profile}" in re.sub(
            r"<[^>]*>", "", Path(f"report-{profile}.html").read_text()
        )
    assert answer.out.count("on the frontier of metric and latency: ") == 2
    shown = edgekit("inspect", "out/digits-1.0-demo-small.ekb", "--json")
    manifest = json.loads(shown.out)["manifest"]
    assert manifest["labels"] == "files/labels.txt" and manifest["postprocess"][0]["softmax"]


def test_report_of_an_unknown_kind_is_refused_before_the_build() -> None:
    answer = edgekit("build", DIGITS / FILENAME, "-o", "out", "--report", "report.docx")
    assert answer.code == 2 and not Path("out").exists()


def test_terminal_is_asked_until_the_answers_do(tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes((DIGITS / "digits.onnx").read_bytes())
    said = typed(
        {
            "Model": ["nowhere.onnx", ""],
            "Profiles": ["rpi4", "raspberry-pi-4, demo-small"],
            "Validation": [str(DIGITS / "validation.npz")],
            "Calibration": [""],
            "Best is": ["size"],
            "Greatest loss": ["plenty", "2%"],
            "preprocess": ["y"],
        }
    )
    assert "there is no file nowhere.onnx" in said and "did you mean raspberry-pi-4" in said
    assert "input image: float32" in said and "Raspberry Pi Zero 2" in said
    project = load_project(Path(FILENAME))
    assert project.profiles == ("raspberry-pi-4", "demo-small")
    assert (project.calibration, project.max_drop) == (None, 0.02)
    assert isinstance(project.preprocess, ImagePreprocess) and project.preprocess.height == 28
    assert planned() == ["raspberry-pi-4", "demo-small"]


def typed(answers: dict[str, list[str]]) -> str:
    """Run `edgekit new` on a terminal; answer each question that holds one of these words."""
    main, side = pty.openpty()
    program = [sys.executable, "-c", "from edgekit.cli import main; main()", "new"]
    with subprocess.Popen(program, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        said, unread, deadline = "", "", time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([main], [], [], 1)[0]:
                continue
            try:
                unread += os.read(main, 4096).decode()
            except OSError:  # it has ended
                break
            question = re.search(r"([^\n]*)(?:: |\]: )$", unread)
            for words, left in answers.items():
                if question is not None and words in question[1] and left:
                    os.write(main, f"{left.pop(0)}\n".encode())
                    said, unread = said + unread, ""
        assert process.wait(10) == 0, said + unread
    os.close(main)
    assert not any(answers.values()), (answers, said)
    return said + unread
