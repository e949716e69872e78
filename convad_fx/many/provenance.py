"""What a row depends on, besides its picture: the same digest, the same answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that decides a run's answers, as JSON values.

    >>> one, other = Provenance({"seed": 0, "gamma": 0.9}), Provenance({"seed": 1, "gamma": 0.9})
    >>> one.digest == other.digest, one.differences(other.content)
    (False, ['seed 1 there, 0 here'])
    """

    content: Mapping[str, Any]

    @property
    def text(self) -> str:
        """JSON with sorted keys: equal texts, equal runs."""
        return json.dumps(self.content, sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the text, shortened to 16 digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What `other` has otherwise, by field, for people."""
        own = json.loads(self.text)  # as `other` is: lists, where Python has tuples
        return [
            f"{name} {_short(other.get(name))} there, {_short(own.get(name))} here"
            for name in sorted(own.keys() | other.keys())
            if other.get(name) != own.get(name)
        ]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, dtypes, shapes and values.

    >>> layer = nn.Linear(2, 1)
    >>> before = weights_digest(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1)
    >>> weights_digest(layer) == before
    False
    """
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
