"""Ray: every picture once, even if workers die over them, and nothing is left behind."""

import io
import os
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

from convad_fx.demo import scenes
from convad_fx.errors import PolicyError, Unavailable
from convad_fx.explain import Search
from convad_fx.integrations import ray as on_ray
from convad_fx.integrations import ray_connection
from convad_fx.many import ClassifierSpec, Explainer, ExplainOptions, explain_many, read

QUICK = Search(partitions=1, min_box=300)
NOT_COMPARED = ["seconds_load", "seconds_search", "overlay"]
COUNT = 8

#: Ray warns of its own deprecations, and its processes' pipes are closed when they are collected.
needs_ray = [
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform == "win32", reason="signals, and /proc"),
    pytest.mark.filterwarnings("ignore"),
]


def installed():
    pytest.importorskip("ray.data")


@pytest.fixture(scope="module")
def explainer():
    return Explainer(ClassifierSpec("demo").load(), ExplainOptions(search=QUICK))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of a folder, three of them in a tar, and one that is cut short."""
    folder = tmp_path_factory.mktemp("ray") / "photos"
    folder.mkdir()
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, scene in enumerate(scenes.held_out(COUNT)):
            file = io.BytesIO()
            Image.fromarray(scene.image).save(file, "png")
            if number < COUNT - 3:
                (folder / f"{number:02d}.png").write_bytes(file.getvalue())
            else:
                member = tarfile.TarInfo(f"{number:02d}.png")
                member.size = len(file.getvalue())
                file.seek(0)
                tar.addfile(member, file)
    (folder / "cut.png").write_bytes(file.getvalue()[:500])
    return folder


def answers(folder):
    return read(folder).drop_columns(NOT_COMPARED).to_pylist()


def alike(folder):
    """What is equal to the answers of another run."""
    found = answers(folder)
    for row in found:  # which masks shared a batch depends on what was fast, and rounding on that
        row["confidence_kept"] = pytest.approx(row["confidence_kept"], abs=1e-5)
    return found


def own_processes(title):
    """Living descendants of this process with `title` in their command line."""
    found, parents = [], {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        parents[int(entry.name)] = int(parent)
        if title in line and state != "Z":
            found.append(int(entry.name))

    def descends(pid):
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return sorted(pid for pid in found if descends(pid))


class TestOnRay:
    pytestmark = needs_ray

    def test_every_picture_once_though_a_worker_is_killed(self, tmp_path, photos, explainer, capfd):
        installed()
        killed, reported = [], []
        folders = set(Path("/tmp").glob("cfx-*"))
        drawing = Explainer(
            explainer.classifier, explainer.options, overlays=tmp_path / "ray" / "overlays"
        )

        def on_outcome(outcome):
            reported.append(outcome.key)
            if len(reported) == 3:
                assert any(tmp_path.glob("ray/rank-*.jsonl"))  # rows are kept as they come
                workers = own_processes("ray::MapWorker")
                assert len(workers) == 2
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

        found = on_ray.explain_many(
            drawing, [photos], tmp_path / "ray", device="cpu", workers=2, on_outcome=on_outcome
        )
        assert killed
        assert (found.explained, found.rows, list(found.failed)) == (
            COUNT, COUNT, ["photos/cut.png"],
        )  # fmt: skip
        assert len(reported) == len(set(reported)) == COUNT + 1
        told = capfd.readouterr()
        assert told.out == ""
        assert "A worker died or was killed" in told.err
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: sums are rounded by the number of threads
        try:
            explain_many(explainer, [photos], tmp_path / "here")
        finally:
            torch.set_num_threads(threads)
        assert answers(tmp_path / "ray") == alike(tmp_path / "here")
        assert len(list((tmp_path / "ray" / "overlays").glob("*.png"))) == COUNT
        assert own_processes("ray") == []
        assert set(Path("/tmp").glob("cfx-*")) == folders

    def test_on_a_cluster_that_is_there(self, tmp_path, photos, explainer, monkeypatch):
        installed()
        import ray

        monkeypatch.setenv("RAY_worker_niceness", "0")

        rows = tmp_path / "rows"
        early = [photos / "00.png", photos / "01.png"]
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8)
        try:
            # rows of a run without Ray count
            explain_many(explainer, early, rows)
            again = on_ray.explain_many(explainer, early, rows, device="cpu", resume=True)
            assert (again.explained, again.skipped, again.rows) == (0, 2, 2)
            with pytest.raises(PolicyError, match="holds 2 rows already"):
                on_ray.explain_many(explainer, early, rows, device="cpu")
            with pytest.raises(Unavailable, match="cluster has no GPU; pass `--device cpu`"):
                on_ray.explain_many(explainer, early, tmp_path / "o", device="cuda")

            # a picture that has killed its workers before is not tried for ever
            job = on_ray._job(explainer, None)
            starts = ray.remote(on_ray._StartCounter).options(num_cpus=0).remote()
            worker = on_ray._Worker((ray.put(job),), starts, "cpu")
            asked = {"path": str(early[0]), "name": "00.png", "key": "00.png"}
            told = [worker(asked)["error"] for _ in range(on_ray.MAX_DEATHS + 1)]
            assert told[:-1] == [""] * on_ray.MAX_DEATHS
            assert told[-1].endswith("00.png: 3 workers died on it; they may need more memory")
            elsewhere = worker({**asked, "key": "other.png"})
            assert "does not contain other.png on the worker's machine" in elsewhere["error"]

            # one with other versions says so, and that ends the run
            worker = on_ray._Worker((ray.put(replace(job, digest="other")),), starts, "cpu")
            told = [worker(asked)]
            monkeypatch.setattr(on_ray, "_answers", lambda *_: iter(told))
            with pytest.raises(PolicyError, match="would make other rows"):
                on_ray.explain_many(explainer, early, tmp_path / "o", device="cpu")
            assert ray.is_initialized()  # what was not started here is not ended here
        finally:
            ray.shutdown()

    def test_a_cluster_that_does_not_answer_is_told_in_time(
        self, tmp_path, photos, explainer, monkeypatch
    ):
        installed()
        monkeypatch.setattr(ray_connection, "CONNECT_TIMEOUT", 5.0)
        for address, why in {
            "127.0.0.1:1": "at 127.0.0.1:1 within 5 seconds; start one with `ray start --head`",
            "nonsense": "at nonsense .Invalid address format: nonsense.; start one",
            "ray://127.0.0.1:10001": "addresses Ray's client, which does not support Ray Data",
        }.items():
            with pytest.raises(Unavailable, match=why):
                on_ray.explain_many(explainer, [photos], tmp_path / "o", address=address)


def test_a_gpu_for_each_worker_where_there_are_gpus():
    made = []
    ray = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0},
        put=lambda job: job,
        remote=lambda kind: SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=lambda: None)
        ),
        data=SimpleNamespace(ActorPoolStrategy=lambda **how: made.append(how["size"])),
    )
    for device, workers, size, share, chosen in (
        ("auto", None, 2, {"num_gpus": 1}, "cuda"),
        ("cuda", 1, 1, {"num_gpus": 1}, "cuda"),
        ("auto", 9, 2, {"num_gpus": 1}, "cuda"),
        ("cpu", None, 8, {"num_cpus": 1}, "cpu"),
    ):
        pool = on_ray._pool(ray, None, device, workers)
        assert made.pop() == size
        assert pool["fn_constructor_args"][2] == chosen
        assert {name: pool[name] for name in pool if name.startswith("num_")} == share


def test_a_network_goes_to_workers_whole(explainer, tmp_path):
    """What a worker makes of the file has the same provenance; compiled files go as they are."""
    import convad_fx
    from convad_fx import images

    job = on_ray._job(explainer, None)
    there = job.explainer("cpu")
    assert there.provenance == explainer.provenance
    assert there.classifier.name == "demo"

    file = tmp_path / "net.cfx"
    record = images.recorded(explainer.classifier.preprocess)
    convad_fx.save(explainer.masked, file, preprocessing=record)
    spec = ClassifierSpec(str(file), size=80)
    other = Explainer(spec.load(), explainer.options)
    job = on_ray._job(other, spec)
    assert job.file == file.read_bytes()
    there = job.explainer("cpu")
    assert there.provenance == other.provenance
    assert there.provenance != explainer.provenance


def test_ray_that_is_missing_is_named(explainer, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r'not installed .*; pip install "convad_fx\[ray\]"'):
        on_ray.explain_many(explainer, [photos], tmp_path / "o")
    assert not (tmp_path / "o").exists()
