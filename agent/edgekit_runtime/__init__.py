"""A bundle's model behind one interface, and the check that it gives what it gave at build.

Invariant: running a model tells nobody. onnxruntime's wheels upload telemetry under an identifier
that they keep on the device; this, before it is imported, is its way to turn that off (its
Privacy.md). Who wants it sets the variable to 0.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
