"""`convad-fx compile`, and `explain` on what it leaves."""

import json

import pytest
import torch
import torchvision
from PIL import Image
from test_cli import QUICK, run

import convad_fx
from convad_fx import artifact, images, models
from convad_fx.demo import scenes
from convad_fx.errors import ImageError, ModelError


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(scenes.held_out(1)[0].image).save(tmp_path / "ladybird.png")
    return tmp_path / "ladybird.png"


def test_explaining_from_a_file_gives_the_same(tmp_path, photo):
    file = tmp_path / "demo.cfx"
    made = run("compile", "demo", "-o", file, "--tau", 0.25)
    assert (made.exit_code, made.stderr) == (0, "")
    assert "Assumption 1 holds" in made.stdout
    assert artifact.describe(file).class_names == tuple(scenes.CLASSES)
    answers = []
    for model, options in (("demo", ("--tau", 0.25)), (file, ())):
        result = run(
            "explain",
            photo,
            "--model",
            model,
            "--out",
            tmp_path / "why",
            "--json",
            *options,
            *QUICK,
        )
        assert (result.exit_code, result.stderr) == (0, "")
        (why,) = json.loads(result.stdout)["explained"]
        why.pop("seconds")
        why.pop("files")
        answers.append(why)
    assert answers[0] == answers[1]
    assert answers[1]["policy"]["tau"] == 0.25


def test_what_a_file_settles_cannot_be_asked_for(tmp_path, photo):
    file = tmp_path / "demo.cfx"
    answer = json.loads(run("compile", "demo", "-o", file, "--json").stdout)
    assert (answer["file"], answer["bytes"]) == (str(file), file.stat().st_size)
    common = ("explain", photo, "--model", file, "--out", tmp_path, *QUICK)
    result = run(*common, "--tau", 0.5)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "leave the policy's options out, or compile it again" in result.stderr
    result = run(*common, "--weights", "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "contains its weights" in result.stderr


def test_a_policy_that_is_asked_for_is_not_taken_for_the_default(tmp_path, photo):
    file = tmp_path / "demo.cfx"
    assert run("compile", "demo", "-o", file, "--tau", 0.25).exit_code == 0
    common = ("explain", photo, "--model", file, "--out", tmp_path, *QUICK)
    result = run(*common, "--tau", 0)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "was compiled with Policy(tau=0.25" in result.stderr
    assert run(*common, "--tau", 0.25).exit_code == 0


def test_a_device_is_for_machine_code(tmp_path):
    result = run("compile", "demo", "-o", tmp_path / "demo.cfx", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--device selects the device of the machine code, and the file has none" in result.stderr
    assert "pass `--compiled` as well" in result.stderr


def test_names_and_steps_in_a_file_are_looked_at(tmp_path, photo):
    file, labels = tmp_path / "a.cfx", tmp_path / "labels.txt"
    demo = models.resolve("demo")
    masked = convad_fx.convert(demo.model, demo.example())
    steps = {**images.recorded(demo.preprocess), "resize": 100, "crop": 96}
    convad_fx.save(masked, file, preprocessing=steps, class_names=["one", "two"])
    with pytest.raises(ModelError, match=r"a\.cfx names 2 classes, and .*a\.cfx answers one"):
        models.open_artifact(str(file))
    labels.write_text("\n".join(f"class {n}" for n in range(10)))
    assert models.open_artifact(str(file), labels=labels).label(3) == "class 3"
    convad_fx.save(masked, file, preprocessing=steps)
    assert models.open_artifact(str(file)).size == (96, 96)
    larger = images.recorded(models.open_artifact(str(file), size=192).preprocess)
    assert (larger["crop"], larger["resize"]) == ([192, 192], [200])
    convad_fx.save(masked, file, preprocessing={"shrink": "a bit"})
    for size in (None, 96):
        with pytest.raises(ImageError, match="recorded preprocessing .*shrink.* cannot be used"):
            models.open_artifact(str(file), size=size)


def test_bad_files_are_one_line(tmp_path, photo):
    file = tmp_path / "demo.cfx"
    file.write_bytes(b"nothing")
    result = run("explain", photo, "--model", file, "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "demo.cfx is not an artifact" in result.stderr
    result = run("compile", "demo", "-o", tmp_path / "none" / "demo.cfx")
    assert result.exit_code == 2
    assert "cannot be written (No such file" in result.stderr


def test_a_file_without_preprocessing_asks_for_it(tmp_path):
    masked = convad_fx.convert(models.resolve("demo").model, torch.zeros(1, 3, 96, 96))
    convad_fx.save(masked, tmp_path / "a.cfx")
    with pytest.raises(ImageError, match="does not record its preprocessing; pass"):
        models.open_artifact(str(tmp_path / "a.cfx"))
    opened = models.open_artifact(str(tmp_path / "a.cfx"), size=96, mean=(0.5,) * 3, std=(1.0,) * 3)
    assert (opened.size, opened.preprocess.mean, opened.labels) == ((96, 96), (0.5,) * 3, ())


def test_recorded_steps_give_the_same_input(photo):
    picture = images.open_image(photo).resize((300, 200))
    presets = torchvision.models.get_model_weights("convnext_tiny").DEFAULT.transforms()
    steps = [
        images.standard(96),
        images.Preprocess(presets, tuple(presets.mean), tuple(presets.std)),
        models.resolve("demo").preprocess,
    ]
    for preprocess in steps:
        again = images.replayed(json.loads(json.dumps(images.recorded(preprocess))))
        expected = images.to_input(picture, preprocess)
        torch.testing.assert_close(images.to_input(picture, again), expected, rtol=0, atol=1e-6)
    with pytest.raises(ImageError, match="cannot be recorded"):
        images.recorded(images.Preprocess(lambda image: torch.zeros(3, 2, 2), (0,) * 3, (1,) * 3))
    with pytest.raises(ImageError, match="cannot be used"):
        images.replayed({"resize": 3})
