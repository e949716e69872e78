"""The same rows, made on Ray: Ray Data spreads the pictures, this process keeps the rows.

Workers get the masked network as the bytes of a file of `convad_fx.save`, so they need neither the
model's source nor its weights. A row is on the disk before it is reported, and a picture that has
one is not asked about again: a worker that dies costs the picture it was at, and Ray gives that one
to another. All machines must see the pictures under the same paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import torch

import convad_fx
from convad_fx import images
from convad_fx.allocator import keep_memory
from convad_fx.errors import ConvadError, ImageError, PolicyError, Unavailable, first_line
from convad_fx.many import Explainer, Item, Outcome, Question, Recipe, Shard, Summary
from convad_fx.many.question import rank_device
from convad_fx.many.run import failure, pending
from convad_fx.many.sources import Source, sources, stream
from convad_fx.many.store import Store

#: Seconds a cluster has for its first answer.
WAIT = 60.0
#: Workers that may die over one picture before it is given up.
DEATHS = 3
#: Pictures handed to Ray at a time: a bound on what this process remembers of them.
WAVE = 5000


def explain_many(
    explainer: Explainer,
    paths: Sequence[str | Path],
    out: Path | str,
    *,
    address: str = "local",
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    recipe: Recipe | None = None,
    notify: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """`convad_fx.many.explain_many` on Ray's workers: the same rows in the same files.

    >>> from convad_fx.many import Question, Recipe
    >>> explainer = Explainer(Recipe("demo").classifier(), Question())
    >>> explain_many(explainer, ["photos"], "rows", address="auto")  # doctest: +SKIP
    Summary(explained=1000, ...)

    Args:
        explainer: what is asked, of which network; it goes to the workers.
        paths: folders, tar files and pictures, which all workers see under these paths.
        out: the folder of rows, on this machine. Only overlays are written by the workers.
        address: of a cluster: HOST:PORT, or `auto` for the one that this machine belongs to;
            `local` starts one of this machine alone and ends it afterwards. Where this process is
            connected to Ray already, that connection is used, and stays.
        resume, notify: as there.
        device: cpu; cuda, a GPU for each worker; or auto: cuda where the cluster has GPUs.
        workers: how many; by default (and at most) one for each GPU, or each CPU.
        recipe: how the explainer's network was found. Needed where it is a file with machine code,
            which workers are to run as well.

    Raises:
        Unavailable: ray is not installed, no cluster answers within a minute, it has no GPU though
            one was asked for, or gives up.
        ConvadError: as there; and where the network cannot be saved, or a worker's versions are not
            those of this machine.
    """
    if workers is not None and workers < 1:
        raise PolicyError(f"{workers} workers explain nothing", hint="pass 1 or more")
    if device.startswith("cuda:"):
        raise PolicyError(
            f"on Ray, {device} is no choice: each worker gets a GPU of its own",
            hint="pass `--device cuda`",
        )
    ray = _ray(address)
    next(stream(paths))  # no pictures: before anything is started
    began = time.perf_counter()
    found = Summary()
    times = dict.fromkeys(("load", "search", "draw", "write"), 0.0)
    job = _Job(
        *_packed(explainer, recipe),
        explainer.question,
        explainer.classifier.name,
        explainer.classifier.labels,
        explainer.provenance.digest,
        explainer.overlays and explainer.overlays.absolute(),
    )
    with (
        Store(Path(out), explainer.provenance, resume=resume) as store,
        _connected(ray, address, workers, len(job.file)),
    ):
        pool = _pool(ray, job, device, workers)
        asked = _pending(paths, store.done, found, notify)
        while wave := list(itertools.islice(asked, WAVE)):
            for answer in _answers(ray, wave, pool):
                if answer["fatal"]:
                    raise PolicyError(answer["fatal"], hint=answer["error"])
                if answer["error"]:
                    found.failed[answer["key"]] = answer["error"]
                    notify(Outcome(answer["key"], None, answer["error"]))
                elif answer["key"] not in store.done:
                    row = json.loads(answer["row"])
                    writing = time.perf_counter()
                    store.append(answer["row"])
                    times["write"] += time.perf_counter() - writing
                    times["load"] += row["seconds_load"]
                    times["search"] += row["seconds_search"]
                    times["draw"] += answer["draw"]
                    found.explained += 1
                    notify(Outcome(row["key"], row))
        writing = time.perf_counter()
        store.failures(found.failed)
        found.rows = store.finish()
        times["write"] += time.perf_counter() - writing
    found.seconds = {**times, "all": time.perf_counter() - began}
    return found


def _ray(address: str) -> Any:
    """The module ray, with ray.data.

    Raises:
        Unavailable: it is not installed, or without what ray.data needs.
    """
    # Ray's ports are open to the network, and run what they are told. It looks once, on import.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and address == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Unavailable(
            f"Ray Data is not installed ({error})", hint='pip install "convad_fx[ray]"'
        ) from error
    return ray


def _pending(
    paths: Sequence[str | Path],
    done: Mapping[str, str],
    found: Summary,
    notify: Callable[[Outcome], None],
) -> Iterator[dict[str, str]]:
    """Where to find each picture that has no row yet."""
    for source in sources(paths):
        for file in source.files():
            for item in pending(file.items(), done, found, Shard(), notify):
                yield {"path": str(file.path.absolute()), "name": file.name, "key": item.key}


# ------------------------------------------------------------------------------ the cluster's side
@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know: the network in a file, how to open it, and what to ask."""

    file: bytes
    recipe: Recipe
    question: Question
    name: str
    labels: tuple[str, ...]
    digest: str
    overlays: Path | None

    def explainer(self, device: str) -> Explainer:
        """The same explainer as where the job comes from."""
        chosen = rank_device(device, 0)  # Ray shows each worker its own GPU as the first
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.cfx")
            path.write_bytes(self.file)
            recipe = dataclasses.replace(self.recipe, model=str(path), device=chosen)
            classifier = dataclasses.replace(
                recipe.classifier(), name=self.name, labels=self.labels
            )
        return Explainer(classifier, self.question, chosen, self.overlays)


def _packed(explainer: Explainer, recipe: Recipe | None) -> tuple[bytes, Recipe]:
    """The network as a file's bytes, and how to open that; machine code goes along."""
    if recipe is not None and Path(recipe.model).is_file():
        return Path(recipe.model).read_bytes(), dataclasses.replace(recipe, labels=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.cfx")
        preprocessing = images.recorded(explainer.classifier.preprocess)
        convad_fx.save(explainer.masked, path, preprocessing=preprocessing)
        return path.read_bytes(), Recipe("")


class _Deaths:
    """How often each picture was begun; an actor, which outlives the workers."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        self._begun[key] = self._begun.get(key, 0) + 1
        return self._begun[key]


class _Worker:
    """One process of the cluster: where a picture is in, what became of it out.

    It raises nothing on purpose, for Ray would wrap it: what is wrong is an answer, too.
    """

    def __init__(self, job: tuple[Any], deaths: Any, device: str) -> None:
        keep_memory()
        self._job, self._deaths, self._device = job, deaths, device
        self._file: Source | None = None
        self._items: Iterator[Item] = iter(())

    @functools.cached_property
    def _explainer(self) -> Explainer:
        import ray

        job: _Job = ray.get(self._job[0])
        explainer = job.explainer(self._device)
        if explainer.provenance.digest != job.digest:
            raise PolicyError(
                f"the worker on {ray.util.get_node_ip_address()} would give other answers than "
                "asked for: its versions of torch or convad_fx are others",
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
        if ray.get(self._deaths.begin.remote(key)) > DEATHS:
            why = f"{row['path']}: {DEATHS} workers died over it; they may need more memory"
            return _answer(key, error=why)
        item = self._found(Source(Path(row["path"]), row["name"]), key)
        drawn = explainer.drawing
        try:
            text = json.dumps(explainer(item))
        except (ImageError, PolicyError) as error:
            return _answer(key, error=failure(error, item))
        except ConvadError as error:  # as without Ray: the next picture would not do either
            return _answer(key, fatal=error.what, error=error.hint)
        return _answer(key, row=text, draw=explainer.drawing - drawn)

    def _found(self, file: Source, key: str) -> Item:
        """The picture `key` in a file; a tar is read on from where the last one was."""
        for again in (False, True):
            if again or file != self._file:
                self._file, self._items = file, file.items()
            for item in self._items:
                if item.key == key:
                    return item

        def fail() -> bytes:
            raise ImageError(
                f"{file.path} holds no {key} on the worker's machine",
                hint="all machines must see the same files",
            )

        return Item(key, str(file.path), fail)


def _answer(
    key: str, *, row: str = "", error: str = "", fatal: str = "", draw: float = 0.0
) -> dict[str, Any]:
    """What a worker says: all answers have the same columns."""
    return {"key": key, "row": row, "error": error, "fatal": fatal, "draw": draw}


def _pool(ray: Any, job: _Job, device: str, workers: int | None) -> dict[str, Any]:
    """The arguments of `Dataset.map` that say who works."""
    has = ray.cluster_resources()
    gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 1))
    if device == "cuda" and not gpus:
        raise Unavailable("the Ray cluster has no GPU", hint="pass `--device cpu`, or auto")
    on_gpu = bool(gpus) and device in ("auto", "cuda")
    if device == "auto":
        device = "cuda" if on_gpu else "cpu"
    most = gpus if on_gpu else cpus
    deaths = ray.remote(_Deaths).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    return {
        # in a tuple: a restarted worker fetches it again
        "fn_constructor_args": ((ray.put(job),), deaths, device),
        # one picture at a time: those that would wait in a worker's queue may as well go to another
        "compute": ray.data.ActorPoolStrategy(
            size=max(1, min(workers or most, most)), max_tasks_in_flight_per_actor=1
        ),
        **({"num_gpus": 1} if on_gpu else {"num_cpus": 1}),
    }


def _answers(
    ray: Any, wave: list[dict[str, str]], pool: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What became of each picture, in any order. A block is what is asked again: one picture.

    Raises:
        Unavailable: Ray gives up.
    """
    asked = ray.data.from_items(wave, override_num_blocks=len(wave)).map(_Worker, **pool)
    try:
        yield from asked.iter_rows()
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise Unavailable(
            f"Ray gave up ({lines[-1] if lines else type(error).__name__})",
            hint="what was made is kept; go on with `--resume`",
        ) from error


# ------------------------------------------------------------------------------------- connections
@contextlib.contextmanager
def _connected(ray: Any, address: str, workers: int | None, size: int) -> Iterator[None]:
    """Connected to Ray, quietly; what is started here is ended here, and leaves nothing."""
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            if address == "local":
                _start(ray, workers, size, stack)
            else:
                _join(ray, address, stack)
        context = ray.data.DataContext.get_current()
        stack.callback(setattr, context, "enable_progress_bars", context.enable_progress_bars)
        context.enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.enter_context(contextlib.redirect_stdout(cast(TextIO, _Apart(sys.stdout))))
        yield


class _Apart:
    """Standard output, but what Ray's threads say of dead workers goes to standard error."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        from_ray = threading.current_thread().name.startswith("ray_")
        return (sys.stderr if from_ray else self._out).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def _start(ray: Any, workers: int | None, size: int, stack: contextlib.ExitStack) -> None:
    """A Ray of this machine alone: no dashboard, no reports home, nobody else may join."""
    folder = _short_folder()
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",  # as this process, which only waits
    }
    stack.enter_context(_environment(settings))
    stack.callback(ray.shutdown)
    try:
        ray.init(
            address="local",
            num_cpus=workers or torch.get_num_threads(),
            include_dashboard=False,
            # the network, and rows: little beside what Ray would take of /dev/shm
            object_store_memory=100 * 2**20 + 2 * size,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(f"Ray does not start here ({first_line(error)})") from error


def _join(ray: Any, address: str, stack: contextlib.ExitStack) -> None:
    """A cluster that is there. It is tried in another process first: Ray may wait for minutes."""
    hint = "start one with `ray start --head`, or pass `--ray local`"
    if address.startswith("ray://"):
        raise Unavailable(
            f"{address} is for Ray's client, which has no Ray Data",
            hint="run on a machine of the cluster, and pass `--ray auto`",
        )
    quiet = {"logging_level": "error", "log_to_driver": False}
    trial = f"import ray, sys; ray.init(address=sys.argv[1], **{quiet})"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", trial, address],
            check=False, capture_output=True, text=True, timeout=WAIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"no Ray cluster answers at {address} within {WAIT:.0f} seconds", hint=hint
        ) from error
    if done.returncode:
        if "AuthToken" in done.stderr:
            raise Unavailable(
                f"the Ray cluster at {address} wants a token, and not the one that is here",
                hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as on the cluster",
            )
        lines = done.stderr.strip().splitlines()
        why = lines[-1].partition(": ")[2] if lines else f"code {done.returncode}"
        raise Unavailable(f"no Ray cluster answers at {address} ({why.rstrip('.')})", hint=hint)
    stack.callback(ray.shutdown)
    ray.init(address=address, **quiet)


def _short_folder() -> str:
    """A new folder for Ray's files; its sockets' paths must stay below 108 bytes."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="cfx-", dir=usual if len(os.fsencode(usual)) < 20 else "/tmp")


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
