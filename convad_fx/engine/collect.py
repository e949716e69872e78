"""Put answers that come in any order back into the order of the masks."""

from __future__ import annotations

import torch
from torch import Tensor

from convad_fx.errors import MaskError


class Answers:
    """Logits of different masks, by the masks' numbers.

    >>> answers = Answers()
    >>> answers.add(torch.tensor([[7.0], [5.0]]), [1, 0])
    >>> answers.rows([0, 0, 1]).flatten()
    tensor([5., 5., 7.])
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._numbers: list[int] = []

    def add(self, logits: Tensor, numbers: list[int]) -> None:
        """Logits (N, ...) of the masks with these numbers."""
        self._parts.append(logits)
        self._numbers += numbers

    def of(self, number: int) -> Tensor:
        """Logits (1, ...) of one mask."""
        row = self._numbers.index(number)
        for part in self._parts:
            if row < len(part):
                return part[row : row + 1]
            row -= len(part)
        raise AssertionError(f"mask {number} has no answer yet")

    def rows(self, numbers: list[int]) -> Tensor:
        """Logits (K, ...) of K masks.

        Raises:
            MaskError: there are none.
        """
        if not self._parts:
            raise MaskError("no masks were given", hint="pass a tensor (K, 1, H, W) with K >= 1")
        logits = torch.cat(self._parts)
        order = torch.empty(len(self._numbers), dtype=torch.long)
        order[torch.tensor(self._numbers)] = torch.arange(len(self._numbers))
        return logits[order[torch.tensor(numbers)].to(logits.device)]
