"""A process of a sysroot under qemu-user, with the CPU of a profile.

Invariant: the process sees the sysroot's `/usr` and `/lib`, the profile's `/proc/cpuinfo` and
`/sys/devices/system/cpu`, and of all else this machine's. It runs without privileges of its own and
within limits, in a scratch directory; qemu looks below the prefix that `-L` names before it opens
an absolute path, so no mount and no root is needed (QEMU, linux-user/syscall.c, `path`).
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from edgekit.emulation.cores import kernel_files, stand_in
from edgekit.emulation.sysroot import Sysroot
from edgekit_contract import limits
from edgekit_contract.errors import Misused
from edgekit_contract.profile import Cpu
from edgekit_converters import isolation

__all__ = ["Ended", "Machine", "Qemu", "find_qemu"]

_PROGRAMS: Final = ("qemu-aarch64-static", "qemu-aarch64")
_QUESTION_S: Final = 30.0
_MOST_OUTPUT_BYTES: Final = 256 * limits.KIB
_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin",
    "ORT_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True)
class Qemu:
    program: str
    version: str
    cores: frozenset[str]
    """What `-cpu` takes."""


@lru_cache(maxsize=1)
def find_qemu() -> Qemu:
    """This machine's qemu for aarch64 processes. Errors: `Misused` where there is none."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        raise Misused(
            f"emulation needs {_PROGRAMS[0]}: apt-get install qemu-user-static (or your system's "
            "package of QEMU's user emulation)."
        )
    version = re.search(r"version ([\d.]+)", _ask(found, "--version"))
    return Qemu(
        program=found,
        version=version.group(1) if version else "of an unknown version",
        cores=frozenset(_ask(found, "-cpu", "help").split()),
    )


def _ask(program: str, *words: str) -> str:
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=_QUESTION_S, check=False
    )
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an emulated process ended."""

    code: int
    """Exit code, or minus the signal."""
    out: bytes
    """The beginning of what it printed, at most `_MOST_OUTPUT_BYTES`."""
    last_words: str
    """Its last line on stderr."""
    seconds: float
    cpu_s: float
    """Processor time of it and its children."""


class Machine:
    """A sysroot with a CPU. Errors: `Misused` where qemu is missing."""

    def __init__(self, sysroot: Sysroot, cpu: Cpu) -> None:
        self._sysroot, self._cpu, self._qemu = sysroot, cpu, find_qemu()
        self.core = stand_in(cpu, self._qemu.cores)

    @property
    def title(self) -> str:
        return f"{self.core} emulated by qemu {self._qemu.version}"

    def run_python(
        self, arguments: Sequence[str | Path], *, step: str, bounds: isolation.Limits
    ) -> Ended:
        """Run the sysroot's Python with these arguments. `step` names the work in messages.

        Errors: `isolation.StepFailed` where it ran into its bounds.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-emulation-") as name:
            prefix = Path(name)
            self._lay_out(prefix)
            python = prefix / "usr" / "bin" / f"python{self._sysroot.suite.python}"
            command = [self._qemu.program, "-cpu", self.core, "-L", prefix, python, "-s"]
            told = isolation.run(
                step,
                f"{__name__}:in_child",
                {
                    "command": [str(part) for part in (*command, *arguments)],
                    "python_path": f"{self._sysroot.own}:{self._sysroot.wheels}",
                },
                bounds,
            )
        return Ended(
            code=told["code"],
            out=told["out"].encode(),
            last_words=told["last_words"],
            seconds=told["seconds"],
            cpu_s=told["cpu_s"],
        )

    def _lay_out(self, prefix: Path) -> None:
        for part in self._sysroot.base.iterdir():
            (prefix / part.name).symlink_to(part)
        for path, text in kernel_files(self._cpu, self.core).items():
            file = prefix / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def in_child(command: list[str], python_path: str) -> dict[str, Any]:
    """Run a command in the child that `isolation` has bounded, whose directory is scratch."""
    here = Path.cwd()
    environment = {**_ENVIRONMENT, "PYTHONPATH": python_path, "HOME": str(here)}
    environment["TMPDIR"] = str(here)
    began = time.monotonic()
    with Path("out").open("wb") as out, Path("err").open("wb") as err:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, check=False
        )
    seconds = time.monotonic() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Path("out").open("rb") as out:
        said = out.read(_MOST_OUTPUT_BYTES).decode(errors="replace")
    with Path("err").open("rb") as err:
        err.seek(max(0, err.seek(0, 2) - _MOST_OUTPUT_BYTES))
        lines = err.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    print(*lines, sep="\n", file=sys.stderr)
    return {
        "code": done.returncode,
        "out": said,
        "last_words": last[:300],
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }
