"""`edgekit-agent status` and `infer` beside a running agent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from agents import DirectLink, Shop, make_device, running, variant

from edgekit_agent.__main__ import main


def test_status_and_infer_speak_to_people_and_to_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path / "fleet")
    shop.release(variant("1.0"))
    link = DirectLink(shop.depot)
    link.want(1, tiny="1.0")
    device = make_device(tmp_path / "device", shop)
    rows = np.arange(80, dtype=np.float32).reshape(20, 4)
    np.savez(tmp_path / "one.npz", x=rows[:1])
    np.savez(tmp_path / "many.npz", x=rows)

    def said(*arguments: str) -> str:
        assert main([*arguments, "--dir", str(device)]) == 0
        return capsys.readouterr().out

    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert said("infer", "tiny", str(tmp_path / "one.npz")) == "y FP32 [1]: 6\n"
        many = said("infer", "tiny", str(tmp_path / "many.npz"))
        assert many.startswith("y FP32 [20]: 6 22 ")
        assert many.endswith(" ... (20 values)\n")
        answer = json.loads(said("infer", "tiny", str(tmp_path / "many.npz"), "--json"))
        assert answer["outputs"][0]["data"] == rows.sum(axis=1).tolist()
        assert "tiny: serves 1.0 at http://127.0.0.1:" in said("status")
        assert json.loads(said("status", "--json"))["reported"]["models"]["tiny"]["active"]
