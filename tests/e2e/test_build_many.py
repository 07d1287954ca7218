"""Many builds: one that was made before, several in one call, on processes and on Dask."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command_line
import msgspec
import numpy as np
import onnx
import pytest
from build_requests import DIGITS, INT8, host_profile, request
from dying_workers import kills_itself
from parts import need_package

import edgekit_profiles
from edgekit.build import BuildRequest, BuildResult, Cache, build, build_all
from edgekit.build.delivery import recall
from edgekit.build.executors import open_executor
from edgekit.build.farm import Answer, Order, work
from edgekit.build.fingerprint import circumstances
from edgekit.build.progress import Silent
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract import limits
from edgekit_contract.archive import open_archive
from edgekit_contract.envelope import ENVELOPE_PATH, decode
from edgekit_contract.errors import EdgekitError, Misused, Refused
from edgekit_contract.trust import verify_archive

MODEL = DIGITS / "digits.onnx"
DATA = {
    "calibration": str(DIGITS / "calibration.npz"),
    "validation": str(DIGITS / "validation.npz"),
}
SPAWNED_S = 120


def is_sentence(text: str) -> bool:
    text = text.strip()
    return text.endswith(".") and "\n" not in text and len(text) < 500


class Watched:
    """A progress that remembers which stages there were."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Any]:
        self.stages.append(title)
        yield lambda steps: None


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("keys") / "k", None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def asked(output: Path, model: Path = MODEL, **changes: Any) -> BuildRequest:
    words = {
        "recipes": (f"int8-static/per-tensor/{INT8}/minmax",),
        "search_time_s": 100.0,
        **DATA,
        "profiles": (host_profile(),),
    }
    return request(model, output, **(words | changes))


def watched(asked: BuildRequest, cache: Cache) -> tuple[BuildResult, list[str]]:
    watch = Watched()
    return build(asked, progress=watch, cache=cache), watch.stages


@pytest.fixture(scope="module")
def first(cache: Cache, key: PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first build, which finds nothing."""
    result, stages = watched(asked(tmp_path_factory.mktemp("first"), key=key), cache)
    return SimpleNamespace(result=result, stages=stages)


def data_of(result: BuildResult) -> bytes:
    (built,) = result.built
    return built.bundle.path.read_bytes()


def test_first_build_makes_and_measures(first: Any) -> None:
    assert {"reading the model", "calibrating", "searching"} <= set(first.stages)
    assert not first.result.built[0].cached


def test_second_build_makes_nothing_and_gives_the_same_bytes(
    first: Any, cache: Cache, key: PrivateKey, tmp_path: Path
) -> None:
    result, stages = watched(asked(tmp_path, key=key), cache)
    assert stages == ["packing"]
    assert result.built[0].cached
    assert result.built[0].built_at == first.result.built[0].built_at
    assert data_of(result) == data_of(first.result)
    assert result.plan == first.result.plan
    assert result.built[0].report == first.result.built[0].report
    verify_archive(result.built[0].bundle.path, [key.public])


def test_copies_of_model_and_data_elsewhere_are_the_same_thing(
    first: Any, cache: Cache, key: PrivateKey, tmp_path: Path
) -> None:
    for file in ("digits.onnx", "calibration.npz", "validation.npz"):
        shutil.copy(DIGITS / file, tmp_path / file)
    data = {name: str(tmp_path / f"{name}.npz") for name in DATA}
    moved = asked(tmp_path / "out", tmp_path / "digits.onnx", key=key, **data)
    result, stages = watched(moved, cache)
    assert stages == ["packing"]
    # but for the commit that the model is of: the copy is of none
    assert decode(envelope(result)).manifest.provenance.git_commit is None


def envelope(result: BuildResult) -> bytes:
    archive = open_archive(result.built[0].bundle.path)
    return archive.read(ENVELOPE_PATH, limit_bytes=limits.MAX_ENVELOPE_BYTES)


def test_what_is_kept_is_signed_by_the_key_of_the_day(
    first: Any, cache: Cache, tmp_path: Path
) -> None:
    another = new_key(tmp_path / "another", None)
    result, stages = watched(asked(tmp_path, key=another), cache)
    assert stages == ["packing"]
    verify_archive(result.built[0].bundle.path, [another.public])
    unsigned, _ = watched(asked(tmp_path), cache)
    assert not unsigned.built[0].bundle.signed


def test_nothing_kept_knows_a_key(first: Any, cache: Cache, key: PrivateKey) -> None:
    kept = [path.read_bytes() for path in cache.root.rglob("*") if path.is_file()]
    assert kept
    assert not [data for data in kept if key.keyid.encode() in data]


def test_other_options_take_the_normalized_model_and_the_ranges(
    first: Any, cache: Cache, tmp_path: Path
) -> None:
    before = {usage.kind: usage.entries for usage in cache.usage()}
    result, stages = watched(asked(tmp_path, max_drop=0.02), cache)
    assert "calibrating" not in stages
    assert "searching" in stages
    assert not result.built[0].cached
    assert result.built[0].report.normalization == first.result.built[0].report.normalization
    after = {usage.kind: usage.entries for usage in cache.usage()}
    assert after == before | {"bundles": before["bundles"] + 1}
    assert (
        result.built[0].report.calibration_samples
        == first.result.built[0].report.calibration_samples
    )


def test_profile_that_is_added_is_built_and_the_other_is_not(
    first: Any, cache: Cache, key: PrivateKey, tmp_path: Path
) -> None:
    (known,) = asked(tmp_path).profiles
    both = (msgspec.structs.replace(host_profile(), name="host"), known)
    result, stages = watched(asked(tmp_path, key=key, profiles=both, search_time_s=200.0), cache)
    assert "calibrating" not in stages
    assert [built.cached for built in result.built] == [False, True]
    assert [plan.profile.name for plan in result.plan.profiles] == [p.name for p in both]
    assert result.built[1].bundle.path.read_bytes() == data_of(first.result)


def is_known(asked: BuildRequest, cache: Cache, scratch: Path) -> bool:
    return recall(asked, scratch=scratch, cache=cache) is not None


def test_data_that_differ_in_one_byte_are_other_data(
    first: Any, cache: Cache, tmp_path: Path
) -> None:
    with np.load(DATA["validation"]) as arrays:
        changed = dict(arrays)
    shutil.copy(DATA["validation"], tmp_path / "copy.npz")
    changed["image"][3, 0, 0, 0] += 0.25
    np.savez(tmp_path / "other.npz", **changed)
    known = {
        name: is_known(asked(tmp_path, validation=str(tmp_path / name)), cache, tmp_path)
        for name in ("copy.npz", "other.npz")
    }
    assert known == {"copy.npz": True, "other.npz": False}


def test_damaged_entry_is_built_anew(
    first: Any, cache: Cache, key: PrivateKey, tmp_path: Path
) -> None:
    hurt = Cache(tmp_path / "cache")
    shutil.copytree(cache.root, hurt.root)
    for path in hurt.root.rglob("*.parcel"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    result, stages = watched(asked(tmp_path, key=key), hurt)
    assert {"calibrating", "searching"} <= set(stages)
    assert not result.built[0].cached
    assert is_known(asked(tmp_path), hurt, tmp_path)


def test_model_with_weights_beside_it_is_known_by_them(cache: Cache, tmp_path: Path) -> None:
    def save(bias: float) -> Path:
        model = onnx.load_model(MODEL)
        weight = next(t for t in model.graph.initializer if len(t.dims) == 1)
        array = onnx.numpy_helper.to_array(weight) + np.float32(bias)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        path = tmp_path / "m.onnx"
        (tmp_path / "weights").unlink(missing_ok=True)
        onnx.save_model(
            model, path, save_as_external_data=True, location="weights", size_threshold=0
        )
        return path

    def known(bias: float) -> bool:
        return is_known(quick_of(save(bias), tmp_path), cache, tmp_path)

    assert not known(0.0)
    build(quick_of(save(0.0), tmp_path), cache=cache)
    assert [known(0.0), known(0.01), known(0.0)] == [True, False, True]


def test_build_without_a_cache_keeps_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_CACHE_MIB", "100")
    words = ("build", MODEL, "--profile", "demo-small", "--recipe", "float32", "-o", tmp_path)
    for _ in range(2):
        done = command_line.edgekit(*words, "--no-cache", "--json")
        assert done.code == 0, done.err
        assert not json.loads(done.out)["bundles"][0]["cached"]
    assert not (tmp_path / "cache").exists()


def test_command_says_that_it_is_from_the_cache_and_shows_and_empties_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_CACHE_MIB", "100")
    words = ("build", MODEL, "--profile", "demo-small", "--recipe", "float32", "-o", tmp_path)
    made = command_line.edgekit(*words, "--json")
    found = command_line.edgekit(*words)
    assert made.code == found.code == 0, found.err
    (bundle,) = json.loads(made.out)["bundles"]
    assert f"from the cache, built on {bundle['built_at']}" in found.out
    shown = json.loads(command_line.edgekit("cache", "--json").out)
    assert shown["place"] == str(tmp_path / "cache" / "build")
    assert shown["entries"] >= 2
    assert shown["size_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "cache").rglob("*.parcel")
    )
    assert str(tmp_path / "cache") in command_line.edgekit("cache").out
    pruned = json.loads(command_line.edgekit("cache", "prune", "--max-mib", "0", "--json").out)
    assert pruned["dropped"] == shown["entries"]
    assert command_line.edgekit(*words).code == 0
    assert "dropped" in command_line.edgekit("cache", "clear").out
    assert json.loads(command_line.edgekit("cache", "--json").out)["entries"] == 0


def test_cache_command_without_a_cache_says_what_to_do(monkeypatch: Any) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE_MIB", "0")
    done = command_line.edgekit("cache")
    assert done.code == 2
    assert is_sentence(done.err.removeprefix("edgekit: "))


# Several models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one that is cut short, and one with an edgekit.toml."""
    home = tmp_path_factory.mktemp("models")
    shutil.copy(MODEL, home / "good.onnx")
    (home / "cut.onnx").write_bytes(MODEL.read_bytes()[:2000])
    (home / "told").mkdir()
    shutil.copy(MODEL, home / "told" / "model.onnx")
    (home / "told" / "edgekit.toml").write_text(
        'model = "model.onnx"\nname = "told"\nversion = "2.0"\n'
    )
    return home


COMMON = ("--profile", "demo-small", "--recipe", "float32", "--search-time", "1")


def names_in(output: Path) -> set[str]:
    return {path.name for path in output.iterdir()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_broken_model_loses_no_other(models: Path, tmp_path: Path, jobs: int) -> None:
    """As typed: a real process, whose workers are processes, too."""
    words = [models / "good.onnx", models / "cut.onnx", models / "told" / "edgekit.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", *map(str, words), *COMMON, "--json",
         "--jobs", str(jobs), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=SPAWNED_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)["builds"]
    assert [Path(one["model"]).name for one in told] == ["good.onnx", "cut.onnx", "edgekit.toml"]
    assert [set(one) for one in told] == [
        {"model", "plan", "bundles"},
        {"model", "error", "misused"},
        {"model", "plan", "bundles"},
    ]
    assert is_sentence(told[1]["error"])
    assert not told[1]["misused"]
    assert f"{words[1]}: {told[1]['error']}" in done.stderr
    assert names_in(tmp_path / "out") == {
        "good-1.0.0-demo-small.ekb",
        "told-2.0-demo-small.ekb",
    }
    stages = [line for line in done.stderr.splitlines() if line.endswith("...")]
    assert {line.partition(":")[0] for line in stages} == {"good", "cut", "told"}


def test_several_that_are_misused_end_with_code_2_and_one_of_each_with_1(
    models: Path, tmp_path: Path
) -> None:
    def code(*paths: Path) -> int:
        return command_line.edgekit("build", *paths, *COMMON, "-o", tmp_path).code

    missing, cut = models / "missing.onnx", models / "cut.onnx"
    assert code(missing, models / "good.onnx") == 2
    assert code(missing, cut) == 1
    assert (tmp_path / "good-1.0.0-demo-small.ekb").exists()


def test_reports_of_several_are_a_file_for_each(models: Path, tmp_path: Path) -> None:
    done = command_line.edgekit(
        "build", models / "good.onnx", models / "told" / "edgekit.toml", *COMMON,
        "-o", tmp_path, "--report", tmp_path / "r.md",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {"r-good-1.0.0-demo-small.md", "r-told-2.0-demo-small.md"} <= names_in(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("good.onnx", "cut.onnx", "--name", "x"), "--name names one model"),
        (("good.onnx", "good.onnx"), "would both be good-1.0.0-demo-small.ekb"),
        (("good.onnx", "--jobs", "2", "--executor", "process://2"), "give one of them"),
        (("good.onnx", "--executor", "moon://base"), "there is no executor"),
        (("good.onnx", "--executor", "process://many"), "names no number"),
        (("good.onnx", "--executor", "dask://nowhere"), "names no scheduler"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    models: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    typed = [models / word if word.endswith(".onnx") else word for word in words]
    done = command_line.edgekit("build", *typed, *COMMON, "-o", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert is_sentence(done.err.splitlines()[-1].removeprefix("edgekit: "))
    assert not list(tmp_path.glob("out/*.ekb"))


def test_modules_of_one_name_from_two_places_are_not_mixed_up(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir()
        shutil.copy(MODEL, home / f"{name}.onnx")
        (home / "mydata.py").write_text("")
        (home / "edgekit.toml").write_text(
            f'model = "{name}.onnx"\nprofiles = ["demo-small"]\nvalidation = "mydata:rows"\n'
        )
        paths.append(home / "edgekit.toml")
    done = command_line.edgekit("build", *paths, "-o", tmp_path, "--dry-run")
    assert f"the module mydata of mydata:rows is another in {tmp_path / 'a'}" in done.err


# Executors


def order(asked: BuildRequest, **changes: Any) -> Order:
    words: dict[str, Any] = {
        "request": asked,
        "progress": Silent(),
        "cache": None,
        "is_local": True,
        "source": circumstances().source,
    }
    return Order(**(words | changes))


def quick(output: Path, name: str = "digits", **changes: Any) -> BuildRequest:
    return quick_of(MODEL, output, name=name, **changes)


def quick_of(model: Path, output: Path, **changes: Any) -> BuildRequest:
    return request(model, output, recipes=("float32",), search_time_s=0.5, **changes)


class Listening(ThreadPoolExecutor):
    """A stranger's executor; keeps what crosses to its workers and back as a network would."""

    crossed: list[bytes] = []  # noqa: RUF012

    def submit(self, call: Any, /, *words: Any, **named: Any) -> Any:
        def across() -> Any:
            sent = pickle.dumps((call, words, named))
            there, there_words, there_named = pickle.loads(sent)
            back = pickle.dumps(there(*there_words, **there_named))
            self.crossed += [sent, back]
            return pickle.loads(back)

        return super().submit(across)


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """An installed package that brings `listening://`; returns what crossed."""
    point = SimpleNamespace(name="listening", load=lambda: lambda url: Listening(1))
    entry_points = __import__("importlib.metadata").metadata.entry_points
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda **which: (
            [point] if which.get("group") == "edgekit.executors" else entry_points(**which)
        ),
    )
    Listening.crossed = []
    return Listening.crossed


def test_executor_of_a_stranger_builds_and_sees_no_key(
    stranger: list[bytes], key: PrivateKey, tmp_path: Path
) -> None:
    (result,) = build_all([quick(tmp_path, key=key)], executor="listening://x")
    assert isinstance(result, BuildResult)
    verify_archive(result.built[0].bundle.path, [key.public])
    secret = key.private.private_bytes_raw()
    assert len(Listening.crossed) == 2
    for crossed in Listening.crossed:
        assert secret not in crossed
        assert key.keyid.encode() not in crossed


def test_worker_with_another_edgekit_refuses(tmp_path: Path) -> None:
    answer = work(order(quick(tmp_path), source="another"))
    assert answer.refusal is not None
    assert "another edgekit" in answer.refusal
    assert not answer.parcels


def test_what_a_worker_sends_back_damaged_is_refused_and_not_written(
    stranger: list[bytes], key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work(order(quick(tmp_path)))
    (parcel,) = real.parcels
    hurt = bytearray(parcel)
    hurt[len(hurt) // 2] ^= 1
    monkeypatch.setattr("edgekit.build.farm.work", returns_hurt)
    returns_hurt.answer = Answer(parcels=(bytes(hurt),))  # type: ignore[attr-defined]
    (error,) = build_all([quick(tmp_path / "out", key=key)], executor="listening://x")
    assert isinstance(error, Refused)
    assert is_sentence(str(error))
    assert not list((tmp_path / "out").glob("*.ekb"))


def returns_hurt(order: Order) -> Answer:
    return returns_hurt.answer  # type: ignore[attr-defined,no-any-return]


def test_worker_that_is_killed_takes_no_other_build_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.build.farm.work", kills_itself)
    requests = [quick(tmp_path, "killer"), quick(tmp_path, "victim")]
    killed, other = build_all(requests, executor="process://1")
    assert isinstance(killed, EdgekitError)
    assert "the build of killer was lost" in str(killed)
    assert is_sentence(str(killed))
    assert isinstance(other, BuildResult)
    assert names_in(tmp_path) == {"victim-1.0-demo-small.ekb"}


def wait_for_end(session: int) -> None:
    """Demand that all processes of a session end."""
    ends = time.monotonic() + 30
    while found := [entry for entry in Path("/proc").iterdir() if is_of(entry, session)]:
        told = [(entry / "cmdline").read_bytes() for entry in found]
        assert time.monotonic() < ends, told
        time.sleep(0.1)


def is_of(entry: Path, session: int) -> bool:
    """Whether it is a process of the session that has not ended (proc(5), stat)."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[3] == str(session) and fields[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_farm_leaves_no_process_and_no_scratch(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C on a terminal goes to all; here only the caller hears it."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    for name in ("a", "b"):
        shutil.copy(MODEL, tmp_path / f"{name}.onnx")
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", "a.onnx", "b.onnx", "--profile", "demo-small",
         "--jobs", "2", "-o", "out", *(w for n, d in DATA.items() for w in (f"--{n}", d))],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as caller:  # fmt: skip
        assert caller.stderr is not None
        said = []
        for line in caller.stderr:
            said.append(line)
            if "searching" in line:
                break
        caller.send_signal(number)
        _, rest = caller.communicate(timeout=SPAWNED_S)
    assert caller.returncode == 130, (said, rest)
    assert rest.endswith("edgekit: stopped.\n") and "leaked" not in rest
    wait_for_end(caller.pid)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.onnx", "b.onnx"}


def test_workers_end_when_their_caller_is_killed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(MODEL, tmp_path / f"{name}.onnx")
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", "a.onnx", "b.onnx", "--profile", "demo-small",
         "--jobs", "2", "-o", "out", *(w for n, d in DATA.items() for w in (f"--{n}", d))],
        cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as caller:  # fmt: skip
        assert caller.stderr is not None
        for line in caller.stderr:
            if "searching" in line:
                break
        caller.kill()
        caller.communicate(timeout=SPAWNED_S)  # until the last worker closes stderr
    wait_for_end(caller.pid)
    assert not list(tmp_path.glob("edgekit-build-*"))


# Dask


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers, as processes of their own on this machine."""
    need_package("distributed", install="'edgekit[dask]'")
    home = tmp_path_factory.mktemp("dask")
    code = (
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True,\n"
        "                      host='127.0.0.1', dashboard_address=None) as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n"
        "        input()\n"
    )
    (home / "cluster.py").write_text(code)
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "cluster.py"], cwd=home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        ) as cluster,
    ):  # fmt: skip
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert address.startswith("tcp://127.0.0.1:"), (home / "log").read_text()
        yield address.replace("tcp://", "dask://")
        cluster.communicate("\n", timeout=SPAWNED_S)


def test_dask_builds_elsewhere_and_the_caller_signs(
    dask: str, key: PrivateKey, models: Path, tmp_path: Path
) -> None:
    """Paths are relative here and the workers are in another directory."""
    key_file = tmp_path / "k"
    new = new_key(key_file, None)
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", "good.onnx", "cut.onnx", "told/edgekit.toml",
         *COMMON, "--executor", dask, "--json", "--key", str(key_file),
         "-o", str(tmp_path / "out")],
        cwd=models, capture_output=True, text=True, timeout=SPAWNED_S, check=False,
        env=os.environ | {"EDGEKIT_PASSPHRASE": ""},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    good, cut, told = json.loads(done.stdout)["builds"]
    assert "does not parse" in cut["error"]
    for one in (good, told):
        (bundle,) = one["bundles"]
        verify_archive(Path(bundle["path"]), [new.public])
        assert hashlib.sha256(Path(bundle["path"]).read_bytes()).digest()


def test_dask_without_a_scheduler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    need_package("distributed", install="'edgekit[dask]'")
    monkeypatch.setattr("edgekit.build.executors._CONNECT_S", 0.5)
    with pytest.raises(Refused) as refusal, open_executor("dask://127.0.0.1:9"):
        pass
    assert is_sentence(str(refusal.value))


def test_dask_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(Misused, match=r"edgekit\[dask\]"), open_executor("dask://127.0.0.1:9"):
        pass


def test_executors_are_those_of_concurrent_futures(dask: str) -> None:
    for url in (dask, "process://1"):
        with open_executor(url) as executor:
            assert isinstance(executor, Executor)
            assert executor.submit(int, "7").result(timeout=SPAWNED_S) == 7


def test_request_loses_nothing_on_its_way(tmp_path: Path) -> None:
    asked = quick(tmp_path, profiles=(edgekit_profiles.load("raspberry-pi-5"), host_profile()))
    assert pickle.loads(pickle.dumps(replace(asked, key=None))) == asked
