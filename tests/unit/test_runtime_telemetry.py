"""What runs a model writes nothing of its own and tells nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from small_models import write_small

RUN = """
import sys
from pathlib import Path
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import open_session
open_session(RuntimeKind.ONNXRUNTIME, Path(sys.argv[1])).close()
"""


def test_running_a_model_makes_no_device_identifier_and_no_telemetry(tmp_path: Path) -> None:
    """Unless told, onnxruntime 1.32 leaves both in the cache and TMPDIR; under CI it does not."""
    model = write_small("regression", tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    quiet = {"CI", "ORT_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run(
        [sys.executable, "-c", RUN, str(model)],
        check=True,
        env=environment | {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)},
    )
    assert list(home.rglob("*")) == []
