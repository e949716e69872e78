"""Forged files: what they may call, and with what; and paths that are not regular files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import attempt
from test_artifact import _forge, tiny

import convad_fx
from convad_fx.errors import ArtifactError, Unavailable

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits of memory and time, named pipes")
X = {"node": 0}


def _rows(parts: Any) -> Any:
    return parts["network.json"]["graphs"]["masked"]


def _call(op: str, target: str, *args: Any) -> Any:
    return lambda parts: _rows(parts).insert(-1, [op, "forged", target, list(args)])


def _function(target: str, *args: Any) -> Any:
    return _call("call_function", target, *args)


def _layer(**attributes: Any) -> Any:
    return lambda parts: parts["network.json"]["modules"][0]["attributes"].update(attributes)


def _another_layer(parts: Any) -> None:
    next(row for row in _rows(parts) if row[2] == "again")[2] = "fc"


F = "torch.nn.functional"
REFUSED = {
    "an input self": (lambda p: _rows(p)[0].__setitem__(2, "self"), "'self' as the name of an inp"),
    "an input twice": (
        lambda p: _rows(p).insert(1, ["placeholder", "b", _rows(p)[0][2], []]),
        "as the name of an input, or twice",
    ),
    "a function as default": (
        lambda p: _rows(p)[0].__setitem__(3, [{"function": "torch.relu"}]), "kind 'function'",
    ),
    "a method that writes": (_call("call_method", "mul_", X, 0), "method 'mul_', which is not all"),
    "a method of memory": (_call("call_method", "data_ptr", X), "'data_ptr', which is not allowed"),
    "a setting": (_function("torch.set_num_threads", 1), "which is not allowed"),
    "a private function": (_function("torch._C._cuda_init"), "which is not allowed"),
    "in place": (_function(f"{F}.relu", X, True), "passes inplace=True to relu"),
    "statistics": (
        _function(f"{F}.batch_norm", X, X, X, None, None, True), "passes training=True to batch_n",
    ),
    "renormalised weights": (
        _function(f"{F}.embedding", X, X, None, 1.0), r"passes max_norm=1\.0 to embedding",
    ),
    "no window": (_function(f"{F}.max_pool2d", X, 0), "kernel_size=0 .* it must be positive"),
    "a layer's stride": (_layer(stride={"tuple": [0, 0]}), r"stride=\(0, 0\) to torch\.nn\.Conv2d"),
    "memory": (_function("torch.zeros", 1 << 30, 1 << 30), "more than 128 GiB"),
    "wrong shapes": (_another_layer, "the network does not run on a batch of shape"),
    "preprocessing": (
        lambda p: p["manifest.json"].update(preprocessing=[1]), "is a list, not an object",
    ),
    "class names": (lambda p: p["manifest.json"].update(class_names=[[1]]), "expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_forged_file_is_refused_for_its_reason(what: str, tmp_path: Path) -> None:
    change, reason = REFUSED[what]
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, change)
    with pytest.raises(ArtifactError, match=reason) as caught:
        convad_fx.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("first", [0, 1])
def test_no_allowed_call_ends_the_process_or_writes(first: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), str(log), "0", "4", str(first), "2"],
        env={**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{log.read_text()}\n{done.stderr[-2000:]}"
    assert int(done.stdout) > 50, "hardly any call was right"


def test_hostile_calls_notice_what_writes() -> None:
    with pytest.raises(AssertionError, match="writes to"):
        attempt(torch.relu_, [torch.rand(2)], {})
    assert attempt(torch.relu, [torch.rand(2)], {})


_PIPE = """
import sys, convad_fx
from convad_fx.artifact import describe, is_artifact
masked = convad_fx.load(sys.argv[2])
print(is_artifact(sys.argv[1]))
for act in (convad_fx.load, describe, lambda path: convad_fx.save(masked, path)):
    try:
        act(sys.argv[1])
    except convad_fx.errors.ArtifactError as error:
        print(error)
"""


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe.cfx", tmp_path / "a.cfx"
    os.mkfifo(pipe)
    convad_fx.save(tiny(), file)
    done = subprocess.run(
        [sys.executable, "-c", _PIPE,
         str(pipe), str(file)],
        env={**os.environ, "PYTHONPATH": str(Path(convad_fx.__file__).parents[1])},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    no, load, describe, save = done.stdout.splitlines()
    assert no == "False"
    assert load == describe == f"{pipe} is a named pipe; pass a file that save wrote"
    assert save == f"{pipe} is a named pipe, which a file would replace; pass the path of a file"
    assert pipe.is_fifo()


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    masked, link = tiny(), tmp_path / "link"
    link.symlink_to(os.devnull)
    for path, kind in ((os.devnull, "a character device"), (tmp_path, "a directory"),
                       (link, "a character device")):  # fmt: skip
        with pytest.raises(ArtifactError, match=f"is {kind}, which a file would replace"):
            convad_fx.save(masked, path)
        with pytest.raises(Unavailable, match=f"is {kind}, which a file would replace"):
            convad_fx.export_onnx(masked, path)
    assert Path(os.devnull).is_char_device()
    assert link.is_symlink()
