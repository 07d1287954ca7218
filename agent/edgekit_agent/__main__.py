"""The `edgekit-agent` command: parse, call, print; errors become one sentence and an exit code."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from edgekit_contract.errors import EdgekitError, Misused

__all__ = ["main"]

EXIT_REFUSED: Final = 1
EXIT_MISUSED: Final = 2
EXIT_INTERRUPTED: Final = 130


def _run(options: argparse.Namespace) -> int:
    from edgekit_agent.clock import SystemClock, latest
    from edgekit_agent.config import load
    from edgekit_agent.daemon import Daemon
    from edgekit_agent.link import Link
    from edgekit_agent.mqtt_link import MqttLink
    from edgekit_agent.reconnection import Backoff
    from edgekit_agent.tls import client_context

    directory: Path = options.dir.absolute()
    config, trimmed = load(directory)
    clock, identity = SystemClock(), directory / "identity"
    randomness = random.Random()

    def make_link(will: bytes) -> Link:
        context = client_context(
            root=identity / "root-ca.pem",
            certificate=identity / "device.pem",
            key=identity / "device.key",
        )
        return MqttLink(
            fleet=config.fleet,
            device=config.id,
            host=config.mqtt_host,
            port=config.mqtt_port,
            context=context,
            will=will,
            clock=clock,
            validity=lambda: latest(clock.now(), daemon.time_floor),
            randomness=randomness,
            backoff=Backoff(least_s=config.agent.reconnect_s, takeover_s=config.agent.takeover_s),
        )

    try:
        daemon = Daemon(
            directory, config, trimmed, link=make_link, clock=clock, randomness=randomness
        )
    except OSError as error:
        raise Misused(
            f"{error.filename or directory}: {error.strerror}; check the path."
        ) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.run()
    return 0


def _enroll(options: argparse.Namespace) -> int:
    from edgekit_agent.clock import SystemClock
    from edgekit_agent.enrolment import enrol

    config = enrol(options.token, options.dir, profile=options.profile, clock=SystemClock())
    if options.json:
        facts = {"id": config.id, "fleet": config.fleet, "profile": config.profile}
        print(json.dumps(facts | {"dir": str(options.dir)}, indent=2))
        return 0
    print(f"{config.id} is enrolled in {config.fleet} as {config.profile}.")
    print(f"Start it: edgekit-agent run --dir {options.dir}")
    return 0


def _status(options: argparse.Namespace) -> int:
    import msgspec

    from edgekit_agent.status_socket import ask

    answer = ask(options.dir)
    if options.json:
        print(msgspec.json.format(answer).decode())
        return 0
    state = msgspec.json.decode(answer)
    print(f"{state['id']} of {state['fleet']}: {state['connection']}")
    for name, model in sorted(((state["reported"] or {}).get("models") or {}).items()):
        active = model.get("active")
        line = f"{name}: " + (f"serves {active['version']}" if active else "serves nothing")
        if port := model.get("port"):
            line += f" at http://127.0.0.1:{port}/v2/models/{name}"
        if execution := model.get("execution"):
            line += f", computed by {', '.join(execution.get('used', ())) or 'nothing it told'}"
            line += f" ({execution['reason']})" if execution.get("reason") else ""
        if target := model.get("target"):
            line += f"; {model.get('phase', 'idle')} of {target}"
        if last := model.get("last"):
            line += f"; last: {last['version']} {last['kind']}"
            line += f" ({last['reason']})" if last.get("reason") else ""
        print(line)
    return 0


def _infer(options: argparse.Namespace) -> int:
    from edgekit_agent.local_client import infer, shown

    answer = infer(options.dir, options.model, options.input)
    print(answer if options.json else "\n".join(shown(answer)))
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from edgekit_agent.selftest import run_checks

    checks = run_checks()
    passed = all(check.passed for check in checks)
    if options.json:
        told = [
            {"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks
        ]
        print(json.dumps({"passed": passed, "checks": told}, indent=2))
    else:
        for check in checks:
            print(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    return 0 if passed else EXIT_REFUSED


class _Version(argparse.Action):
    """Looked up only when asked for: the daemon does without importlib.metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"edgekit-agent {version('edgekit')}", flush=True)
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words in one sentence."""
        self.exit(EXIT_MISUSED, f"edgekit-agent: {message}: see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edgekit-agent", description="Keeps a device's models as the fleet's hub wants them."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], what: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(call=call)
        if call is not _run:
            sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument(
            "--dir",
            type=Path,
            default=Path(os.environ.get("EDGEKIT_AGENT_DIR", "/var/lib/edgekit")),
            help="the device's directory (default: $EDGEKIT_AGENT_DIR or /var/lib/edgekit)",
        )
        return sub

    enroll = command("enroll", _enroll, "Make this device's key and get its certificate.")
    enroll.add_argument("token", metavar="TOKEN", help="from `edgekit devices invite`")
    enroll.add_argument("--profile", type=Path, help="a profile's TOML file, if not the hub's")
    command("run", _run, "Run the agent until SIGTERM or Ctrl-C.")
    command("status", _status, "Show what the running agent does.")
    infer = command("infer", _infer, "Send one request to a model's local API.")
    infer.add_argument("model", metavar="MODEL")
    infer.add_argument(
        "input",
        metavar="INPUT",
        help="a .npz with an array per input, or a request as JSON; -: stdin",
    )
    command("selftest", _selftest, "Check that all an agent is made of works on this machine.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script and of `python -m edgekit_agent`."""
    try:
        options = _parser().parse_args(arguments)
        call: Callable[[argparse.Namespace], int] = options.call
        code = call(options)
        sys.stdout.flush()
        return code
    except EdgekitError as error:
        print(f"edgekit-agent: {error}", file=sys.stderr)
        return EXIT_MISUSED if isinstance(error, Misused) else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        said = (error.strerror or str(error)).rstrip(".").lower()
        print(f"edgekit-agent: {place}{said}; see to it, then run it again.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
