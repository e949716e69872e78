"""Skip strategy selection when it costs more than it can save.

Strategies are selected on the host. A large GPU may evaluate masks faster than that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low

#: Selection pays while it takes less than this share of the evaluation time of a mask.
MAX_SELECTION_SHARE = 1 / 4
#: Where it takes more, it is retried as soon as it takes less than this share of the evaluation
#: time since the last selection: the masks may have changed.
RETRY_SHARE = 1 / 50
#: Times of fewer masks are ignored: the fixed cost of a call would dominate.
MIN_TIMED_MASKS = 32
#: Timings needed before selection is ever skipped: a single one may be slow by accident.
MIN_TIMINGS = 3

_recent = partial(deque[float], maxlen=5)


@dataclass(slots=True)
class StrategyProbe:
    """Times selection and evaluation, and decides whether to select again.

    >>> probe = StrategyProbe()
    >>> probe.pays("tile", masks=100)                 # nothing was timed yet
    True
    >>> with probe.evaluating(masks=100):
    ...     with probe.selecting("tile", masks=100):
    ...         time.sleep(0.01)                      # and the evaluation takes no time at all
    >>> probe.selection_seconds > 0.01 > probe.evaluation_seconds
    True

    Attributes:
        selection_times: recent seconds per mask, for each kind of selection.
        evaluation_times: recent seconds per mask, without selection.
        selection_seconds, evaluation_seconds: in total.
        evaluated_before: `evaluation_seconds` at the last selection of each kind.
    """

    selection_times: dict[str, deque[float]] = field(default_factory=dict)
    evaluation_times: deque[float] = field(default_factory=_recent)
    selection_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluated_before: dict[str, float] = field(default_factory=dict)

    def pays(self, kind: str, masks: int) -> bool:
        """Whether to select strategies for this number of masks."""
        times = self.selection_times.get(kind, ())
        if len(times) < MIN_TIMINGS or not self.evaluation_times:
            return True
        per_mask = median_low(times)
        since = self.evaluation_seconds - self.evaluated_before[kind]
        return (
            per_mask < MAX_SELECTION_SHARE * median_low(self.evaluation_times)
            or per_mask * masks < RETRY_SHARE * since
        )

    @contextmanager
    def selecting(self, kind: str, masks: int) -> Iterator[None]:
        """Time a selection of this kind."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.selection_seconds += seconds
        self.evaluated_before[kind] = self.evaluation_seconds
        if masks >= MIN_TIMED_MASKS:
            self.selection_times.setdefault(kind, _recent()).append(seconds / masks)

    @contextmanager
    def evaluating(self, masks: int) -> Iterator[None]:
        """Time an evaluation, not counting the selections inside."""
        began, selected = time.perf_counter(), self.selection_seconds
        yield
        seconds = time.perf_counter() - began - (self.selection_seconds - selected)
        self.evaluation_seconds += seconds
        if masks >= MIN_TIMED_MASKS:
            self.evaluation_times.append(seconds / masks)
