"""Connections to Ray: start a local instance or join a cluster, and clean up afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, cast

import torch

from convad_fx.errors import Unavailable, first_line, last_line

#: Seconds a cluster has for its first answer.
CONNECT_TIMEOUT = 60.0


def import_ray(address: str) -> Any:
    """The module ray, with ray.data.

    Raises:
        Unavailable: it is not installed, or without the requirements of ray.data.
    """
    # Ray's ports are open to the network and execute what they receive, so a local instance gets a
    # random token. Ray reads these variables once, on import.
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


@contextlib.contextmanager
def connected(ray: Any, address: str, workers: int | None, size: int) -> Iterator[None]:
    """Connect to Ray, with progress bars and log messages off; undo everything on exit.

    Args:
        ray: the module.
        address: HOST:PORT, `auto`, or `local` to start an instance on this machine.
        workers: CPUs of a local instance; None: as many as torch uses threads.
        size: bytes of the network in the object store.

    Raises:
        Unavailable: no instance can be started, or no cluster answers.
    """
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
        stdout = cast(TextIO, _WithoutRay(sys.stdout))
        stack.enter_context(contextlib.redirect_stdout(stdout))
        yield


class _WithoutRay:
    """Standard output, except that messages of Ray's threads go to standard error."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        from_ray = threading.current_thread().name.startswith("ray_")
        return (sys.stderr if from_ray else self._stdout).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _start(ray: Any, workers: int | None, size: int, stack: contextlib.ExitStack) -> None:
    """Start Ray on this machine alone, without dashboard and usage reports."""
    folder = _short_folder()
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",  # the priority of this process, which only waits
    }
    stack.enter_context(_environment(settings))
    stack.callback(ray.shutdown)
    try:
        ray.init(
            address="local",
            num_cpus=workers or torch.get_num_threads(),
            include_dashboard=False,
            # for the network and the rows; Ray's default takes much more of /dev/shm
            object_store_memory=100 * 2**20 + 2 * size,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(f"Ray does not start on this machine ({first_line(error)})") from error


def _join(ray: Any, address: str, stack: contextlib.ExitStack) -> None:
    """Join a cluster, first with a time limit in a subprocess, since Ray may wait for minutes."""
    hint = "start one with `ray start --head`, or pass `--ray local`"
    if address.startswith("ray://"):
        raise Unavailable(
            f"{address} addresses Ray's client, which does not support Ray Data",
            hint="run on a machine of the cluster, and pass `--ray auto`",
        )
    quiet = {"logging_level": "error", "log_to_driver": False}
    probe = f"import ray, sys; ray.init(address=sys.argv[1], **{quiet})"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", probe, address],
            check=False, capture_output=True, text=True, timeout=CONNECT_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"no Ray cluster answers at {address} within {CONNECT_TIMEOUT:.0f} seconds", hint=hint
        ) from error
    if done.returncode:
        if "AuthToken" in done.stderr:
            raise Unavailable(
                f"the Ray cluster at {address} requires another token than the one set here",
                hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as on the cluster",
            )
        reason = last_line(done.stderr).partition(": ")[2] or f"code {done.returncode}"
        raise Unavailable(f"no Ray cluster answers at {address} ({reason.rstrip('.')})", hint=hint)
    stack.callback(ray.shutdown)
    ray.init(address=address, **quiet)


def _short_folder() -> str:
    """A new folder for Ray's files, short enough that socket paths stay below 108 bytes."""
    default = tempfile.gettempdir()
    folder = default if len(os.fsencode(default)) < 20 else "/tmp"
    return tempfile.mkdtemp(prefix="cfx-", dir=folder)


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
