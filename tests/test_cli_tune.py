"""`convad-fx tune` as its users meet it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from convad_fx import Policy, cli, images
from convad_fx.cli.masks import mask_files, read_mask
from convad_fx.cli.tune import policies
from convad_fx.demo import scenes
from convad_fx.errors import MaskError

QUICK = ("--model", "demo", "--device", "cpu", "--no-progress", "--random", 8, "--backgrounds", 2)


def run(*args):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small work on shared cores
    try:
        result = CliRunner().invoke(cli.app, ["tune", *map(str, args)])
    finally:
        torch.set_num_threads(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def photos(tmp_path):
    """Five drawn pictures, and where their objects are."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    for k, scene in enumerate(scenes.held_out(5)):
        Image.fromarray(scene.image).save(photos / f"{k}.png")
        Image.fromarray(scene.mask.astype(np.uint8)).save(masks / f"{k}.bmp")  # 0 and 1
    return photos


def test_a_table_a_verdict_and_the_line_to_use(photos, tmp_path):
    out = tmp_path / "new" / "tuned.json"
    options = ("--policy", "tau=0.7", "--no-explain", "--out", out)
    result = run(photos, *QUICK, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["policy", "score", "best", "in", "suffice", "survive"]
    assert {line.split()[-5] for line in lines[1:3]} == {"default", "tau=0.7"}
    assert sum(line.startswith("* ") for line in lines) == 1
    answer = json.loads(out.read_text())
    assert answer["verdict"] in lines
    chosen = "--tau 0.7" if answer["decided"] else "(no option: it is the default)"
    assert lines[-2:] == [
        f"In Python:           Policy({'tau=0.7' if answer['decided'] else ''})",
        f"On the command line: {chosen}",
    ]
    assert (answer["model"], answer["images"], len(answer["trials"])) == ("demo", 5, 2)


def test_masks_tell_where_explanations_lie(photos):
    for k in (1, 2, 3, 4):
        (photos.parent / "masks" / f"{k}.bmp").unlink()
    options = ("--masks", photos.parent / "masks", "--policy", "default", "--partitions", 1)
    result = run(photos / "0.png", photos / "1.png", *QUICK, *options, "--json")
    assert result.exit_code == 0
    assert result.stderr == f"convad-fx: no true mask for {photos / '1.png'}\n"
    explained = [one["explained"] for one in json.loads(result.stdout)["trials"][0]["images"]]
    assert [one["iou"] is None for one in explained] == [False, True]


def test_unreadable_pictures_do_not_stop_the_others(photos):
    (photos / "broken.png").write_text("no picture")
    result = run(photos, *QUICK, "--policy", "paper", "--no-explain")
    assert result.exit_code == 1
    assert "On the command line:" in result.stdout
    assert result.stderr.startswith(f"convad-fx: not read: {photos / 'broken.png'} is not an image")
    result = run(photos / "broken.png", *QUICK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


def test_one_picture_says_nothing_and_says_so(photos):
    result = run(photos / "0.png", *QUICK, "--policy", "tau=0.7", "--no-explain")
    assert result.exit_code == 0
    assert "No conclusion from " in result.stdout
    assert "Keep default." in result.stdout


def _other_size(photos):
    Image.new("L", (50, 40), 255).save(photos.parent / "masks" / "0.bmp")


def _without_picture(photos):
    Image.new("L", (96, 96), 255).save(photos.parent / "masks" / "dog.png")


def _twice(photos):
    Image.new("L", (96, 96), 255).save(photos.parent / "masks" / "0.png")


def _black(photos):
    Image.new("L", (96, 96)).save(photos.parent / "masks" / "0.bmp")


def _unreadable(photos):
    (photos.parent / "masks" / "0.bmp").write_text("no picture")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_other_size, "0.bmp has 50 x 40 pixels, its picture 96 x 96; draw it at the size"),
        (_without_picture, "there is no picture for the mask "),
        (_twice, "are masks of the same picture; keep one"),
        (_black, "0.bmp is black all over"),
        (_unreadable, "0.bmp is not an image"),
    ],
)
def test_masks_that_do_not_fit_end_in_one_line(photos, fault, message):
    fault(photos)
    result = run(photos, *QUICK, "--masks", photos.parent / "masks")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "tau"), "the policy 'tau' cannot be read"),
        (("--policy", "pool=max"), "pool must be one of dilute, renormalize"),
        (("--grid", "huge"), "grid must be one of few, full, not 'huge'"),
        (("--grid", "few", "--policy", "paper"), "`--grid` and `--policy` cannot be combined"),
        (("--partitions", "2", "--no-explain"), "--partitions has no effect with --no-explain"),
        (("--aim", "beauty"), "aim must be one of robust, object"),
        (("--aim", "object"), "aim 'object' needs true masks of the objects"),
        (("--masks", "nowhere"), "there is no folder nowhere"),
        (("--gamma", "2"), "gamma must lie in (0, 1]"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(photos, options, message):
    result = run(photos, *QUICK, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_copies_of_a_picture_are_no_evidence(photos):
    copy = photos / "copy.png"
    copy.write_bytes((photos / "0.png").read_bytes())
    result = run(photos, photos / "0.png", *QUICK)  # named twice is once
    assert result.exit_code == 2
    assert f"{copy} and {photos / '0.png'} are the same image" in result.stderr


def test_a_mask_goes_the_way_of_its_picture(tmp_path):
    """Resized and cropped alike; what the crop leaves out is gone."""
    picture, steps = Image.new("RGB", (200, 100)), images.standard(size=50, resize=50)
    drawn = np.zeros((100, 200), np.uint8)
    drawn[:, 100:] = 3  # dark, and all the same the object
    Image.fromarray(drawn).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", picture, steps)
    assert mask.shape == (50, 50)
    assert not mask[:, :25].any()
    assert mask[:, 25:].all()
    drawn[:, 40:] = 0
    drawn[:, :40] = 255
    Image.fromarray(drawn).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", picture, steps) is None


def test_masks_of_pictures_of_the_same_name_are_not_guessed(tmp_path):
    Image.new("L", (4, 4), 255).save(tmp_path / "1.png")
    with pytest.raises(MaskError, match=r"may belong to .*a/1.jpg or to .*b/1.jpg"):
        mask_files([tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"], tmp_path)


def test_grids_and_texts():
    assert policies(None, ()) == policies("few", ())
    assert policies("few", ())[0] == Policy()
    assert len(set(policies("full", ()))) == 60
    assert policies(None, ["paper"]) == (Policy.paper(),)
