"""Many pictures: every picture once, whatever is killed when."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from convad_fx import cli, images, metrics
from convad_fx.demo import scenes
from convad_fx.errors import ArtifactError, PolicyError, Unavailable

pq = pytest.importorskip("pyarrow.parquet")

from convad_fx.explain import Explanation, Search, explain  # noqa: E402
from convad_fx.many import (  # noqa: E402
    ClassifierSpec,
    Explainer,
    ExplainOptions,
    Provenance,
    Shard,
    Store,
    decode_rle,
    explain_many,
    read,
    rows,
    stream,
)
from convad_fx.many.run import Recorder  # noqa: E402

QUICK = Search(partitions=1, min_box=300)
OPTIONS = ("--model", "demo", "--partitions", "1", "--min-box", "300", "--device", "cpu")
SECONDS = ("seconds_load", "seconds_search")


def run(*args):
    result = CliRunner().invoke(cli.app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def png(number):
    file = io.BytesIO()
    Image.fromarray(scenes.held_out(number + 1)[number].image).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four pictures, two in a folder and two in a tar file beside their labels."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "1.png").write_bytes(png(0))
    (folder / "deep" / "1.png").write_bytes(png(1))
    (folder / "notes.txt").write_text("not a picture")
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for name, content in (("a.png", png(2)), ("a.cls", b"2"), ("b.png", png(3))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder


KEYS = [
    "photos/1.png",
    "photos/deep/1.png",
    "photos/shard-000.tar/a.png",
    "photos/shard-000.tar/b.png",
]


@pytest.fixture(scope="module")
def explainer():
    return Explainer(ClassifierSpec("demo").load(), ExplainOptions(search=QUICK))


@pytest.fixture(scope="module")
def whole(photos, explainer, tmp_path_factory):
    """The rows of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    explain_many(explainer, [photos], out)
    return out


def answers(folder):
    return read(folder).drop_columns(list(SECONDS)).to_pylist()


def alike(folder):
    """What is equal to the answers of another run."""
    found = answers(folder)
    for row in found:  # which masks shared a batch depends on what was fast, and rounding on that
        row["confidence_kept"] = pytest.approx(row["confidence_kept"], abs=1e-5)
    return found


# ---------------------------------------------------------------------------------------- the rows
def test_rows_of_a_class_that_is_not_the_answer(photos, tmp_path):
    fish = ClassifierSpec("demo").load().labels.index("fish")
    arguments = {"search": QUICK, "target": fish, "score": "sigmoid"}
    options = ExplainOptions(**arguments, metrics=("robustness", "insertion"))
    explainer = Explainer(ClassifierSpec("demo").load(), options)
    lines = []
    explain_many(explainer, [photos / "1.png"], tmp_path, on_outcome=lines.append)
    (row,) = read(tmp_path).to_pylist()
    assert (row["target_name"], row["is_prediction"], row["score"]) == ("fish", False, "sigmoid")
    x = scenes_input(explainer)
    why = explain(explainer.masked, x, fish, score="sigmoid", search=QUICK)
    for name in ("confidence_whole", "confidence_recheck", "size", "sufficient"):
        assert row[name] == getattr(why, name)
    curve = metrics.insertion(explainer.masked, x, why.responsibility, fish, score="sigmoid")
    assert dict(row["metrics"])["insertion"] == pytest.approx(curve.area, abs=1e-5)
    # the class survives where half of its score does, since it is never predicted
    planted = metrics.robustness(explainer.masked, x, why.mask, fish, n=50, score="sigmoid")
    survived = [c >= 0.5 * why.confidence_whole for c in planted.confidence]
    assert dict(row["metrics"])["robustness"] == sum(survived) / 50
    assert json.loads(row["provenance"])["score"] == "sigmoid"


def scenes_input(explainer):
    picture = Image.fromarray(scenes.held_out(1)[0].image)
    return images.to_input(picture, explainer.classifier.preprocess)


def test_a_row_is_the_explanation_of_its_picture(whole, photos, explainer):
    table = read(whole)
    assert table.column_names == [name for name, _, _ in rows.COLUMNS]
    assert table["key"].to_pylist() == KEYS
    assert [path.name for path in whole.glob("[!.]*")] == ["part-00000.parquet"]
    from convad_fx import images

    picture = images.open_image(photos / "1.png")
    x = images.to_input(picture, explainer.classifier.preprocess)
    why = explain(explainer.masked, x, search=QUICK, labels=scenes.CLASSES)
    row = table.to_pylist()[0]
    assert np.array_equal(decode_rle(row["mask"]), why.mask)
    for name in ("target_name", "confidence_recheck", "evaluations", "size", "image_digest"):
        assert row[name] == getattr(why, name)
    assert json.loads(row["provenance"])["weights"] == row["weights_digest"]


def test_runs_go_column_by_column_hidden_first_as_in_coco():
    mask = np.zeros((3, 4), bool)
    mask[1:, 2] = True
    rle = rows.encode_rle(mask)
    assert rle == {"size": [3, 4], "counts": [7, 2, 3]}
    # pycocotools' decoder, as its documentation has it: runs of 0 and 1 in Fortran order
    flat = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
    assert np.array_equal(flat.reshape(rle["size"], order="F").astype(bool), mask)


def test_metrics_contrast_and_overlays_on_request(tmp_path, photos):
    more = ("--metric", "insertion", "--metric", "deletion", "--metric", "robustness")
    result = run(
        "explain", photos / "1.png", "--out", tmp_path, *OPTIONS, *more, "--contrastive",
        "--overlays", "--precision", "bfloat16", "--json",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["rows"] == 1
    (row,) = read(tmp_path).to_pylist()
    assert row["key"] == "1.png"
    measured = dict(row["metrics"])
    assert measured.keys() == {"insertion", "deletion", "robustness"}
    assert measured["insertion"] > measured["deletion"]
    assert decode_rle(row["contrast"]["mask"]).any() == row["contrast"]["changes"]
    drawn = tmp_path / row["overlay"]
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"
    why = Explanation.from_json(drawn.with_suffix(".json").read_text(encoding="utf-8"))
    assert np.array_equal(decode_rle(row["mask"]), why.mask)
    assert json.loads(row["provenance"])["precision"] == why.precision == "bfloat16"
    assert row["deviation"] == why.deviation > 0


# -------------------------------------------------------------------------------- kills and resume
@pytest.mark.heavy
def test_a_run_killed_again_and_again_ends_with_the_rows_of_one_that_was_not(
    tmp_path, photos, whole
):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "convad_fx", "explain", str(photos), "--out", str(out)]
    kept = []
    for more in (1, 1):
        process = subprocess.Popen(
            [*command, *OPTIONS, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(more):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept.append(read(out).to_pylist())
    assert 2 <= len(kept[1]) < len(KEYS)
    journal = next(out.glob("rank-*.jsonl"))
    with journal.open("ab") as file:
        file.write(b'{"key": "photos/cut')  # as a kill in the middle of a line leaves it
    done = run("explain", photos, "--out", out, *OPTIONS, "--resume", "--json")
    assert json.loads(done.stdout)["explained_before"] == len(kept[1])
    assert answers(out) == alike(whole)
    # Nothing was made twice: rows kept before are those of before, with their timings.
    final = read(out).to_pylist()
    assert all(row in kept[1] for row in kept[0])
    assert all(row in final for row in kept[1])
    again = run("explain", photos, "--out", out, *OPTIONS, "--resume", "--json")
    assert json.loads(again.stdout)["explained_now"] == 0


def _write(folder, count):
    """Rows in a hurry, into parts of three: most of the time goes into merging."""
    with Store(folder, Provenance({}), resume=True, rows_per_part=3) as store:
        for number in range(count):
            store.add(_row(f"{number:04d}"))
        store.finish()


def _row(key, run=Provenance({})):  # noqa: B008
    blank = {
        "string": "", "int32": 0, "int64": 0, "double": 0.0, "bool": True, "metrics": {},
        "rle": {"size": [1, 1], "counts": [1]}, "contrast": None,
    }  # fmt: skip
    row = {name: blank[kind] for name, kind, _ in rows.COLUMNS}
    return {**row, "key": key, "run": run.digest, "provenance": run.text}


def test_no_kill_loses_or_doubles_a_row(tmp_path):
    rng = np.random.default_rng(0)
    context = multiprocessing.get_context("fork")
    before: set[str] = set()
    for _ in range(12):
        process = context.Process(target=_write, args=(tmp_path, 10_000))
        process.start()
        time.sleep(float(rng.uniform(0.02, 0.25)))
        process.kill()
        process.join()
        keys = read(tmp_path)["key"].to_pylist()
        assert len(set(keys)) == len(keys)
        assert before <= set(keys)
        before = set(keys)
    assert before
    assert len(before) < 10_000
    _write(tmp_path, len(before) + 5)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["part-00000.parquet"]
    stored = pq.read_table(tmp_path / "part-00000.parquet")["key"].to_pylist()
    assert sorted(stored) == [f"{number:04d}" for number in range(len(before) + 5)]


def test_rows_of_another_run_are_refused_by_name(photos, whole, tmp_path):
    args = ("explain", photos, "--out", whole, *OPTIONS)
    assert "holds 4 rows already; pass `--resume`" in run(*args).stderr
    result = run(*args, "--resume", "--seed", 1, "--tau", 0.5)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "rows of another run: network " in result.stderr
    assert "; policy " in result.stderr
    assert "search" not in result.stderr
    assert "weights" not in result.stderr.partition("; pass")[0]
    assert "seed 0 there, 1 here" in result.stderr
    assert read(whole).num_rows == 4


def test_a_picture_that_changed_is_told_not_mixed_in(tmp_path, explainer):
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(0))
    explain_many(explainer, [photo], tmp_path / "o")
    assert explain_many(explainer, [photo], tmp_path / "o", resume=True).skipped == 1
    before = photo.read_bytes()
    for other in (png(1), before[:-1] + b"?"):  # of another size, of the same
        photo.write_bytes(other)
        found = explain_many(explainer, [photo], tmp_path / "o", resume=True)
        assert "has changed since it was explained" in found.failed["photo.png"]
        assert (found.rows, found.skipped) == (1, 0)
    photo.write_bytes(before)
    photo.chmod(0)  # what cannot be read any more keeps its row (root reads it all the same)
    found = explain_many(explainer, [photo], tmp_path / "o", resume=True)
    assert (found.rows, found.skipped, found.failed) == (1, 1, {})


def test_two_runs_into_one_folder_at_a_time_are_refused(tmp_path):
    with (
        Store(tmp_path, Provenance({})),
        pytest.raises(Unavailable, match="another run is writing to"),
    ):
        Store(tmp_path, Provenance({}), resume=True)
    with Store(tmp_path, Provenance({})):  # freed on leaving
        pass


_FULL = """
import resource, signal, sys
from pathlib import Path
from convad_fx.errors import Unavailable
from convad_fx.many import Provenance, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
try:
    with Store(folder, Provenance({})) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        for number in range(1000):
            store.add({"key": str(number), "sha256": "0" * 64})
except Unavailable as error:
    print(len(store.stored), error)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_full_disk_is_one_line_and_costs_the_row_at_hand(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kept, _, message = done.stdout.partition(" ")
    assert f"cannot write to {tmp_path} (File too large)" in message
    assert done.stderr == ""
    lines = (tmp_path / "rank-00000.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["key"] for line in lines[:-1]] == [str(n) for n in range(int(kept))]


def test_what_other_ranks_could_not_explain_is_forgotten_with_them(tmp_path):
    with Store(tmp_path, Provenance({}), rank=1, world=2) as store:
        assert store.write_failures({"b.png": "torn"}) == tmp_path / "not-explained-00001.json"
    with Store(tmp_path, Provenance({}), resume=True) as store:
        assert store.write_failures({}) is None
    assert not list(tmp_path.glob("not-explained-*"))


def test_a_damaged_part_is_named(tmp_path):
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet is damaged"):
        Store(tmp_path, Provenance({}), resume=True)


def test_a_recorder_counts_each_picture_once(tmp_path):
    outcomes = []
    with Store(tmp_path, Provenance({})) as store:
        recorder = Recorder(store, time.perf_counter(), Shard(), outcomes.append)
        for _ in range(2):  # a row may arrive twice
            recorder.add(_row("a.png"), seconds_draw=0.5)
        recorder.fail("b.png", "b.png is torn")
        summary = recorder.finish()
    assert (summary.explained, summary.rows, summary.failed) == (1, 1, {"b.png": "b.png is torn"})
    assert (summary.seconds["draw"], summary.seconds["load"]) == (0.5, 0.0)
    assert [(outcome.key, outcome.error) for outcome in outcomes] == [
        ("a.png", ""),
        ("b.png", "b.png is torn"),
    ]
    assert read(tmp_path)["key"].to_pylist() == ["a.png"]


# --------------------------------------------------------------------------------- several of them
def test_processes_share_the_pictures_by_their_names(tmp_path, photos, whole, explainer):
    for rank in range(3):
        # not `resume`: the rows of faster processes are not in the way
        explain_many(explainer, [photos], tmp_path, shard=Shard(rank, 3))
    assert answers(tmp_path) == alike(whole)
    parts = sorted(tmp_path.glob("part-*.parquet"))
    assert [part.name for part in parts] == [f"part-0000{rank}.parquet" for rank in range(3)]
    assert sum(pq.read_table(part).num_rows for part in parts) == len(KEYS)
    # another number of processes goes on with what is there
    found = explain_many(explainer, [photos], tmp_path, resume=True)
    assert (found.explained, found.skipped) == (0, len(KEYS))
    assert answers(tmp_path) == alike(whole)
    assert [part.name for part in tmp_path.glob("part-*")] == ["part-00000.parquet"]


@pytest.mark.heavy
def test_under_torchrun(tmp_path, photos, whole):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "convad_fx", "explain", str(photos), "--out", str(tmp_path), *OPTIONS]
    done = subprocess.run(
        [sys.executable, *command], check=False, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path) == alike(whole)
    assert len(list(tmp_path.glob("part-*.parquet"))) == 2


def test_ranks_that_make_no_sense_are_refused():
    for bad in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}):
        with pytest.raises(PolicyError, match="do not fit together; start with torchrun"):
            Shard.from_environment(bad)


def test_torchrun_and_ray_do_not_go_together(tmp_path, photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("explain", photos, "--out", tmp_path, *OPTIONS, "--ray", "auto")
    assert result.exit_code == 2
    assert "torchrun and `--ray` cannot be combined; use one" in result.stderr


# -------------------------------------------------------------------------------------- bad sources
def test_unreadable_pictures_and_a_tar_cut_short_are_listed_and_the_rest_is_done(
    tmp_path, photos, explainer
):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(0))
    (folder / "cut.png").write_bytes(png(1)[:900])
    (folder / "empty.jpg").write_bytes(b"")
    shard = (photos / "shard-000.tar").read_bytes()
    (folder / "cut.tar").write_bytes(shard[: len(shard) // 2])
    (folder / "no.tar").write_bytes(b"no tar at all")
    found = explain_many(explainer, [folder], tmp_path / "o")
    assert {row["key"] for row in read(tmp_path / "o").to_pylist()} >= {"photos/good.png"}
    listed = json.loads((tmp_path / "o" / "not-explained-00000.json").read_text())
    assert listed == found.failed
    assert listed.keys() >= {"photos/cut.png", "photos/empty.jpg", "photos/no.tar/"}
    assert any(key.startswith("photos/cut.tar") for key in listed)
    # mended, they are explained, and the list is gone
    for name in ("cut.png", "empty.jpg"):
        (folder / name).write_bytes(png(1))
    for name in ("cut.tar", "no.tar"):
        (folder / name).unlink()
    found = explain_many(explainer, [folder], tmp_path / "o", resume=True)
    assert found.failed == {}
    assert not (tmp_path / "o" / "not-explained-00000.json").exists()


def test_a_name_that_is_no_utf_8_is_listed(tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("\udcff.png", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(0))
            tar.addfile(member, io.BytesIO(png(0)))
    result = run("explain", tmp_path / "odd.tar", "--out", tmp_path / "o", *OPTIONS, "--json")
    assert result.exit_code == 1
    (listed,) = json.loads(result.stdout)["failed"]
    assert listed["image"] == "odd.tar/\\xff.png"
    assert "is not UTF-8, as tables require; rename it" in listed["error"]
    assert read(tmp_path / "o")["key"].to_pylist() == ["odd.tar/a.png"]


def test_a_name_twice_in_a_tar_is_two_pictures(tmp_path):
    with tarfile.open(tmp_path / "twice.tar.gz", "w:gz") as tar:
        for number in range(2):
            member = tarfile.TarInfo("./a.png")
            member.size = len(png(number))
            tar.addfile(member, io.BytesIO(png(number)))
    found = {item.key: item.read() for item in stream([tmp_path / "twice.tar.gz"])}
    assert found == {"twice.tar.gz/a.png": png(0), "twice.tar.gz/a.png#2": png(1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("empty",), "there are no pictures in"),
        (("gone", "--resume"), "gone: no such file or folder; check the path"),
        (("photos", "other/photos"), "are both called photos; rename one"),
        (("photos", "--disjoint", "2"), "--disjoint cannot be used with folders"),
        (("photos", "--progress"), "--progress cannot be used with folders"),
        (("photos", "--metric", "fame"), "no metric is called 'fame'"),
        (("photos", "--target", "99"), "target 99 is not a class of this network"),
        (("photos", "--score", "relu"), "no score called 'relu'"),
        (("photos", "--gamma", "2"), "gamma must lie in (0, 1]"),
        (("photos", "--model", "demonet"), "no classifier called 'demonet'"),
        (("photos", "--labels", "photos/short.txt"), "names 2 classes, and demo answers"),
        (("photos", "--out", "photos/1.png"), "cannot write to"),
        (("photos", "--workers", "2"), "`--workers` needs `--ray`; pass `--ray local` as well"),
        (("photos", "--ray", "auto", "--device", "cuda:1"), "on Ray, cuda:1 cannot be chosen"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "photos", "other/photos"):
        Path(name).mkdir(parents=True)
    Path("photos/1.png").write_bytes(png(0))
    Path("photos/short.txt").write_text("a\nb\n")
    result = run("explain", *OPTIONS, "--out", "o", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


# ------------------------------------------------------------------------------- pictures of a kind
def _odd_pictures(folder):
    ladybird = Image.open(io.BytesIO(png(0)))
    ladybird.convert("L").save(folder / "grey.jpg")
    ladybird.convert("RGBA").save(folder / "alpha.png")
    deep = np.asarray(ladybird.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    ladybird.save(folder / "film.gif", save_all=True, append_images=[Image.new("RGB", (96, 96))])
    exif = Image.Exif()
    exif[0x0112] = 6
    ladybird.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    ladybird.resize((10_000, 100)).save(folder / "wide.png")
    Image.new("RGB", (10_000, 2)).save(folder / "line.png")
    whole = io.BytesIO()
    ladybird.save(whole, "jpeg")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:-900])
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))


def test_pictures_of_every_kind_get_a_right_row_or_a_clear_line(tmp_path, photos, whole):
    odd = tmp_path / "odd"
    odd.mkdir()
    _odd_pictures(odd)
    result = run("explain", odd, "--out", tmp_path / "o", *OPTIONS)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for line, (name, why) in zip(
        lines,
        [
            ("corrupt.jpg", "(is damaged|is not an image)"),
            ("cut.jpg", "is damaged"),
            ("line.png", "is a line"),
        ],
        strict=True,
    ):
        assert name in line
        assert any(part in line for part in why.strip("()").split("|"))
    found = {row["key"].removeprefix("odd/"): row for row in read(tmp_path / "o").to_pylist()}
    assert found.keys() == {
        "grey.jpg", "alpha.png", "deep.png", "film.gif", "turned.png", "dot.png", "wide.png",
    }  # fmt: skip
    straight = read(whole).to_pylist()[0]
    # what is the same picture once opened has the same answer, bit for bit
    for name in ("alpha.png", "turned.png"):
        assert found[name]["image_digest"] == straight["image_digest"]
        assert found[name]["mask"] == straight["mask"]
    assert found["film.gif"]["target_name"] == "ladybird"


def test_the_documentation_lists_the_columns():
    page = (Path(__file__).parents[2] / "docs" / "many.md").read_text(encoding="utf-8")
    table = "".join(f"| `{name}` | {meaning} |\n" for name, _, meaning in rows.COLUMNS)
    assert table in page
