"""The update machine, whole: real daemon, updater, worker, python-tuf; a function call for MQTT."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from agents import QUICK, DirectLink, Shop, make_device, running, variant
from bundles import SmallBundle, litert_bundle, null_bundle, onnx_bundle
from plugins import add_plugin

from edgekit_agent import supervisor
from edgekit_agent.__main__ import main
from edgekit_agent.link import Received
from edgekit_agent.slots import Slot, Slots
from edgekit_contract.messages import EventKind, OutcomeKind, Phase
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.topics import Kind

WHOLE = [
    Phase.CHECK,
    Phase.PREFLIGHT,
    Phase.FETCH,
    Phase.VERIFY,
    Phase.STAGE,
    Phase.WARMUP,
    Phase.SWITCH,
    Phase.PROBATION,
    Phase.COMMIT,
]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "fleet")


@pytest.fixture
def link(shop: Shop) -> DirectLink:
    return DirectLink(shop.depot)


@pytest.fixture
def device(tmp_path: Path, shop: Shop) -> Path:
    return make_device(tmp_path / "device", shop)


def ask(
    port: int | None, values: list[float], model: str = "tiny"
) -> tuple[int, dict[str, object]]:
    """One inference over the local API: status and answer."""
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    shape = [1, len(values)]
    body = {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": values}]}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def worker_pid(version: str = "") -> int:
    """The worker that this process started (from slot `version`, if given)."""
    found = [
        child.pid
        for child in psutil.Process().children()
        if "edgekit_agent.worker" in (command := child.cmdline())
        and command[command.index("--bundle") + 1].endswith(version)
    ]
    return found[-1]


def test_a_device_goes_from_check_to_commit_and_serves(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert link.outcomes() == [("committed", "1.0")]
        assert link.phases == WHOLE
        status, answer = ask(agent.model().port, [1, 2, 3, 4])
        assert status == 200
        assert answer["outputs"][0]["data"] == [10.0]  # type: ignore[index]
        agent.wait(lambda: link.health and link.health[-1].models, "health of the model")
        assert link.status is not None and link.status.online
    assert link.status is not None and not link.status.online


@pytest.mark.parametrize("bundle", [onnx_bundle, litert_bundle], ids=["onnxruntime", "litert"])
def test_every_runtime_goes_from_check_to_commit_and_serves(
    bundle: Callable[[], SmallBundle], shop: Shop, link: DirectLink, device: Path
) -> None:
    made = bundle()
    shop.release(made)
    name, version = made.manifest.name, made.manifest.version
    link.want(1, **{name: version})
    _, features = made.manifest.inputs[0].shape
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves(version, name), version)
        assert link.phases == WHOLE
        status, answer = ask(agent.model(name).port, [1.0] * int(features), name)
        assert status == 200
        assert answer["model_version"] == version


def acme_bundle() -> SmallBundle:
    """The null model as a file of the example's plug-in."""
    bundle = null_bundle()
    files = dict(bundle.files)
    files["files/model.acme"] = b"ACME" + files.pop("files/model.json")
    acme = RuntimeKind("acme")
    requires = msgspec.structs.replace(
        bundle.manifest.requires, runtime=acme, min_runtime_version="2.0"
    )
    return bundle.changed(runtime=acme, requires=requires, model="files/model.acme").with_files(
        files
    )


def test_a_plugin_of_another_distribution_goes_from_check_to_commit_and_serves(
    shop: Shop, link: DirectLink, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(monkeypatch)
    shop.release(acme_bundle())
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert link.reported is not None
        assert link.reported.device.runtimes["acme"] == "2.1.0"
        status, answer = ask(agent.model().port, [1, 2, 3, 4])
        assert (status, answer["outputs"][0]["data"]) == (200, [10.0])  # type: ignore[index]
        agent.wait(lambda: agent.model().execution, "what computes it")
        execution = agent.model().execution
        assert execution is not None and execution.used == ("ACME core 0",)


def test_a_device_without_the_plugin_refuses_before_it_fetches(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(acme_bundle())
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(link.outcomes, "an outcome")
        assert link.outcomes() == [("refused", "1.0")]
        assert link.phases == [Phase.CHECK, Phase.PREFLIGHT]
        agent.wait(agent.last, "the refusal")
        last = agent.last()
        assert last is not None
        assert last.reason.endswith("the runtime plug-in acme is not installed.")
    assert link.fetched_bytes() == 0


def test_a_device_that_lacks_a_provider_serves_without_it_and_says_so(
    shop: Shop, link: DirectLink, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("XnnpackExecutionProvider", "CPUExecutionProvider")
    shop.release(onnx_bundle().changed(providers=asked))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        agent.wait(lambda: agent.model().execution, "what computes it")
        execution = agent.model().execution
        assert execution is not None
        assert (execution.asked, execution.used) == (asked, asked[1:])
        assert execution.reason == f"{asked[0]}: this onnxruntime is built without it."
        told = [event.text for event in link.events if event.kind is EventKind.FALLBACK]
        assert told == [execution.reason], "once, though the worker is looked at many times"
        assert main(["status", "--dir", str(device)]) == 0
    assert f"computed by {asked[1]} ({execution.reason})" in capsys.readouterr().out


def test_a_restarted_device_serves_without_its_hub(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        port = agent.model().port
    alone = DirectLink(shop.depot)
    with running(device, alone) as agent:
        agent.wait(lambda: agent.model().port, "a report")
        assert agent.model().port == port
        assert ask(port, [1, 1, 1, 1])[0] == 200
        assert not alone.fetched


def test_golden_vectors_that_fail_are_refused_and_the_old_release_serves_on(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("1.1", model={"scale": 2.0}))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        link.want(2, tiny="1.1")
        agent.wait(lambda: len(link.outcomes()) == 2, "an outcome")
        agent.wait(lambda: agent.last() and agent.last().version == "1.1", "a report")  # type: ignore[union-attr]
        last = agent.last()
        assert last is not None
        assert (last.kind, last.phase) == (OutcomeKind.REFUSED, Phase.WARMUP)
        assert "golden" in last.reason
        assert agent.serves("1.0")
        assert ask(agent.model().port, [1, 2, 3, 4])[1]["outputs"][0]["data"] == [10.0]  # type: ignore[index]


def test_a_release_that_fails_live_requests_is_rolled_back_and_not_tried_again(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("1.2", model={"fail_above": 50.0}))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        port = agent.model().port
        link.want(2, tiny="1.2")
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        while len(link.outcomes()) < 2:
            assert ask(port, [100, 0, 0, 0])[0] in (200, 500)
        agent.wait(lambda: agent.serves("1.0"), "the old release")
        assert link.outcomes() == [("committed", "1.0"), ("rolled-back", "1.2")]
        # what the other release had accepted it answers; then it answers no more
        agent.wait(lambda: ask(port, [100, 0, 0, 0])[0] == 200, "an answer of the old release")
        assert {ask(port, [100, 0, 0, 0])[0] for _ in range(20)} == {200}

        fetched = len(link.fetched)
        link.want(3, tiny="1.2")  # the hub insists: the answer is given again, the bundle not tried
        agent.wait(lambda: len(link.outcomes()) == 3, "a third outcome")
        assert link.outcomes()[2] == ("refused", "1.2")
        assert "tried before" in link.texts(EventKind.OUTCOME)[-1]
        assert not [f for f in link.fetched[fetched:] if f.resource.startswith("blobs/")]


def test_a_first_release_that_fails_leaves_nothing_served(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.2", model={"fail_above": 50.0}))
    link.want(1, tiny="1.2")
    with running(device, link) as agent:
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        port = agent.model().port
        for _ in range(6):
            assert ask(port, [100, 0, 0, 0])[0] == 500
        agent.wait(lambda: link.outcomes() == [("rolled-back", "1.2")], "a rollback")
        agent.wait(lambda: agent.model().active is None, "nothing active")
        assert not (device / "models" / "tiny" / "active").exists()


def test_a_release_without_traffic_commits_after_the_time(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: link.outcomes() == [("committed", "1.0")], "a commit")


def test_an_inference_that_hangs_on_probation_is_rolled_back(
    tmp_path: Path, shop: Shop, link: DirectLink
) -> None:
    """Slow golden vectors pass warm-up; what the daemon minds is one running inference."""
    knobs = msgspec.structs.replace(QUICK, probation_s=60.0, hang_s=1.0)
    device = make_device(tmp_path / "device", shop, knobs=knobs)
    shop.release(variant("1.0", model={"delay_s": 2.5}))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        with pytest.raises(OSError):
            ask(agent.model().port, [1, 1, 1, 1])
        agent.wait(lambda: link.outcomes() == [("rolled-back", "1.0")], "a rollback")
        assert "hung" in link.texts(EventKind.OUTCOME)[0]


def test_a_silent_worker_is_killed_and_started_again(
    tmp_path: Path, shop: Shop, link: DirectLink
) -> None:
    knobs = msgspec.structs.replace(QUICK, hang_s=1.0)
    device = make_device(tmp_path / "device", shop, knobs=knobs)
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        os.kill(worker_pid(), signal.SIGSTOP)
        agent.wait(lambda: link.texts(EventKind.WORKER_LOST), "a lost worker")
        assert "silent" in link.texts(EventKind.WORKER_LOST)[0]
        assert ask(agent.model().port, [1, 1, 1, 1])[0] == 200
        agent.wait(
            lambda: link.health[-1].models and link.health[-1].models["tiny"].restarts == 1,
            "the restart in health",
        )
        assert agent.serves("1.0")


def test_a_model_whose_worker_is_down_is_in_health_with_its_restarts(
    shop: Shop, link: DirectLink, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LEAST_RESTART_S", 3600.0)
    monkeypatch.setattr(supervisor, "_MOST_RESTART_S", 3600.0)
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        os.kill(worker_pid(), signal.SIGKILL)
        agent.wait(lambda: link.texts(EventKind.WORKER_LOST), "a lost worker")
        measured = len(link.health)
        agent.wait(lambda: len(link.health) > measured + 1, "health")
        health = link.health[-1].models["tiny"]
        assert (health.version, health.worker, health.restarts) == ("1.0", None, 1)


def test_a_worker_killed_on_probation_is_rolled_back_to_what_served(
    tmp_path: Path, shop: Shop, link: DirectLink
) -> None:
    device = make_device(tmp_path / "device", shop)
    shop.release(variant("1.0"))
    shop.release(variant("1.1"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        link.want(2, tiny="1.1")
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        os.kill(worker_pid(version="b"), signal.SIGKILL)
        agent.wait(lambda: len(link.outcomes()) == 2, "an outcome")
        assert link.outcomes()[1] == ("rolled-back", "1.1")
        assert "SIGKILL" in link.texts(EventKind.OUTCOME)[1]
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert ask(agent.model().port, [1, 1, 1, 1])[0] == 200


def test_a_damaged_slot_is_fetched_again(shop: Shop, link: DirectLink, device: Path) -> None:
    shop.release(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
    (device / "models/tiny/a/files/model.json").write_bytes(b"{}")
    again = DirectLink(shop.depot)
    again.want(1, tiny="1.0")
    with running(device, again) as agent:
        slots = Slots(device / "models/tiny")
        agent.wait(lambda: (active := slots.active()) and active.slot is Slot.B, "the other slot")
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert ask(agent.model().port, [1, 1, 1, 1])[0] == 200


def test_the_hub_may_go_back_one_release_without_a_download(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0", ballast_bytes=3 << 20))
    shop.release(variant("1.1", ballast_bytes=3 << 20))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        link.want(2, tiny="1.1")
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        fetched = link.fetched_bytes()
        link.want(3, tiny="1.0")
        agent.wait(lambda: agent.serves("1.0"), "1.0 again")
        assert link.fetched_bytes() == fetched
        assert link.outcomes()[-1] == ("committed", "1.0")


def test_the_hub_may_not_go_below_the_floor(shop: Shop, link: DirectLink, device: Path) -> None:
    for version in ("1.0", "1.1", "1.2"):
        shop.release(variant(version))
    link.want(1, tiny="1.2")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.2"), "1.2")
        link.want(2, tiny="1.0")
        agent.wait(lambda: len(link.outcomes()) == 2, "an answer")
        assert link.outcomes()[1] == ("refused", "1.0")
        assert "below this device's floor" in link.texts(EventKind.OUTCOME)[-1]
        link.want(3, tiny="1.1")
        agent.wait(lambda: agent.serves("1.1"), "1.1, which is at the floor")


def test_a_commit_raises_the_floor_and_a_switch_does_not(
    tmp_path: Path, shop: Shop, link: DirectLink
) -> None:
    knobs = msgspec.structs.replace(QUICK, probation_s=3600.0)
    device = make_device(tmp_path / "device", shop, knobs=knobs)
    for version in ("1.0", "1.1"):
        shop.release(variant(version))
    link.want(1, tiny="1.1")
    with running(device, link) as agent:
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        record = json.loads((device / "record.json").read_bytes().split(b"\n", 1)[1])
        assert not record.get("counters")


def test_a_model_that_is_not_wanted_any_more_is_removed_and_its_floor_stays(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("1.1"))
    link.want(1, tiny="1.1")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        link.want(2)
        agent.wait(lambda: link.reported and not link.reported.models, "an empty report")
        assert not (device / "models" / "tiny").exists()
        assert not (device / "run" / "tiny.sock").exists()
        record = json.loads((device / "record.json").read_bytes().split(b"\n", 1)[1])
        assert record["counters"] == {"tiny": 1}


def test_an_older_desired_state_is_not_obeyed(shop: Shop, link: DirectLink, device: Path) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("1.1"))
    link.want(5, tiny="1.1")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        fetched = len(link.fetched)
        link.want(4, tiny="1.0")
        link._give(Received(Kind.DESIRED, b"not a desired state"))
        agent.wait(lambda: link.texts(EventKind.REJECTED), "an answer to what came later")
        measured = len(link.health)
        agent.wait(lambda: len(link.health) > measured + 1, "turns in which it would begin")
        assert link.phases == WHOLE
        assert len(link.fetched) == fetched
        assert agent.serves("1.1")


def test_a_generation_that_no_hub_reaches_locks_a_device_out_until_it_reconnects_only(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("1.1"))
    link.want(2**53 - 1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        link.disconnect()
        link.want(2, tiny="1.1")
        link.connect()
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        assert link.reported is not None and link.reported.generation == 2
        link.want(3, tiny="1.0")
        agent.wait(lambda: agent.serves("1.0"), "1.0 again")


def test_two_models_have_their_own_workers_and_ports(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    shop.release(variant("2.0", name="other"))
    link.want(1, tiny="1.0", other="2.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0") and agent.serves("2.0", "other"), "both")
        assert agent.model("tiny").port != agent.model("other").port
        for name in ("tiny", "other"):
            assert ask(agent.model(name).port, [1, 1, 1, 1], name)[0] == 200


def test_a_target_that_nobody_signed_is_refused(shop: Shop, link: DirectLink, device: Path) -> None:
    shop.release(variant("1.0"))
    link.want(1, tiny="9.9")
    with running(device, link) as agent:
        agent.wait(lambda: link.outcomes() == [("refused", "9.9")], "a refusal")
        assert "has no bundle for profile demo-small" in link.texts(EventKind.OUTCOME)[0]


def test_a_bundle_that_does_not_fit_the_device_is_refused_before_it_is_fetched(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    bundle = variant("1.0")
    needy = msgspec.structs.replace(
        bundle.manifest.requires, min_runtime_version="99.0", features=("sve2",)
    )
    shop.release(bundle.changed(requires=needy))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.last() is not None, "an answer")
        last = agent.last()
        assert last is not None
        assert (last.kind, last.phase) == (OutcomeKind.REFUSED, Phase.PREFLIGHT)
        assert "sve2" in last.reason and "99.0" in last.reason
        assert link.fetched_bytes() == 0


def test_a_bundle_over_the_budget_of_the_profile_is_refused(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    bundle = variant("1.0")
    large = msgspec.structs.replace(bundle.manifest.requires, peak_ram_bytes=300 << 20)
    shop.release(bundle.changed(requires=large))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: link.outcomes() == [("refused", "1.0")], "a refusal")
        assert "budget is 256" in link.texts(EventKind.OUTCOME)[0]


def test_a_newer_wish_ends_the_work_on_the_older(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0", ballast_bytes=2 << 20))
    shop.release(variant("1.1"))
    from agents import Silence

    def silent(fetch: object) -> None:
        if getattr(fetch, "resource", "").startswith("blobs/") and link.desired.generation == 1:  # type: ignore[union-attr]
            raise Silence

    link.fault = silent  # type: ignore[assignment]
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.model().phase is Phase.FETCH, "FETCH")
        link.want(2, tiny="1.1")
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        assert link.outcomes() == [("committed", "1.1")]


def test_a_flood_of_what_no_hub_sends_is_told_once_and_stops_nothing(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        over, most = threading.Event(), []

        def flood() -> None:
            while not over.is_set():
                link._give(Received(Kind.BLOB, b"x" * 65536, b"c" * 16))
                link._give(Received(Kind.ACK, b"junk"))
                most.append(agent.daemon._loop.waiting)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            agent.wait(lambda: len(link.health) > 2, "health")
            agent.wait(lambda: len(link.texts(EventKind.REJECTED)) == 1, "a rejection")
        finally:
            over.set()
            thread.join()
        link.want(1, tiny="1.0")
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert len(link.texts(EventKind.REJECTED)) == 1
        assert max(most) < 300


def test_what_the_hub_desires_is_not_lost_in_a_flood(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        dry = threading.Event()
        agent.daemon._loop.post(lambda: dry.wait(60) and None)
        for _ in range(1000):
            link._give(Received(Kind.ACK, b"junk"))
        for generation, version in enumerate(("0.8", "0.9", "1.0"), 1):  # a broker tells each once
            link.want(generation, tiny=version)
        assert agent.daemon._loop.waiting < 300
        dry.set()
        agent.wait(lambda: agent.serves("1.0"), "1.0")
