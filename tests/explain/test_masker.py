"""Paint, the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from convad_fx.errors import ImageError, MaskError, ModelError
from convad_fx.explain import occlusion
from convad_fx.explain.masker import policy_of

X = torch.rand(1, 3, 4, 5)
MASKS = torch.rand(6, 1, 4, 5) > 0.5


@pytest.mark.parametrize(
    "value",
    [0.25, 1, torch.tensor(0.5), torch.rand(3), torch.rand(3, 1, 1), torch.rand(3, 4, 5),
     torch.rand(1, 3, 4, 5), torch.rand(4, 5).double()],
)  # fmt: skip
def test_paint_stands_where_the_mask_hides(value) -> None:
    seen = occlusion(nn.Identity().eval(), value)(X, MASKS)
    paint = torch.as_tensor(value, dtype=torch.float32)
    paint = paint[:, None, None] if paint.ndim == 1 else paint
    for n in range(6):
        keep = MASKS[n].expand(3, 4, 5)
        assert torch.equal(seen[n][keep], X[0][keep])
        assert torch.equal(seen[n][~keep], paint.expand(1, 3, 4, 5)[0][~keep])


def test_what_is_hidden_never_matters() -> None:
    hidden = torch.where(MASKS[:1], X, torch.nan)
    paint = occlusion(nn.Flatten().eval())
    assert torch.equal(paint(hidden, MASKS[:1]), paint(X, MASKS[:1]))


def test_many_images_with_one_mask() -> None:
    assert occlusion(nn.Flatten().eval())(X.expand(4, -1, -1, -1), MASKS[:1]).shape == (4, 60)


@pytest.mark.parametrize(
    ("error", "message", "model", "value", "mask"),
    [
        (ModelError, r"training mode; call model.eval\(\)", nn.Flatten().train(), 0.0, MASKS),
        (MaskError, r"bool \(N, 1, H, W\), not torch.float32", nn.Flatten().eval(), 0.0,
         MASKS.float()),
        (MaskError, r"not torch.bool \(6, 4, 5\); pass", nn.Flatten().eval(), 0.0, MASKS[:, 0]),
        (MaskError, "a mask of 3x5 does not fit an image of 4x5", nn.Flatten().eval(), 0.0,
         MASKS[:, :, 1:]),
        (ImageError, r"paint of shape \(4,\) does not fit .* \(1, 3, 4, 5\); pass a number",
         nn.Flatten().eval(), torch.zeros(4), MASKS),
        (ImageError, r"paint of shape \(2, 3, 4, 5\) does not fit", nn.Flatten().eval(),
         torch.zeros(2, 3, 4, 5), MASKS),
    ],
)  # fmt: skip
def test_errors(error, message, model, value, mask) -> None:
    with pytest.raises(error, match=message):
        occlusion(model, value)(X, mask)


def test_policies_are_recorded_whatever_they_are() -> None:
    @dataclass(frozen=True)
    class Policy:
        tau: float = 0.5

    def masker(x, mask, /):
        return x

    assert policy_of(masker) == {}
    masker.policy = Policy()
    assert policy_of(masker) == {"tau": 0.5}
    masker.policy = "blurred"
    assert policy_of(masker) == {"policy": "blurred"}
    assert policy_of(occlusion(nn.Flatten(), torch.zeros(3))) == {"paint": "tensor (3,)"}
