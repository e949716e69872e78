"""One thread traces at a time.

torch.fx and torch.export patch `torch.nn.Module` for all threads while they run. Two at once would
undo each other's patches in the wrong order, and leave some in place for ever.
"""

from __future__ import annotations

import threading

#: Held while a front end or an exporter runs.
TRACING = threading.RLock()
