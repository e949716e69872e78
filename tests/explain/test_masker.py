"""Paint, the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError
from convad_fx.explain import PAINTS, occlusion
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


# ------------------------------------------------------------------------------------ named paints
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def painted(name: str, x: torch.Tensor, masks: torch.Tensor, **options) -> torch.Tensor:
    """What the model is shown, back in pixels of 0..1 (float64)."""
    seen = occlusion(nn.Identity().eval(), name, **options)(x, masks)
    mean, std = (torch.tensor(options.get(k, d)).double().reshape(-1, 1, 1) for k, d in
                 (("mean", (0.0,)), ("std", (1.0,))))  # fmt: skip
    return seen.double() * std + mean


@pytest.mark.parametrize(("name", "pixel"), [("black", 0.0), ("white", 1.0), ("grey", 0.5)])
@pytest.mark.parametrize("options", [{}, IMAGENET])
def test_colours_are_the_same_to_the_eye_however_the_network_reads_them(
    name: str, pixel: float, options: dict
) -> None:
    seen = painted(name, X, MASKS, **options)
    hidden = ~MASKS.expand(-1, 3, -1, -1)
    assert seen[hidden].sub(pixel).abs().max() < 1e-6


def test_zero_and_mean_are_the_colour_the_preprocessing_subtracts() -> None:
    for name in ("zero", "mean"):
        seen = occlusion(nn.Identity().eval(), name, **IMAGENET)(X, MASKS)
        assert torch.equal(seen, torch.where(MASKS, X, 0.0))


@pytest.mark.parametrize("name", ["image-mean", "blur", "noise", "inpaint"])
def test_normalising_before_or_after_painting_is_the_same(name: str) -> None:
    mean, std = (torch.tensor(IMAGENET[k])[:, None, None] for k in ("mean", "std"))
    unit = painted(name, X, MASKS)
    normalised = painted(name, (X - mean) / std, MASKS, **IMAGENET)
    assert torch.allclose(unit, normalised, atol=1e-5)


def test_the_images_mean_colour_is_its_mean_per_channel() -> None:
    seen = painted("image-mean", X, torch.zeros(1, 1, 4, 5, dtype=torch.bool))
    expected = X[0].double().mean((1, 2))
    assert torch.allclose(seen[0, :, 2, 3], expected, atol=1e-6)


def test_noise_is_uniform_seeded_and_the_same_for_every_mask() -> None:
    x, nothing = torch.zeros(1, 3, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    first, again, other = (painted("noise", x, nothing, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[0], first[1])
    assert first.min() >= 0
    assert first.max() <= 1
    assert abs(float(first.mean()) - 0.5) < 0.02
    assert abs(float(first.var()) - 1 / 12) < 0.01


def test_blur_keeps_constants_to_the_border_and_is_a_gaussian_inside() -> None:
    x = torch.zeros(1, 1, 41, 41)
    x[..., 20, 20] = 1
    nothing = torch.zeros(1, 1, 41, 41, dtype=torch.bool)
    seen = occlusion(nn.Identity().eval(), "blur", sigma=3.0)(x, nothing)[0, 0]
    d = torch.arange(41.0) - 20
    line = torch.exp(-(d**2) / 18)
    assert torch.allclose(seen, (line[:, None] * line) / line.sum() ** 2, atol=1e-5)
    flat = occlusion(nn.Identity().eval(), "blur")(torch.full_like(x, 0.7), nothing)
    assert torch.allclose(flat, torch.tensor(0.7))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (16, 16), (13, 8)])
def test_inpainting_reads_kept_pixels_only_and_stays_between_them(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, *shape, generator=generator)
    masks = torch.rand(20, 1, *shape, generator=generator) > 0.7
    paint = occlusion(nn.Identity().eval(), "inpaint")
    seen = paint(x, masks)
    for n, mask in enumerate(masks):
        keep = mask[0]
        assert torch.equal(seen[n][:, keep], x[0][:, keep])
        hidden = torch.where(mask, x[0], torch.nan)
        assert torch.equal(paint(hidden[None], mask[None])[0], paint(x, mask[None])[0])
        for channel in range(2):
            known = x[0, channel][keep]
            low, high = (known.min(), known.max()) if keep.any() else (0.0, 0.0)
            assert (seen[n, channel] >= low - 1e-6).all()
            assert (seen[n, channel] <= high + 1e-6).all()


def test_inpainting_takes_the_nearer_colour() -> None:
    x = torch.zeros(1, 1, 8, 32)
    x[..., 16:] = 1
    mask = torch.ones(1, 1, 8, 32, dtype=torch.bool)
    mask[..., 2:4, 2:4] = mask[..., 2:4, 26:28] = False
    seen = occlusion(nn.Identity().eval(), "inpaint")(x, mask)
    assert torch.equal(seen, x)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("no paint called 'pink'; pass one of zero, mean, black",
         lambda: occlusion(nn.Flatten(), "pink")),
        ("std must not be zero", lambda: occlusion(nn.Flatten(), "black", std=(1, 0, 1))),
        ("mean must be finite", lambda: occlusion(nn.Flatten(), "black", mean=float("nan"))),
        ("sigma must be a positive number", lambda: occlusion(nn.Flatten(), "blur", sigma=0)),
        ("seed must be", lambda: occlusion(nn.Flatten(), "noise", seed=-1)),
        ("2 numbers do not normalise 3 channels; pass one per channel",
         lambda: occlusion(nn.Flatten().eval(), "black", mean=(0.5, 0.5))(X, MASKS)),
    ],
)  # fmt: skip
def test_paint_that_cannot_be(message, call) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        call()
    assert caught.value.hint


def test_named_paints_are_recorded_with_what_they_depend_on() -> None:
    assert policy_of(occlusion(nn.Flatten(), "white", mean=0.5, std=0.25)) == {
        "paint": "white", "mean": [0.5], "std": [0.25],
    }  # fmt: skip
    assert policy_of(occlusion(nn.Flatten(), "blur", sigma=2.0)) == {"paint": "blur", "sigma": 2.0}
    assert policy_of(occlusion(nn.Flatten(), "inpaint")) == {"paint": "inpaint"}
    assert set(PAINTS) >= {"noise", "image-mean"}
