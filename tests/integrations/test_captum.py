"""Captum's own methods, unmodified, on masks."""

import re
from pathlib import Path

import pytest
import torch

import convad_fx
from convad_fx import models
from convad_fx.demo import scenes
from convad_fx.errors import ImageError, MaskError
from convad_fx.images import to_input

pytest.importorskip("captum")
# captum itself warns about how it was installed, and what it imports
pytestmark = pytest.mark.filterwarnings("ignore")

SIDE = 12


@pytest.fixture(scope="module")
def asked():
    from PIL import Image

    classifier = models.resolve("demo")
    scene = scenes.held_out(1)[0]
    x = to_input(Image.fromarray(scene.image), classifier.preprocess)
    masked = convad_fx.convert(classifier.model, x)
    return masked, x, int(masked(x).argmax()), torch.as_tensor(scene.mask)


def tiles(x):
    rows, columns = torch.arange(x.shape[2]) // SIDE, torch.arange(x.shape[3]) // SIDE
    return (rows[:, None] * (x.shape[3] // SIDE) + columns)[None, None]


def test_feature_ablation_is_the_difference_a_tile_makes(asked):
    from captum.attr import FeatureAblation

    from convad_fx.integrations.captum import all_kept, switching_off

    masked, x, target, _ = asked
    found = FeatureAblation(switching_off(masked, x)).attribute(
        all_kept(x), target=target, feature_mask=tiles(x), perturbations_per_eval=8
    )
    with torch.no_grad():
        whole = masked(x)[0, target]
        for tile in (0, 27, 63):
            without = masked(x, tiles(x) != tile)[0, target]
            there = found[tiles(x) == tile]
            assert torch.allclose(there, whole - without, atol=1e-4)


@pytest.mark.parametrize("name", ["Occlusion", "ShapleyValueSampling", "KernelShap", "Lime"])
def test_other_methods_run_and_point_at_the_object(name, asked):
    import captum.attr

    from convad_fx.integrations.captum import all_kept, switching_off

    if name in ("KernelShap", "Lime"):
        pytest.importorskip("sklearn", reason="captum fits its linear models with it")
    masked, x, target, shown = asked
    torch.manual_seed(0)
    if name == "Occlusion":
        options = {"sliding_window_shapes": (1, SIDE, SIDE), "strides": (1, SIDE, SIDE)}
    else:
        options = {"feature_mask": tiles(x), "n_samples": 4 if "Shapley" in name else 300}
    method = getattr(captum.attr, name)(switching_off(masked, x))
    found = method.attribute(
        all_kept(x), target=target, perturbations_per_eval=16, show_progress=False, **options
    )
    assert found.shape == (1, 1, *x.shape[2:])
    assert torch.isfinite(found).all()
    assert found[0, 0][shown].mean() > found[0, 0][~shown].mean()


def test_masks_are_not_blended(asked):
    from convad_fx.integrations.captum import all_kept, switching_off

    masked, x, _, _ = asked
    with pytest.raises(MaskError, match="other than 0 and 1; use all_kept"):
        switching_off(masked, x)(all_kept(x) * 0.5)
    with pytest.raises(ImageError, match="expected one"):
        switching_off(masked, x.expand(2, -1, -1, -1))


def test_the_search_is_a_method_of_captum(asked):
    from captum.attr._utils.attribution import Attribution

    from convad_fx.integrations.captum import Responsibility

    masked, x, target, _ = asked
    method, search = Responsibility(masked), convad_fx.Search(partitions=1)
    assert isinstance(method, Attribution)
    assert not method.has_convergence_delta()
    both = torch.cat([x, x.flip(3).roll(7, 2)])
    targets = [target, int(masked(both)[1].argmax())]
    expected = [
        torch.as_tensor(
            convad_fx.explain(masked, one, wanted, search=search).responsibility,
            dtype=torch.float32,
        )
        for one, wanted in zip(both, targets, strict=True)
    ]
    assert not torch.equal(*expected)
    for wanted in (targets, torch.tensor(targets), None):
        found = method.attribute(both, wanted, search=search)
        assert found.shape == (2, 1, *x.shape[2:])
        for one, map_of_it in zip(found, expected, strict=True):
            assert torch.equal(one[0], map_of_it)
    # the second class has a map of its own, which its set alone explains
    second = int(masked(x)[0].argsort(descending=True)[1])
    other = convad_fx.explain(masked, x, second, score="sigmoid", search=search)
    assert (other.target, other.score) == (second, "sigmoid")
    found = method.attribute(x, second, search=search, score="sigmoid")
    assert torch.equal(found[0, 0], torch.from_numpy(other.responsibility))
    assert not torch.equal(found[0, 0], expected[0])
    with pytest.raises(ImageError, match="3 targets for 1 images"):
        method.attribute(x, [0, 1, 2])


def test_the_page_runs():
    page = Path(__file__).parents[2] / "docs" / "captum.md"
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["tiles"].unique().tolist() == list(range(16))
