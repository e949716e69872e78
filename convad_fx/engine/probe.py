"""Whether it pays to look which cheaper way masks may go: by boxes and patches, or by tiles.

Looking is done on the host. A large GPU may have answered before it is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low

#: Looking at a mask is to take less than this share of what answering it takes.
SHARE = 1 / 4
#: Where it takes more it is done all the same as soon as it is this share of all that answering has
#: taken since the last time: masks may have become others.
AGAIN = 1 / 50
#: Fewer masks say little of so many: a call has a cost of its own.
MANY = 32
#: So often it is done before anything is left: one time may be slow by accident.
TIMES = 3

_last = partial(deque[float], maxlen=5)


@dataclass(slots=True)
class StrategyProbe:
    """What looking and answering have taken, in seconds: whether to look again.

    >>> looking = Looking()
    >>> looking.pays("tiles", masks=100)              # nothing is known yet
    True
    >>> with looking.answering(masks=100):
    ...     with looking.at("tiles", masks=100):
    ...         time.sleep(0.01)                      # and no time at all to answer
    >>> looking.looked > 0.01 > looking.answered
    True

    Attributes:
        looks: for each kind of look seconds a mask, the last times.
        answers: seconds a mask that answering took besides, the last times.
        looked, answered: seconds in all.
        before: for each kind of look, how much had been answered when it was last done.
    """

    looks: dict[str, deque[float]] = field(default_factory=dict)
    answers: deque[float] = field(default_factory=_last)
    looked: float = 0.0
    answered: float = 0.0
    before: dict[str, float] = field(default_factory=dict)

    def pays(self, kind: str, masks: int) -> bool:
        """Whether to look at so many masks."""
        looks = self.looks.get(kind, ())
        if len(looks) < TIMES or not self.answers:
            return True
        each = median_low(looks)
        since = self.answered - self.before[kind]
        return each < SHARE * median_low(self.answers) or each * masks < AGAIN * since

    @contextmanager
    def at(self, kind: str, masks: int) -> Iterator[None]:
        """Inside, so many masks are looked at."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.looked += seconds
        self.before[kind] = self.answered
        if masks >= MANY:
            self.looks.setdefault(kind, _last()).append(seconds / masks)

    @contextmanager
    def answering(self, masks: int) -> Iterator[None]:
        """Inside, so many masks are answered; to look at them before does not count."""
        began, looked = time.perf_counter(), self.looked
        yield
        seconds = time.perf_counter() - began - (self.looked - looked)
        self.answered += seconds
        if masks >= MANY:
            self.answers.append(seconds / masks)
