"""The benchmarks that compile nothing run on a small network; their rows say what they claim."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import convad_fx
from benchmarks import (
    area,
    calls,
    convert,
    incremental,
    limits,
    many,
    measure,
    overhead,
    scale,
    search,
    sharing,
    signs,
    strategies,
)
from benchmarks.hook_based import HookBased
from convad_fx.demo import scenes

pytestmark = pytest.mark.heavy


def run(module, monkeypatch, tmp_path, *options) -> list[measure.Row]:
    """What `python -m` would, in this process, without the settings of the C library."""
    file = tmp_path / "rows.json"
    for name in measure.TUNED:
        monkeypatch.delenv(name, raising=False)
    small = ("--models", "resnet18", "--allocator", "default", "--runs", "2", "--json", str(file))
    monkeypatch.setattr(sys, "argv", [str(Path(module.__file__)), *small, *options])
    module.main()
    read = json.loads(file.read_text())
    assert read["machine"]["torch"] == torch.__version__
    return read["rows"]


def test_convert_times_every_step(monkeypatch, tmp_path):
    (row,) = run(convert, monkeypatch, tmp_path)
    assert row["operations"] == 69
    steps = ("trace", "check", "rewrite", "strategies", "emit", "verify", "forward")
    assert all(row[f"{step} s"] > 0 for step in steps)
    assert row["convert s"] <= row["slowest"]
    assert row["ms per operation"] == pytest.approx(1000 * row["convert s"] / 69)


def test_scale_streams_masks_and_tries_batches(monkeypatch, tmp_path):
    options = ("--size", "32", "--most", "256", "--batches", "4", "32")
    monkeypatch.setattr(measure, "PART", 64)  # so that memory is counted in several parts
    rows = run(scale, monkeypatch, tmp_path, *options)
    assert rows[1]["peak MB"] > rows[1]["answers MB"]
    assert [(row["masks"], row["images"]) for row in rows] == [
        *((64, 1), (256, 1), (1, 1), (4, 4), (16, 16), (64, 64)),
        *((128, 1),) * 6,
    ]
    choices = [row["batch"] for row in rows[-6:]]
    assert choices == ["auto", "4", "32", "8", "8, channels-last", "8, bfloat16"]
    assert [row["of"] for row in rows[-6:]] == ["auto"] * 4 + ["8"] * 2
    assert rows[-6]["times"] == 1
    assert 0 < rows[-1]["deviation"] < 0.1

    assert [row["calls"] for row in rows if row["batch"] == "4"] == [32]
    assert [row["calls"] for row in rows if row["batch"] == "32"] == [4]
    assert rows[1]["answers MB"] == pytest.approx(256 * 1000 * 4 / 1e6)


def test_reuse_is_bounded_by_what_a_hidden_square_changes(monkeypatch, tmp_path):
    (small,) = run(incremental, monkeypatch, tmp_path, "--batch", "1", "--hidden", "16")
    (whole,) = run(incremental, monkeypatch, tmp_path, "--batch", "1", "--hidden", "224")
    assert small["at most"] > whole["at most"]
    assert whole["at most"] == pytest.approx(1)  # nothing is left to reuse


def test_calls_are_of_every_size_of_box_and_batch(monkeypatch, tmp_path):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(convad_fx.MaskedModule, "compile", lambda self: None)
    monkeypatch.setattr(calls, "SIDES", (97, 224))
    monkeypatch.setattr(calls, "BATCHES", (2,))
    monkeypatch.setenv(calls.KERNELS, "512")
    asked = ["calls", "--models", "resnet18", "--allocator", "default", "--kernels", "2048"]
    monkeypatch.setattr(sys, "argv", [*asked, "--json", str(file)])
    for name in measure.TUNED:
        monkeypatch.delenv(name, raising=False)
    calls.main()
    (row,) = json.loads(file.read_text())["rows"]
    assert row["kernels"] == "2048"
    assert row["images' worth"] == pytest.approx(2 * (1 + 97 / 224) ** 2 / 4, rel=0.1)
    once = row["ms at once"] / row["images' worth"]
    assert row["ms an image's worth"] == pytest.approx(once)
    assert row["a new shape, in images"] == pytest.approx(
        (row["ms new"] - row["ms at once"]) / once
    )


def test_limits_are_those_of_the_masks():
    x = torch.randn(1, 3, 128, 128)
    model = torchvision.models.resnet18().eval()
    masked, work = convad_fx.convert(model, x), limits.work_by_grid(model, x)
    assert list(work) == [64, 32, 16, 8, 4]
    assert sum(work.values()) == pytest.approx(1)
    whole = limits.row_of(masked, work, x, torch.ones(2, 1, 128, 128, dtype=torch.bool))
    shares = ("kept", "one box", "as built", "grouped", "a box per level", "those grouped",
              "active cells")  # fmt: skip
    assert [whole[name] for name in shares] == pytest.approx([1] * 7)
    masks = torch.zeros(8, 1, 128, 128, dtype=torch.bool)
    masks[:, :, 40:56, 8:40] = torch.rand(8, 1, 16, 32) < 0.3
    found = limits.row_of(masked, work, x, masks)
    kept, tiles, box, boxes, tight, few, cells = (found[name] for name in shares)
    assert kept < 0.02 < cells < tight < few < 1
    assert tight < box < tiles < 1
    assert box <= boxes * (1 + 1e-9) < tiles


def test_what_is_computed_on_no_grid_counts_as_whole():
    x = torch.randn(1, 3, 96, 96)
    model = torchvision.models.mobilenet_v3_small().eval()
    masked, work = convad_fx.convert(model, x), limits.work_by_grid(model, x)
    assert work[1] > 0  # squeeze and excitation
    masks = torch.zeros(2, 1, 96, 96, dtype=torch.bool)
    masks[:, :, 40:44, 40:44] = True
    assert limits.row_of(masked, work, x, masks)["active cells"] > work[1]


def test_cells_that_masks_share_have_equal_values():
    torch.manual_seed(0)
    model = torchvision.models.resnet18().double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.double) + 1
    masks = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    masks[1, :, 30:32, 10:14] = False
    layers, values = sharing.layers_of(model, x), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *call: values.append(call[2]))
    with torch.inference_mode():
        model(x * masks)
    sums, stems = sharing.kept_sums(masks), 0
    for layer, value in zip(layers, values, strict=True):
        keys = sharing.kept_in(sums, layer.field, layer.side, 1)
        alike, equal = keys[0] == keys[1], torch.isclose(value[0], value[1]).all(0)
        assert equal[alike].all()
        stems += layer.field.stride == 2
        if layer.field.stride == 2:
            assert torch.equal(alike, equal)
            assert 0 < (~alike).sum() < 40
    assert stems == 1
    assert sum(layer.work for layer in layers) == pytest.approx(1)


def test_what_masks_share_is_counted_once():
    x = torch.randn(1, 3, 128, 128)
    model = torchvision.models.resnet18().eval()
    masked, layers = convad_fx.convert(model, x), sharing.layers_of(model, x)
    wholes = torch.ones(4, 1, 128, 128, dtype=torch.bool)
    *grids, together = sharing.rows_by_grid({}, masked, x, layers, [wholes])
    assert [row["grid"] for row in grids] == [64, 32, 16, 8, 4]
    for row in (*grids, together):
        assert row["active cells"] == pytest.approx(1)
        assert row["different"] == row["in tiles"] == pytest.approx(1 / 4)
    apart = torch.zeros(2, 1, 128, 128, dtype=torch.bool)
    apart[0, :, 4:12, 4:12] = apart[1, :, 116:124, 116:124] = True
    finest, *_, together = sharing.rows_by_grid({}, masked, x, layers, [apart])
    assert finest["different"] == finest["active cells"] < finest["in tiles"] == 1 / 16
    assert finest["in tiles"] < together["in tiles"] < 1


def test_fields_grow_with_windows_and_cells_that_are_not_asked_for_are_not_different():
    stem = sharing.Field().through(7, 2, 3, 1)
    assert stem.through(3, 2, 1, 1) == sharing.Field(4, 5, 5)
    keys = torch.tensor([7, 7, 8, 9]).reshape(4, 1, 1)
    asked = torch.tensor([True, True, True, False]).reshape(4, 1, 1)
    assert sharing.different(keys, asked) == 1 / 2


def test_windows_that_are_functions_count_as_those_that_are_modules():
    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return self.last(torch.nn.functional.max_pool2d(self.first(x), 2)).mean((2, 3))

    _, last = sharing.layers_of(Pooled().eval(), torch.randn(1, 3, 16, 16))
    assert last.field == sharing.Field(2, 3, 4)


def test_nothing_is_shared_behind_squeeze_and_excitation():
    x = torch.randn(1, 3, 96, 96)
    layers = sharing.layers_of(torchvision.models.mobilenet_v3_small().eval(), x)
    known = [layer.field is not None for layer in layers]
    assert known[:2] == [True, True]
    assert not any(known[2:])  # the first block has one


def test_a_square_of_a_grid_is_as_large_as_it_is():
    cells = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    cells[0, 0, 2, 1:6] = True
    assert limits.box_sides(cells).tolist() == [[2, 5], [2, 2]]  # two cells at least


def test_signs_are_shown_for_each_policy_and_block(monkeypatch, tmp_path):
    class Demo:
        """A kit of one network and two pictures."""

        def __init__(self, root):
            self.classifier = convad_fx.models.resolve("demo")

        def load(self, name):
            steps = self.classifier.preprocess
            return self.classifier.model, {"mean": steps.mean, "std": steps.std}

        def files(self):
            return scenes.held_out(2)

        def photo(self, scene, info):
            picture = Image.fromarray(scene.image)
            return convad_fx.images.to_input(picture, self.classifier.preprocess)

    file = tmp_path / "rows.json"
    monkeypatch.setattr(signs, "Kit", Demo)
    options = ("--kit", "none", "--models", "demo", "--sides", "8", "16", "--json", str(file))
    monkeypatch.setattr(sys, "argv", ["signs", *options])
    signs.main()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 * (len(signs.POLICIES) + 1)
    assert {row["blocks"] for row in rows} == {8, 16}
    by = {(row["hidden by"], row["blocks"]): row for row in rows}
    # a receptive field that must be half visible switches off more than any visible cell does
    assert by["receptive, tau 0.7", 8]["spared"] < by["default", 8]["spared"]
    assert all(0 <= row["below 0.7"] <= row["photos"] == 2 for row in rows)


def test_a_folder_run_says_where_the_time_goes(monkeypatch, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    folder, file = tmp_path / "photos", tmp_path / "rows.json"
    folder.mkdir()
    for number, scene in enumerate(scenes.held_out(4)):
        Image.fromarray(scene.image).save(folder / f"{number}.png")
    options = ("--model", "demo", "--partitions", "1", "--ways", "2x1", "--json", str(file))
    monkeypatch.setattr(sys, "argv", [str(Path(many.__file__)), str(folder), *options])
    many.main()
    assert capsys.readouterr().out.startswith("4 pictures, 1 partitions\n")
    read = json.loads(file.read_text())
    assert read["machine"]["torch"] == torch.__version__
    (row,) = read["rows"]
    assert (row["processes x threads"], row["pictures"]) == ("2x1", 4)
    worked = sum(row[f"{part} s"] for part in many.PARTS)
    assert 0 < worked <= 2 * row["s per picture"] - row["waiting s"]
    assert row["start s"] > 0


def test_ways_are_measured_against_the_first(monkeypatch):
    seconds = {(1, 1): iter([4.0, 6.0, 5.0]), (2, 1): iter([3.0, 2.0, 9.0])}
    monkeypatch.setattr(
        many,
        "measure",
        lambda _, *way: {"s per picture": next(seconds[way]), "kept": {"a.png": 1}},
    )
    one, two = many.rows_of(argparse.Namespace(ways=["1x1", "2x1"], runs=3))
    assert (one["s per picture"], one["against first"]) == (5.0, 1.0)
    assert (two["s per picture"], two["against first"]) == (3.0, 0.6)


def test_masks_are_the_families_that_they_are_called():
    sliding = search.sliding_masks()
    assert sliding.shape == (169, 1, 224, 224)
    assert (~sliding).flatten(1).sum(1).unique().tolist() == [32 * 32]
    assert (~sliding).any(0).all()  # every pixel is hidden by some
    kept = search.rise_masks(64).float().mean()
    assert 0.4 < kept < 0.6


def test_searches_are_asked_again_and_counted_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(convad_fx.MaskedModule, "compile", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    monkeypatch.setattr(search, "SIZE", 64)
    monkeypatch.setattr(search, "PARTITIONS", 1)
    asked = []
    steps_of = search.search_steps
    monkeypatch.setattr(search, "search_steps", lambda *x: asked.append(steps_of(*x)) or asked[-1])
    rows = run(search, monkeypatch, tmp_path, "--masks", "32", "--batches", "1")
    (steps,) = asked
    middle = len(steps[len(steps) // 2].unique(dim=0))
    assert [row["masks"] for row in rows] == [f"search ({middle})", "sliding (9)", "rise (32)"]
    assert [row["of one"] for row in rows] == [sum(map(len, steps)), 9, 4000]
    for row in rows:
        assert row["differs"] < 1e-5
        assert row["explanations /min"] == pytest.approx(60 * row["compiled /s"] / row["of one"])


def test_each_strategy_is_left_out_in_turn(monkeypatch, tmp_path):
    monkeypatch.setattr(convad_fx.MaskedModule, "compile", lambda self: None)
    monkeypatch.setattr(strategies, "SIZE", 96)
    masks = {"sliding": torch.ones(49, 1, 96, 96).bool(), "rise": torch.zeros(12, 1, 96, 96).bool()}
    for k, mask in enumerate(masks["sliding"]):
        i, j = (12 * n for n in divmod(k, 7))
        mask[0, i : i + 16, j : j + 16] = False
    for k, mask in enumerate(masks["rise"]):
        mask[0, 4 * k : 4 * k + 30, 40:70] = True
    monkeypatch.setattr(strategies, "masks_of", lambda family, *_: [masks[family]])
    options = ("--families", "sliding", "rise", "--masks", "49")
    sliding, boxes = run(strategies, monkeypatch, tmp_path, *options)
    assert [sliding["masks"], boxes["masks"]] == ["sliding (49)", "rise (12)"]
    assert sliding["area without patch"] > sliding["area"] == sliding["area without box"]
    assert boxes["area without box"] == 1 > boxes["area"] == boxes["area without patch"]
    for row in (sliding, boxes):
        assert all(row[f"without {name} / all"] > 0 for name in strategies.STRATEGIES)


def test_steps_go_on_from_image_to_image(monkeypatch, tmp_path):
    numbered = [torch.full((k, 1, 2, 2), k % 2 == 0) for k in range(1, 7)]
    monkeypatch.setattr(search, "search_steps", lambda masked, x: numbered[int(x) :])
    found = search.Searches.by(None, [torch.tensor(0), torch.tensor(2)])
    assert [len(step) for step in found.steps] == [2, 6]  # of 1 to 6 and of 3 to 6
    assert found.masks == (21 + 18) / 2
    file = tmp_path / "searches.pt"
    torch.save(found._asdict(), file)
    again = search.recorded(argparse.Namespace(recorded=file))
    assert again.masks == found.masks
    assert all(map(torch.equal, again.steps, found.steps))


def test_hooks_give_what_the_masked_network_gives():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    x, masks = torch.randn(1, 3, 64, 64), torch.rand(3, 1, 64, 64) < 0.5
    masked = convad_fx.convert(model, x)
    with torch.inference_mode(), HookBased(model) as hooked:
        assert torch.equal(hooked(x, masks), masked(x, masks))


def test_peak_memory_is_that_of_tensors():
    def call() -> None:
        a = torch.ones(1000, 1000)
        b = a + 1
        del a
        b + 1

    assert measure.peak_mb(call) == pytest.approx(8.0, rel=0.1)  # two of 4 MB at a time


def test_peak_memory_goes_on_from_part_to_part():
    with measure.Memory("cpu") as memory:
        a = torch.ones(1000, 1000)
        memory.part()
        b = a + 1
        memory.part()
        del a
        b + 1
    assert memory.peak_mb == pytest.approx(8.0, rel=0.1)


def test_ratios_are_taken_within_rounds():
    timing = measure.Timing({"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]})
    assert timing.ratio("a", "b") == 2
    assert timing.spread("a", "b") == "2.00..2.00"


SMALL_KIT = """
import torch
from torch import nn

ZOO = {"small": None}

def load(name, root):
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4, 3)), {"size": 64}

def preprocess(picture, info):
    return torch.full((1, 3, 64, 64), picture.size[0] / 100)
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A folder of one network and one photo."""
    (tmp_path / "models.py").write_text(SMALL_KIT)
    photos = tmp_path / "images" / "imagenet"
    photos.mkdir(parents=True)
    Image.new("RGB", (50, 50)).save(photos / "photo.jpg")
    return tmp_path


def test_networks_are_the_kits_where_it_has_them(kit):
    asked = argparse.Namespace(kit=kit, device="cpu")
    model, x, weights = measure.Network.named("small", asked)
    assert weights == "the kit's"
    assert x.shape == (1, 3, 64, 64)
    assert (x == 0.5).all()
    assert model(x).shape == (1, 3)
    assert not model.training
    with pytest.raises(SystemExit, match="leave the size out"):
        measure.Network.named("small", asked, 32)
    _, other, weights = measure.Network.named("resnet18", asked, 32)
    assert other.shape == (1, 3, 32, 32)
    assert weights == "random"
    asked.kit = None
    with pytest.raises(ValueError, match="small"):
        measure.Network.named("small", asked)


def test_converting_and_scaling_take_the_kits_networks(kit, monkeypatch, tmp_path):
    options = ("--kit", str(kit), "--models", "small")
    (row,) = run(convert, monkeypatch, tmp_path, *options)
    assert row["model"] == "small"
    assert row["operations"] == 5
    rows = run(scale, monkeypatch, tmp_path, *options, "--most", "64", "--batches", "8")
    assert rows[0]["answers MB"] == pytest.approx(64 * 3 * 4 / 1e6)
    assert {row["weights"] for row in rows} == {"the kit's"}


def test_every_other_benchmark_of_speed_takes_the_kits_networks(kit, monkeypatch, tmp_path):
    monkeypatch.setattr(convad_fx.MaskedModule, "compile", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    options = ("--kit", str(kit), "--models", "small")
    rows = run(area, monkeypatch, tmp_path, *options, "--masks", "4")
    assert [round(row["active"], 2) for row in rows] == [
        round((side * 9) ** 2 / 64**2 - 2 / 64**2, 2) for side in range(2, 8)
    ]
    rows += run(overhead, monkeypatch, tmp_path, *options, "--batches", "1")
    assert "hooks / masked compiled" not in rows[-1]  # which cannot follow every network
    rows += run(incremental, monkeypatch, tmp_path, *options, "--batch", "1", "--hidden", "16")
    assert [row["weights"] for row in rows] == ["the kit's"] * 8


def test_graphs_are_counted_and_those_that_are_made_again():
    torch._dynamo.reset()
    compiled = measure.Compiled()

    @torch.compile(backend="eager", dynamic=False)
    def double(x):
        return 2 * x

    with compiled.counted():
        double(torch.ones(3))
        double(torch.ones(3))
    assert (compiled.graphs, compiled.again) == (1, 0)
    double(torch.ones(4))  # not while it counts
    with compiled.counted():
        double(torch.ones(5))
    assert (compiled.graphs, compiled.again) == (2, 1)
