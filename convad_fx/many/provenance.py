"""Everything besides the picture that a row depends on; equal digests mean comparable rows."""

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
    """Everything that determines a run's rows besides the pictures, as JSON values.

    >>> one, other = Provenance({"seed": 0, "gamma": 0.9}), Provenance({"seed": 1, "gamma": 0.9})
    >>> one.digest == other.digest, one.differences(other.content)
    (False, ['seed 1 there, 0 here'])
    """

    content: Mapping[str, Any]

    @property
    def text(self) -> str:
        """JSON with sorted keys."""
        return json.dumps(self.content, sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Fields in which `other` differs, as text for an error message."""
        own = json.loads(self.text)  # as in `other`, tuples become lists
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
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
