"""Signs of failure: each stands out where it is built in, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from convad_fx import metrics
from convad_fx.errors import PolicyError

SHAPE = (64, 64)
IMAGE = torch.ones(3, *SHAPE)


def on_the_object(x: Tensor, mask: Tensor) -> Tensor:
    """Sure of class 1 as far as the middle is kept."""
    seen = mask[:, 0, 24:40, 24:40].float().mean((1, 2))
    return torch.stack([0 * seen, 8 * seen - 4], 1)


def the_object() -> np.ndarray:
    kept = np.zeros(SHAPE, bool)
    kept[24:40, 24:40] = True
    return kept


def test_a_healthy_set_shows_none() -> None:
    found = metrics.signs(on_the_object, IMAGE, the_object(), target=1)
    assert (found.parts, found.largest, found.border) == (1, 1.0, 0.0)
    assert found.empty < 0.05
    assert found.spared == pytest.approx(1)
    assert found.seen == ()


def test_scattered_sets() -> None:
    kept = np.zeros(SHAPE, bool)
    kept[10:50:8, 10:50:8] = True
    found = metrics.signs(on_the_object, IMAGE, kept, target=1)
    assert (found.parts, found.largest) == (25, 1 / 25)
    assert found.seen[0].startswith("scattered")
    diagonal = np.eye(*SHAPE, dtype=bool)  # corners touch
    assert metrics.signs(on_the_object, IMAGE, diagonal, target=1).parts == 1


def test_sets_at_the_border() -> None:
    kept = np.zeros(SHAPE, bool)
    kept[:4] = True
    band = 1 - (56 / 64) ** 2
    found = metrics.signs(on_the_object, IMAGE, kept, target=1)
    assert found.border == pytest.approx(1 / band)
    assert any(text.startswith("at the border") for text in found.seen)
    whole = metrics.signs(on_the_object, IMAGE, np.ones(SHAPE, bool), target=1)
    assert whole.border == pytest.approx(1)
    assert whole.spared == 1  # nothing left to hide


def test_bias() -> None:
    def always(x: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([[0.0, 3.0]]).expand(len(mask), 2)

    found = metrics.signs(always, IMAGE, the_object(), target=1)
    assert found.empty == pytest.approx(1)
    assert [text.split(":")[0] for text in found.seen] == ["bias"]


def test_over_deactivation() -> None:
    def brittle(x: Tensor, mask: Tensor) -> Tensor:
        intact = mask.flatten(1).all(1).float()
        return torch.stack([0 * intact, 8 * intact - 2], 1)

    found = metrics.signs(brittle, IMAGE, the_object(), target=1)
    assert found.spared < 0.2
    assert [text.split(":")[0] for text in found.seen] == ["over-deactivation"]


def test_only_blocks_outside_the_set_are_hidden() -> None:
    asked: list[Tensor] = []

    def listening(x: Tensor, mask: Tensor) -> Tensor:
        asked.append(mask)
        return on_the_object(x, mask)

    metrics.signs(listening, IMAGE, the_object(), 1, hidden=0.25, draws=5, side=16, seed=3)
    masks = torch.cat(asked)[:, 0].numpy()
    assert len(masks) == 7  # everything, nothing, five draws
    assert masks[2:][:, the_object()].all()
    # of 16 blocks of 16 pixels, four; those in the middle each hold 64 pixels of the set
    hidden = (~masks[2:]).sum((1, 2))
    assert ((hidden >= 4 * 192) & (hidden <= 4 * 256)).all()


def test_the_empty_set_and_tiny_images() -> None:
    nothing = metrics.signs(on_the_object, IMAGE, np.zeros(SHAPE, bool), target=1)
    assert (nothing.parts, nothing.largest, nothing.border) == (0, 0.0, 0.0)

    def two(x: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(mask), 2)

    assert metrics.signs(two, torch.ones(3, 1, 1), np.ones((1, 1), bool), target=1).border == 1


@pytest.mark.parametrize(("wrong", "message"), [
    ({"hidden": 0.0}, "hidden"), ({"draws": 0}, "draws"), ({"side": 0}, "side"),
    ({"seed": -1}, "seed"), ({"target": -1}, "target"),
])  # fmt: skip
def test_bad_options_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        metrics.signs(on_the_object, IMAGE, the_object(), **{"target": 1, **wrong})


def test_a_class_without_confidence_is_refused() -> None:
    def never(x: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([[0.0, -math.inf]]).nan_to_num(neginf=-1e30).expand(len(mask), 2)

    with pytest.raises(PolicyError, match="confidence of 0 on the whole image"):
        metrics.signs(never, IMAGE, the_object(), target=1)
