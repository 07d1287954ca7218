"""paho's MQTT client without its look for a proxy in the environment.

That look is all that paho imports `urllib.request` for, which brings `http.client` and `email`:
2 MiB of the daemon's 30 (benchmarks/agent_rss.py). While paho is imported, an empty module stands
in for it.
"""

from __future__ import annotations

import sys
import types
from typing import Final

_NAME: Final = "urllib.request"
_stand_in = types.ModuleType(_NAME)
sys.modules.setdefault(_NAME, _stand_in)

from paho.mqtt.client import Client, MQTTMessage  # noqa: E402

if sys.modules[_NAME] is _stand_in:
    del sys.modules[_NAME]

__all__ = ["Client", "DirectClient", "MQTTMessage"]


class DirectClient(Client):
    """Connects to the host it is given and to no other."""

    def _get_proxy(self) -> None:
        return None
