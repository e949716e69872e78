"""The command line as its users meet it: output, files, exit codes, and what they get wrong."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from typer.testing import CliRunner

from convad_fx import cli
from convad_fx.cli.images import class_index
from convad_fx.cli.output import file_stems
from convad_fx.demo import scenes
from convad_fx.errors import PolicyError
from convad_fx.explain import Explanation

QUICK = ("--partitions", "1", "--no-progress", "--device", "cpu")


def run(*args):
    result = CliRunner().invoke(cli.app, [str(a) for a in args])
    # A bug would arrive as its own exception; everything else as an exit code.
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "\x1b" not in result.output
    return result


@pytest.fixture
def photos(tmp_path):
    """Two drawn pictures, as files that differ in every way files can."""
    ladybird, fish = scenes.held_out(2)
    Image.fromarray(ladybird.image).save(tmp_path / "ladybird.png")
    Image.fromarray(fish.image).resize((200, 160)).convert("CMYK").save(
        tmp_path / "fish.jpg", quality=95
    )
    return tmp_path / "ladybird.png", tmp_path / "fish.jpg"


# ------------------------------------------------------------------------------------------- check
def test_check_says_yes():
    result = run("check", "squeezenet1_1")
    assert result.exit_code == 0
    assert result.stdout.startswith("SqueezeNet: ")
    assert "Assumption 1 holds" in result.stdout
    assert result.stderr == ""


def test_check_lists_findings_and_exits_with_one():
    result = run("check", "vit_b_16")
    assert result.exit_code == 1
    assert "Assumption 1 is not shown to hold: 12 findings" in result.stdout
    assert "encoder.layers.encoder_layer_11.self_attention" in result.stdout


@pytest.mark.parametrize(("name", "code"), [("squeezenet1_1", 0), ("vit_b_16", 1)])
def test_check_for_machines(name, code):
    result = run("check", name, "--json", "--size", 224)
    answer = json.loads(result.stdout)
    assert result.exit_code == code
    assert (answer["name"], answer["ok"], answer["size"]) == (name, code == 0, [224, 224])
    assert bool(answer["findings"]) == (code == 1)


# ----------------------------------------------------------------------------------------- explain
def test_explain_leaves_a_table_pictures_and_json(tmp_path, photos):
    out = tmp_path / "new" / "why"
    result = run("explain", *photos, "--model", "demo", "--out", out, *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    head, ladybird, fish, last = result.stdout.splitlines()
    assert head.split() == ["image", "kept", "confidence", "of", "masks", "seconds", "answer"]
    assert ladybird.startswith(str(photos[0]))
    assert ladybird.endswith("  ladybird")
    assert fish.endswith("  fish")
    assert last == f"Pictures and JSON are in {out}."
    for stem in ("ladybird", "fish"):
        why = Explanation.from_json((out / f"{stem}.json").read_text(encoding="utf-8"))
        assert (why.target_name, why.sufficient, why.mask.shape) == (stem, True, (96, 96))
        with Image.open(out / f"{stem}.png") as overlay:
            assert overlay.width > 2 * overlay.height


def test_explain_for_machines(tmp_path, photos):
    options = ("--json", "--gamma", 0.5, "--seed", 3, "--tau", 0.25, "--attribution", "receptive")
    options += (
        "--input",
        "raw",
        "--pool",
        "renormalize",
        "--fill",
        "neighbour",
        "--min-box",
        64,
        "--batch-size",
        7,
    )
    result = run(
        "explain", photos[0], "--model", "demo", "--out", tmp_path / "out", *options, *QUICK
    )
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert (answer["model"], answer["device"], answer["failed"]) == ("demo", "cpu", [])
    (why,) = answer["explained"]
    assert why["image"] == str(photos[0])
    assert (why["gamma"], why["seed"], why["target_name"]) == (0.5, 3, "ladybird")
    assert why["policy"] == {
        "tau": 0.25,
        "attribution": "receptive",
        "input": "raw",
        "pool": "renormalize",
        "fill": "neighbour",
    }
    assert (why["search"]["partitions"], why["search"]["min_box"]) == (1, 64)
    assert why["confidence_recheck"] >= 0.5 * why["confidence_whole"]
    files = [tmp_path / "out" / f"ladybird.{suffix}" for suffix in ("json", "png")]
    assert why["files"] == [str(file) for file in files]


def test_an_unreadable_picture_does_not_stop_the_others(tmp_path, photos):
    cut = tmp_path / "cut.png"
    cut.write_bytes(photos[0].read_bytes()[:500])
    gone = tmp_path / "gone.png"
    args = ("explain", cut, photos[0], gone, "--model", "demo", "--out", tmp_path / "o", *QUICK)
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].endswith("ladybird")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"convad-fx: not explained: {cut} is damaged")
    assert second == f"convad-fx: not explained: {gone}: no such file; check the path"

    answer = json.loads(run(*args, "--json").stdout)
    assert len(answer["explained"]) == 1
    assert [failed["image"] for failed in answer["failed"]] == [str(cut), str(gone)]

    result = run("explain", gone, "--model", "demo", "--out", tmp_path / "o", *QUICK)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_picture_is_explained_alike_in_any_company(tmp_path, photos):
    run("explain", photos[1], "--model", "demo", "--out", tmp_path / "alone", *QUICK)
    run("explain", *photos, "--model", "demo", "--out", tmp_path / "second", *QUICK)
    alone, second = (tmp_path / folder / "fish.json" for folder in ("alone", "second"))
    assert alone.read_text() == second.read_text()
    png = [(tmp_path / folder / "fish.png").read_bytes() for folder in ("alone", "second")]
    assert png[0] == png[1]


def test_files_of_the_same_name_do_not_overwrite_each_other(tmp_path, photos):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "ladybird.bmp"
    Image.open(photos[0]).save(twin)
    run("explain", photos[0], twin, "--model", "demo", "--out", tmp_path / "o", *QUICK)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "ladybird-2.json",
        "ladybird-2.png",
        "ladybird.json",
        "ladybird.png",
    ]


def test_ones_own_network_weights_and_labels(tmp_path, photos, monkeypatch):
    (tmp_path / "convad_cli_own.py").write_text(
        "import torchvision\n"
        "def build():\n"
        "    print('some chatter')\n"
        "    return torchvision.models.squeezenet1_1(num_classes=2)\n"
    )
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1(num_classes=2).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "own.pt")
    (tmp_path / "own.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    args = ["explain", photos[0], "--model", "convad_cli_own:build", "--weights", "own.pt"]
    args += ["--labels", "own.txt", "--size", 64, "--resize", 64, "--mean", "0.5", "--std", "1,1,1"]
    result = run(*args, "--out", "o", "--json", "--min-box", 2000, *QUICK)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["explained"][0]["target_name"] in ("cat", "dog")
    assert "some chatter" in result.stderr
    args[args.index("own.pt")] = "none"  # what the function returns is as it is
    result = run(*args, "--out", "o", "--json", "--min-box", 2000, *QUICK)
    assert result.exit_code == 0
    assert "random" not in result.stderr
    sys.modules.pop("convad_cli_own", None)


@pytest.mark.parametrize("target", ["0", "ladybird", "LadyBird"])
def test_a_target_by_number_or_name(tmp_path, photos, target):
    args = ("explain", photos[0], "--model", "demo", "--out", tmp_path, "--target", target, *QUICK)
    assert run(*args).exit_code == 0


def test_a_target_that_is_not_the_answer(tmp_path, photos):
    args = ("explain", photos[0], "--model", "demo", "--target", "fish", *QUICK)
    result = run(*args, "--out", tmp_path / "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  fish (not predicted)" in result.stdout.splitlines()[1]
    why = Explanation.from_json((tmp_path / "o" / "ladybird.json").read_text(encoding="utf-8"))
    assert (why.target_name, why.is_prediction, why.score) == ("fish", False, "softmax")
    assert why.confidence_recheck >= 0.9 * why.confidence_whole
    assert 0 < why.confidence_whole < 0.5


def test_a_score_is_passed_on(tmp_path, photos):
    args = ("explain", photos[0], "--model", "demo", "--out", tmp_path / "o", *QUICK)
    for score in ("sigmoid", "logit"):
        (why,) = json.loads(run(*args, "--json", "--score", score).stdout)["explained"]
        assert (why["score"], why["target_name"]) == (score, "ladybird")
        assert (why["confidence_whole"] > 1) == (score == "logit")


def test_a_network_with_one_output_has_two_answers(tmp_path, photos, monkeypatch):
    (tmp_path / "convad_cli_binary.py").write_text(
        "import torch, torchvision\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torchvision.models.squeezenet1_1(num_classes=1)\n"
    )
    (tmp_path / "two.txt").write_text("healthy\nill\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    args = ("explain", photos[0], "--model", "convad_cli_binary:build", "--labels", "two.txt")
    args += ("--size", 64, "--mean", 0.5, "--std", 1, "--weights", "none", "--out", "o", "--json")
    found = []
    for name in ("healthy", "ill"):
        result = run(*args, "--target", name, *QUICK)
        (why,) = json.loads(result.stdout)["explained"]
        assert (why["target_name"], why["score"]) == (name, "sigmoid")
        found.append(why)
    assert sum(why["confidence_whole"] for why in found) == pytest.approx(1)
    assert sorted(why["is_prediction"] for why in found) == [False, True]
    for why in found:
        assert why["is_prediction"] == (why["confidence_whole"] > 0.5)
    sys.modules.pop("convad_cli_binary", None)


def test_comparisons_take_a_target_and_a_score(tmp_path, photos):
    options = ("--target", "fish", "--score", "sigmoid", "--backgrounds", 2, "--paint", "grey")
    args = ("compare", photos[0], "--model", "demo", "--out", tmp_path / "c", *options, *QUICK)
    for masker in json.loads(run(*args, "--json").stdout)["compared"][0]["maskers"]:
        assert (masker["target_name"], masker["score"]) == ("fish", "sigmoid")
        assert not masker["is_prediction"]
    assert "fish (not predicted): confidence" in (tmp_path / "c" / "compare.html").read_text()
    assert "fish (not predicted)" in run(*args).stdout


@pytest.mark.parametrize("command", ["explain", "compare", "tune"])
def test_the_help_lists_the_scores(command):
    shown = " ".join(run(command, "--help").stdout.split())
    assert "--score NAME" in shown
    assert "softmax; sigmoid, for labels of their own or one output; probability, or logit" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "lady bird"), "no class is called 'lady bird'; did you mean ladybird?"),
        (("--target", "99"), "target 99 is not a class of this network"),
        (("--score", "relu"), "no score called 'relu'; pass one of softmax, sigmoid,"),
        (("--score", "probability"), "they are no probabilities; pass score='softmax'"),
        (("--gamma", "1.5"), "gamma must lie in (0, 1]"),
        (("--tau", "1"), "tau must lie in [0, 1)"),
        (("--pool", "max"), "pool must be one of dilute, renormalize"),
        (("--mean", "0.5,0.5"), "--mean 0.5,0.5 is not three numbers; write --mean 0.485,"),
        (("--std", "red"), "--std red is not three numbers"),
        (("--size", "96", "--resize", "90"), "resized to 90 pixels cannot be cropped to 96"),
        (("--weights", "gone.pt"), "there is no weights file gone.pt"),
        (("--labels", "gone.txt"), "the labels in gone.txt cannot be read"),
        (("--device", "gpu"), "there is no device called 'gpu'"),
        (("--model", "demonet"), "no classifier called 'demonet'"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(tmp_path, photos, options, message):
    args = ("explain", photos[0], "--model", "demo", "--out", tmp_path / "o", *QUICK, *options)
    result = run(*args)
    assert (result.exit_code, result.stdout.count("\n")) in ((2, 0), (2, 1))
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("convad-fx: ")
    assert message in result.stderr


def test_names_that_several_classes_share_or_nobody_gave():
    with pytest.raises(PolicyError, match="2 classes are called 'crane'; .* numbers 1, 2"):
        class_index("crane", ["a", "crane", "Crane"])
    with pytest.raises(PolicyError, match="the classes have no names"):
        class_index("crane", ())


def test_a_network_that_cannot_be_converted_is_explained_to_the_user(tmp_path, photos):
    args = ("--model", "vit_b_32", "--weights", "none", "--out", tmp_path / "o")
    result = run("explain", photos[0], *args)
    assert result.exit_code == 2
    assert "the weights are random" in result.stderr
    assert "Assumption 1 is not shown to hold" in result.stderr


def test_a_folder_that_cannot_be_written(tmp_path, photos):
    (tmp_path / "file").write_text("in the way")
    result = run("explain", photos[0], "--model", "demo", "--out", tmp_path / "file", *QUICK)
    assert result.exit_code == 2
    assert re.search(r"cannot write to .*file \(File exists\); pass another `--out`", result.stderr)


def test_usage_errors_are_plain_too():
    assert run("explain").exit_code == 2
    assert run("check").exit_code == 2
    assert run("nothing").exit_code == 2


# ------------------------------------------------------------------------------------- help, demo
@pytest.mark.parametrize("command", ["check", "explain", "compare", "tune", "demo"])
def test_the_examples_in_the_help_are_valid(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    examples = re.findall(r"^ *convad-fx (\w+ .*?|\w+)(?: {2,}.*| >.*)?$", result.stdout, re.M)
    assert len(examples) >= 2
    for example in examples:
        args = example.replace('"', "").split()
        assert args[0] == command
        assert run(*args, "--help").exit_code == 0, example  # parsed, not run


def test_version():
    assert re.fullmatch(r"convad_fx \S+, torch \S+\n", run("--version").stdout)


def test_demo(tmp_path):
    result = run("demo", "--out", tmp_path, "--no-progress", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "the same as before, bit for bit" in result.stdout
    for number, scene in enumerate(scenes.held_out(3), 1):
        stem = f"{number}-{scenes.CLASSES[scene.label]}"
        (row,) = [line for line in result.stdout.splitlines() if line.startswith(stem)]
        assert row.endswith(scenes.CLASSES[scene.label])
        why = Explanation.from_json((tmp_path / f"{stem}.json").read_text(encoding="utf-8"))
        assert why.sufficient
        inside = np.logical_and(why.mask, scene.mask).sum() / why.mask.sum()
        assert f"{inside:.0%} (fills {scene.mask.mean():.0%})" in row
        # Chance would put as much of it on the object as of the picture: a tenth to a third.
        assert inside > 0.5
        assert (tmp_path / f"{stem}.png").is_file()


def test_the_whole_way_in_a_process_of_its_own(tmp_path, photos):
    def shell(*args):
        return subprocess.run(
            [sys.executable, "-m", "convad_fx", *map(str, args)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "FORCE_COLOR": "1"},
            timeout=300,
            check=False,
        )

    done = shell("explain", photos[0].name, "--model", "demo", "--out", "o", "--partitions", "1")
    assert (done.returncode, done.stderr) == (0, "")  # no bar where nobody watches
    assert "ladybird" in done.stdout
    assert "\x1b" not in done.stdout
    done = shell("check", "resnet5O")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        "convad-fx: torchvision has no classifier called 'resnet5O'; did you mean resnet50 or "
    )


# ------------------------------------------------------------------------ more than one question
def test_disjoint_and_contrastive_explanations(tmp_path, photos):
    options = ("--disjoint", 2, "--contrastive", "--order", "spatial", "--minimal", 8, *QUICK)
    result = run("explain", *photos, "--model", "demo", "--out", tmp_path / "o", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = result.stdout.splitlines()[1:-1]
    assert "(without " in rows[0]
    files = sorted(path.stem for path in (tmp_path / "o").glob("*.json"))
    assert files[-1].startswith("ladybird")
    assert len(files) == len(rows)
    whys = {
        stem: Explanation.from_json((tmp_path / "o" / f"{stem}.json").read_text()) for stem in files
    }
    first = whys["ladybird"]
    assert first.contrast is not None
    assert (first.minimal, first.search.order, first.search.minimal) == (True, "spatial", 8)
    for stem, why in whys.items():
        assert stem.endswith("-reason-2") == (why.number == 1)
    if "ladybird-reason-2" in whys:
        assert not (whys["ladybird-reason-2"].mask & first.mask).any()
        assert any("(reason 2)" in row for row in rows)
    with Image.open(tmp_path / "o" / "ladybird.png") as wide:
        assert wide.width > 3 * wide.height


def test_search_options_reach_the_search(tmp_path, photos):
    options = ("--json", "--confidence", 0.5, "--budget", 400, "--stable", 0.9, "--depth", 6)
    options += ("--split", "binomial", "--queue", "intersection", "--queue-len", 2, "--weighted")
    result = run("explain", photos[0], "--model", "demo", "--out", tmp_path, *options, *QUICK)
    (why,) = json.loads(result.stdout)["explained"]
    wanted = {
        "confidence": 0.5, "budget": 400, "stable": 0.9, "depth": 6, "split": "binomial",
        "queue": "intersection", "queue_len": 2, "weighted": True,
    }  # fmt: skip
    assert wanted.items() <= why["search"].items()
    assert why["evaluations"] <= 400


def test_a_search_in_half_precision(tmp_path, photos):
    options = ("--precision", "bfloat16", "--json")
    result = run("explain", photos[0], "--model", "demo", "--out", tmp_path, *options, *QUICK)
    (why,) = json.loads(result.stdout)["explained"]
    assert why["precision"] == "bfloat16"
    assert why["sufficient"]
    assert 0 < why["deviation"] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "half"), "precision must be one of bfloat16, float16, not 'half'"),
        (("--budget", 10), "a budget of 10 is too small"),
        (("--order", "nearest"), "order must be one of responsibility, spatial, not 'nearest'"),
        (("--stable", 2), "stable must lie in (0, 1], not 2.0"),
    ],
)
def test_search_options_out_of_range(tmp_path, photos, options, message):
    result = run("explain", photos[0], "--model", "demo", "--out", tmp_path, *QUICK, *options)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[0]


def test_names_of_further_reasons_do_not_meet_those_of_pictures():
    from pathlib import Path

    paths = [Path("cat.png"), Path("cat-reason-2.png"), Path("b/cat.jpg")]
    assert file_stems(paths, Path("out")) == ["cat", "cat-reason-2", "cat-2"]
    assert file_stems(paths, Path("out"), 2) == ["cat", "cat-reason-2-2", "cat-2"]
    assert file_stems(paths, Path("b")) == ["cat-2", "cat-reason-2", "cat-3"]  # not over b/cat


# ----------------------------------------------------------------------------------------- compare
COMPARE = ("--model", "demo", "--paint", "black", "--backgrounds", 3, *QUICK)


def test_compare_leaves_rows_means_and_pages(tmp_path, photos):
    out = tmp_path / "o"
    result = run("compare", tmp_path, "--out", out, *COMPARE)
    assert (result.exit_code, result.stderr) == (0, "")
    head, *rows = result.stdout.splitlines()
    assert head.split()[:3] == ["image", "hidden", "pixels"]
    assert [row.split()[-1] for row in rows[:4]] == ["fish", "fish", "ladybird", "ladybird"]
    assert [("switched off" in row, " black " in row) for row in rows[:2]] == [
        (True, False),
        (False, True),
    ]
    assert (
        rows[5] == "Means of 2 pictures; in brackets: difference from switched off, 95 % interval"
    )
    assert rows[-1] == f"Pages are in {out}; compare.html has them all."
    assert sorted(page.name for page in out.iterdir()) == [
        "compare.html",
        "fish-compared.png",
        "ladybird-compared.png",
    ]


def test_compare_for_machines_and_a_picture_that_cannot_be_read(tmp_path, photos):
    gone = tmp_path / "gone.png"
    result = run("compare", photos[0], gone, "--out", tmp_path / "o", "--json", *COMPARE)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert [failed["image"] for failed in answer["failed"]] == [str(gone)]
    (one,) = answer["compared"]
    off, black = one["maskers"]
    assert (off["masker"], black["masker"]) == ("switched off", "black")
    assert black["policy"]["paint"] == "black"
    assert off["policy"]["attribution"] == "positional"
    assert list(off["rho"]) == ["colours"]  # no other picture to plant it on
    assert (off["seed"], off["search"]) == (black["seed"], black["search"])
    assert answer["means"][1]["size"]["mean"] == pytest.approx(black["size"])
    less = answer["means"][1]["size"]["less_first"]["mean"]
    assert less == pytest.approx(black["size"] - off["size"])
    assert result.stderr == f"convad-fx: not compared: {gone}: no such file; check the path\n"


def test_a_picture_is_compared_once(tmp_path, photos):
    copy = tmp_path / "again.png"
    copy.write_bytes(photos[0].read_bytes())
    result = run("compare", tmp_path, photos[0], "--out", tmp_path / "o", "--json", *COMPARE)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    compared, failed = answer["compared"], answer["failed"]
    same = {str(copy), str(photos[0])}
    assert len(compared) == 2  # and not its own background
    assert len({one["image"] for one in compared} & same) == 1
    assert all(row["backgrounds"]["images"] == 1 for one in compared for row in one["maskers"])
    (left,) = failed
    assert left["image"] in same
    assert "shows the same as" in left["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--paint", "pink"), "there is no paint called 'pink'"),
        (("--gamma", "0"), "gamma must lie in (0, 1]"),
        (("--tau", "1"), "tau must lie in [0, 1)"),
    ],
)
def test_mistakes_in_compare_end_in_one_line(tmp_path, photos, options, message):
    result = run("compare", photos[0], "--out", tmp_path / "o", *COMPARE, *options)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_compare_in_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    result = run("compare", tmp_path, "--out", tmp_path / "o", *COMPARE)
    assert result.exit_code == 2
    assert "there are no pictures in" in result.stderr
