"""Environments: tools whose pins would break ours, each in a virtual environment of its own.

Nothing of one is imported here: `call` and `Server` run a tool's script in it.
"""

from edgekit_converters.environments.catalogue import (
    ENVIRONMENTS,
    LITERT,
    TENSORFLOW,
    Environment,
    find_environment,
)
from edgekit_converters.environments.installation import cache, find, set_up
from edgekit_converters.environments.interpreters import InterpreterMissing
from edgekit_converters.environments.tools import (
    EnvironmentMissing,
    Server,
    ToolFailed,
    ToolRefused,
    call,
)

__all__ = [
    "ENVIRONMENTS",
    "LITERT",
    "TENSORFLOW",
    "Environment",
    "EnvironmentMissing",
    "InterpreterMissing",
    "Server",
    "ToolFailed",
    "ToolRefused",
    "cache",
    "call",
    "find",
    "find_environment",
    "set_up",
]
