"""`explain_many` on Ray: Ray Data distributes the pictures, this process stores the rows.

Workers receive the masked network as the bytes of a file of `convad_fx.save`, so they need neither
the model's source nor its weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import convad_fx
from convad_fx import images
from convad_fx.allocator import keep_memory
from convad_fx.errors import ConvadError, ImageError, PolicyError, Unavailable, last_line
from convad_fx.integrations.ray_connection import connected, import_ray
from convad_fx.many.explainer import Explainer
from convad_fx.many.options import ClassifierSpec, ExplainOptions, rank_device
from convad_fx.many.run import Outcome, Recorder, Shard, Summary, failure
from convad_fx.many.sources import Item, Source, sources, stream
from convad_fx.many.store import Store

#: Workers that may die while they explain one picture; after that it counts as failed.
MAX_DEATHS = 3
#: Pictures submitted to Ray at a time, which bounds the memory of this process.
SUBMIT_SIZE = 5000


def explain_many(
    explainer: Explainer,
    paths: Sequence[str | Path],
    out: Path | str,
    *,
    address: str = "local",
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    spec: ClassifierSpec | None = None,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """`convad_fx.many.explain_many` on Ray's workers: the same rows in the same files.

    >>> from convad_fx.many import ClassifierSpec
    >>> explainer = Explainer(ClassifierSpec("demo").load())
    >>> explain_many(explainer, ["photos"], "rows", address="auto")  # doctest: +SKIP
    Summary(explained=1000, ...)

    Args:
        explainer: the network, and how each picture is explained; sent to the workers.
        paths, out, resume, on_outcome: as in `convad_fx.many.explain_many`. All machines must see
            the pictures under these paths; `out` is on this machine.
        address: of a cluster: HOST:PORT, or `auto` for the one that this machine belongs to;
            `local` starts one on this machine and ends it afterwards. An existing connection of
            this process is used and kept.
        device: cpu; cuda, one GPU per worker; or auto: cuda if the cluster has GPUs.
        workers: number of workers; by default, and at most, one per GPU, or per CPU.
        spec: how the explainer's classifier was loaded. Required for a file with compiled machine
            code that the workers should run, too.

    Raises:
        Unavailable: ray is not installed, no cluster answers within a minute, the cluster has no
            GPU for `device="cuda"`, or Ray fails.
        ConvadError: as in `convad_fx.many.explain_many`; and if the network cannot be saved, or a
            worker has other versions than this machine.
    """
    _check_workers(workers, device)
    ray = import_ray(address)
    next(stream(paths))  # raises before anything is started
    start = time.perf_counter()
    job = _job(explainer, spec)
    with (
        Store(Path(out), explainer.provenance, resume=resume) as store,
        connected(ray, address, workers, len(job.file)),
    ):
        pool = _pool(ray, job, device, workers)
        recorder = Recorder(store, start, Shard(), on_outcome)
        pending = _pending(paths, recorder)
        while submitted := list(itertools.islice(pending, SUBMIT_SIZE)):
            for answer in _answers(ray, submitted, pool):
                if answer["fatal"]:
                    raise PolicyError(answer["fatal"], hint=answer["error"])
                if answer["error"]:
                    recorder.fail(answer["key"], answer["error"])
                else:
                    recorder.add(json.loads(answer["row"]), answer["draw"])
        return recorder.finish()


def _check_workers(workers: int | None, device: str) -> None:
    if workers is not None and workers < 1:
        raise PolicyError(f"workers must be positive, not {workers}", hint="pass 1 or more")
    if device.startswith("cuda:"):
        raise PolicyError(
            f"on Ray, {device} cannot be chosen: each worker gets a GPU of its own",
            hint="pass `--device cuda`",
        )


def _pending(paths: Sequence[str | Path], recorder: Recorder) -> Iterator[dict[str, str]]:
    """Where to find each picture that has no row yet."""
    for source in sources(paths):
        for file in source.files():
            for item in recorder.pending(file.items()):
                yield {"path": str(file.path.absolute()), "name": file.name, "key": item.key}


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs: the network as a file's bytes, how to load it, and the options."""

    file: bytes
    spec: ClassifierSpec
    options: ExplainOptions
    name: str
    labels: tuple[str, ...]
    digest: str
    overlays: Path | None

    def explainer(self, device: str) -> Explainer:
        """The explainer that the job was made from."""
        chosen = rank_device(device, 0)  # a worker sees its own GPU as number 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.cfx")
            path.write_bytes(self.file)
            spec = dataclasses.replace(self.spec, model=str(path), device=chosen)
            classifier = dataclasses.replace(spec.load(), name=self.name, labels=self.labels)
        return Explainer(classifier, self.options, chosen, self.overlays)


def _job(explainer: Explainer, spec: ClassifierSpec | None) -> _Job:
    """The job of an explainer; a file is sent as it is, with its machine code."""
    if spec is not None and Path(spec.model).is_file():
        file, spec = Path(spec.model).read_bytes(), dataclasses.replace(spec, labels=None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.cfx")
            preprocessing = images.recorded(explainer.classifier.preprocess)
            convad_fx.save(explainer.masked, path, preprocessing=preprocessing)
            file, spec = path.read_bytes(), ClassifierSpec("")
    return _Job(
        file,
        spec,
        explainer.options,
        explainer.classifier.name,
        explainer.classifier.labels,
        explainer.provenance.digest,
        explainer.overlays and explainer.overlays.absolute(),
    )


class _StartCounter:
    """Counts how often each picture was started; an actor, which outlives the workers."""

    def __init__(self) -> None:
        self._starts: Counter[str] = Counter()

    def count(self, key: str) -> int:
        self._starts[key] += 1
        return self._starts[key]


class _Worker:
    """One process of the cluster: maps the place of a picture to its row or error.

    Errors are returned, since Ray would wrap exceptions.
    """

    def __init__(self, job: tuple[Any], starts: Any, device: str) -> None:
        keep_memory()
        self._job, self._starts, self._device = job, starts, device
        self._file: Source | None = None
        self._items: Iterator[Item] = iter(())

    @functools.cached_property
    def _explainer(self) -> Explainer:
        import ray

        job: _Job = ray.get(self._job[0])
        explainer = job.explainer(self._device)
        if explainer.provenance.digest != job.digest:
            raise PolicyError(
                f"the worker on {ray.util.get_node_ip_address()} would make other rows: its torch "
                "or convad_fx has another version than on this machine",
                hint="install the same versions on every machine",
            )
        return explainer

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        import ray

        key = row["key"]
        try:
            explainer = self._explainer
        except ConvadError as error:
            return _answer(key, fatal=error.what, error=error.hint)
        if ray.get(self._starts.count.remote(key)) > MAX_DEATHS:
            why = f"{row['path']}: {MAX_DEATHS} workers died on it; they may need more memory"
            return _answer(key, error=why)
        item = self._find(Source(Path(row["path"]), row["name"]), key)
        try:
            text = json.dumps(explainer(item))
        except (ImageError, PolicyError) as error:
            return _answer(key, error=failure(error, item))
        except ConvadError as error:  # fails for every picture, so it ends the run
            return _answer(key, fatal=error.what, error=error.hint)
        return _answer(key, row=text, draw=explainer.seconds_draw)

    def _find(self, file: Source, key: str) -> Item:
        """The picture `key` in a file; a tar is read from the last one, then from the start."""
        for restart in (False, True):
            if restart or file != self._file:
                self._file, self._items = file, file.items()
            for item in self._items:
                if item.key == key:
                    return item

        def fail() -> bytes:
            raise ImageError(
                f"{file.path} does not contain {key} on the worker's machine",
                hint="all machines must see the same files",
            )

        return Item(key, str(file.path), fail)


def _answer(
    key: str, *, row: str = "", error: str = "", fatal: str = "", draw: float = 0.0
) -> dict[str, Any]:
    """The result of a worker; every result must have the same columns."""
    return {"key": key, "row": row, "error": error, "fatal": fatal, "draw": draw}


def _pool(ray: Any, job: _Job, device: str, workers: int | None) -> dict[str, Any]:
    """The arguments of `Dataset.map` that determine the workers."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if device == "cuda" and not gpus:
        raise Unavailable("the Ray cluster has no GPU", hint="pass `--device cpu`, or auto")
    on_gpu = bool(gpus) and device in ("auto", "cuda")
    if device == "auto":
        device = "cuda" if on_gpu else "cpu"
    most = gpus if on_gpu else cpus
    actor = ray.remote(_StartCounter)
    starts = actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    return {
        # in a tuple, so that a restarted worker fetches the job again
        "fn_constructor_args": ((ray.put(job),), starts, device),
        # one picture at a time: no picture waits in the queue of a busy worker
        "compute": ray.data.ActorPoolStrategy(
            size=max(1, min(workers or most, most)), max_tasks_in_flight_per_actor=1
        ),
        **({"num_gpus": 1} if on_gpu else {"num_cpus": 1}),
    }


def _answers(
    ray: Any, submitted: list[dict[str, str]], pool: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The result of each picture, in any order. Ray retries blocks, so each is a block of its own.

    Raises:
        Unavailable: Ray fails.
    """
    dataset = ray.data.from_items(submitted, override_num_blocks=len(submitted))
    try:
        yield from dataset.map(_Worker, **pool).iter_rows()
    except ray.exceptions.RayError as error:
        raise Unavailable(
            f"Ray failed ({last_line(str(error)) or type(error).__name__})",
            hint="finished rows are kept; continue with `--resume`",
        ) from error
