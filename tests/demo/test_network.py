from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from torch import fx

from convad_fx.demo import scenes, train
from convad_fx.demo.network import MEAN, SIZE, STD, WEIGHTS, DemoNet, load, preprocess
from convad_fx.errors import ImageError


@pytest.fixture(scope="module")
def model() -> DemoNet:
    return load()


def test_the_weights_fit_into_a_megabyte():
    assert len(files("convad_fx.demo").joinpath(WEIGHTS).read_bytes()) <= 1_000_000


@torch.no_grad()
def test_pictures_never_seen_are_named(model):
    pictures = scenes.held_out(300)
    x = torch.cat([preprocess(scene.image) for scene in pictures])
    labels = torch.tensor([scene.label for scene in pictures])
    assert float((model(x).argmax(dim=1) == labels).float().mean()) >= 0.95


def test_the_network_can_be_traced(model):
    traced = fx.symbolic_trace(model)
    for size in (SIZE, 64):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(traced(x), model(x))


def test_loading_gives_an_evaluating_network_on_the_cpu(model):
    assert not any(module.training for module in model.modules())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_the_network_has_what_networks_in_the_wild_have(model):
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert any(conv.groups == conv.in_channels > 1 for conv in convolutions), "depthwise"
    assert any(conv.stride == (2, 2) and conv.kernel_size == (1, 1) for conv in convolutions)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 250_000


def test_preprocessing_is_the_constants_and_nothing_else():
    image = scenes.draw(0, 0).image
    expected = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    x = preprocess(image)
    assert x.shape == (1, 3, SIZE, SIZE)
    np.testing.assert_allclose(x[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, preprocess(Image.fromarray(image)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_any_mode_and_size_are_taken(mode):
    assert preprocess(Image.new(mode, (31, 57))).shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((SIZE, SIZE), np.uint8),
        np.zeros((3, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.float32),
    ],
    ids=["grey", "channels first", "float"],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ImageError, match=r"expected a picture as uint8 \(H, W, 3\).*channels last"):
        preprocess(image)


def test_augmenting_erases_to_zero_but_never_most_of_the_object():
    pictures = [scenes.draw(label, seed) for label in range(4) for seed in range(4)]
    masks = torch.stack([torch.from_numpy(scene.mask) for scene in pictures])[:, None]
    # Ones everywhere: a zero in the result is a pixel erased, or one from outside the picture.
    ones = torch.ones(len(pictures), 3, SIZE, SIZE)
    x = train.augmented(ones, masks, torch.Generator().manual_seed(1))
    again = train.augmented(ones, masks, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)
    erased = (x == 0).float().mean(dim=(1, 2, 3))
    assert (erased > 0.2).any()
    assert (erased < 0.05).any()

    objects = masks.float().expand(-1, 3, -1, -1)
    seen = train.augmented(objects, masks, torch.Generator().manual_seed(1))[:, :1] > 0.5
    share = seen.sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))
    # Two fifths of the object are left, drawn smaller by a factor of up to 1.2 each way.
    assert (share > 0.4 / 1.2**2).all()


def test_two_epochs_of_training_are_the_same_twice():
    drawn = [scenes.draw(*number) for number in scenes.training_numbers(20)]
    seen = (
        torch.stack([torch.from_numpy(scene.image) for scene in drawn]).movedim(3, 1),
        torch.stack([torch.from_numpy(scene.mask) for scene in drawn])[:, None],
        torch.tensor([scene.label for scene in drawn]),
    )
    first, second = (train.train(seen, epochs=2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
