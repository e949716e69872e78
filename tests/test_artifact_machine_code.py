"""Files with machine code: run where trusted, refused where not, and used as any other network."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler.toys import SHAPE, build
from PIL import Image
from test_cli import QUICK, run

import convad_fx
from convad_fx.artifact import describe, machine_code
from convad_fx.demo import scenes
from convad_fx.errors import ArtifactError, Unavailable, UntrustedArtifact

CPU = torch.device("cpu")


def masked_toy() -> convad_fx.MaskedModule:
    return convad_fx.convert(build("Residual"), torch.zeros(1, *SHAPE[1:]))


def pretend(path: Path, **made_for: Any) -> Path:
    """A file whose machine code is none, to be refused before anything is run."""
    about = {
        **machine_code._system(CPU), "device": "cpu", "size": list(SHAPE[1:]), "dtype": "float32",
        **made_for,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine_code, "build", lambda _: (b"no machine code", about))
        convad_fx.save(masked_toy(), path, compiled=True)
    return path


def test_it_is_refused_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the machine code was touched")

    path = pretend(tmp_path / "toy.cfx")
    monkeypatch.setattr(machine_code, "Compiled", never)
    for untrusting in ({}, {"trusted": False}):
        with pytest.raises(UntrustedArtifact, match=r"contains machine code, .*pass trusted=True"):
            convad_fx.load(path, **untrusting)
    assert issubclass(UntrustedArtifact, ArtifactError)
    assert issubclass(UntrustedArtifact, PermissionError)
    about = describe(path).compiled  # what it is may be asked
    assert about is not None
    assert about["size"] == list(SHAPE[1:])
    with pytest.raises(ArtifactError, match="AssertionError: the machine code was touched"):
        convad_fx.load(path, trusted=True)


def test_the_command_line_asks_for_trust(tmp_path: Path) -> None:
    path, picture = pretend(tmp_path / "toy.cfx"), tmp_path / "any.png"
    for command in (
        ("explain", picture, "--model", path, "--out", tmp_path / "out"),
        ("export", path, "-o", tmp_path / "toy.onnx"),
    ):
        done = run(*command)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "machine code" in done.stderr
        assert "--trusted" in done.stderr
        assert done.stderr.count("\n") == 1
    done = run("explain", picture, "--model", "demo", "--out", tmp_path / "out", "--trusted")
    assert done.exit_code == 2
    assert "demo is not a file; leave `--trusted` out" in done.stderr


def test_a_package_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"toy\.cfx"):
        convad_fx.load(pretend(tmp_path / "toy.cfx"), trusted=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("torch", "1.0"), ("kind", "AVX1024"), ("machine", "abacus"), ("device", "cuda")],
)
def test_made_for_another_machine_or_torch(key: str, value: str, tmp_path: Path) -> None:
    path = pretend(tmp_path / "toy.cfx", **{key: value})
    with pytest.raises(
        ArtifactError, match=f"made for {key} {value}, here .*; save the network again where"
    ):
        convad_fx.load(path, trusted=True)


def test_made_for_a_processor_that_can_do_more(tmp_path: Path) -> None:
    features = [*machine_code._system(CPU)["features"], "avx4096"]
    path = pretend(tmp_path / "toy.cfx", features=features)
    with pytest.raises(ArtifactError, match="a processor with avx4096, which this one lacks"):
        convad_fx.load(path, trusted=True)


@pytest.mark.parametrize(
    "made_for", ["yes", [], 3, {}, {"torch": 1}, {**machine_code._system(CPU), "size": "big"}]
)
def test_nonsense_about_the_code_is_an_error(made_for: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine_code, "build", lambda _: (b"no machine code", made_for))
        convad_fx.save(masked_toy(), tmp_path / "toy.cfx", compiled=True)
    with pytest.raises(ArtifactError):
        convad_fx.load(tmp_path / "toy.cfx", trusted=True)
    with pytest.raises(ArtifactError):
        convad_fx.load(tmp_path / "toy.cfx")


def test_changed_machine_code_is_found_before_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pretend(tmp_path / "toy.cfx")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"no machine code", b"an evil machine"))
    monkeypatch.setattr(machine_code, "Compiled", None)
    with pytest.raises(ArtifactError):
        convad_fx.load(path, trusted=True)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="cut short"):
        convad_fx.load(path, trusted=True)


def test_a_file_without_machine_code_needs_no_trust(tmp_path: Path) -> None:
    path = tmp_path / "plain.cfx"
    convad_fx.save(masked_toy(), path)
    for trusted in (False, True):
        assert convad_fx.load(path, trusted=trusted)._compiled_call_impl is None
    assert describe(path).compiled is None


def test_machine_code_hidden_in_a_plain_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.cfx"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine_code, "build", lambda _: (b"no machine code", None))
        convad_fx.save(masked_toy(), path, compiled=True)
    for trusted in (False, True):
        with pytest.raises(ArtifactError, match=r"has the parts .*compiled\.pt2"):
            convad_fx.load(path, trusted=trusted)


def test_where_it_cannot_be_compiled_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(Unavailable, match=r"cannot compile Residual here .*no compiler.*C\+\+"):
        convad_fx.save(masked_toy(), tmp_path / "toy.cfx", compiled=True)
    assert list(tmp_path.iterdir()) == []


FRESH = """
import json, sys, torch, convad_fx
masked = convad_fx.load(sys.argv[1], trusted=True)
torch.manual_seed(0)
x, mask = torch.rand(1, 3, 8, 8), torch.rand(5, 1, 8, 8) > 0.5
with torch.inference_mode():
    fast, slow = masked(x, mask), masked.forward(x, mask)
print(json.dumps({
    "far": (fast - slow).abs().max().item() / slow.abs().max().item(),
    "compiler": "torch._inductor.compile_fx" in sys.modules,
    "shape": list(fast.shape),
}))
"""


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "toy.cfx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler
        convad_fx.save(masked_toy(), path, compiled=True)
    return path


def counted(loaded: convad_fx.MaskedModule) -> tuple[machine_code.Compiled, list[int]]:
    """The package, and the batches that it answered."""
    package = loaded._compiled_call_impl
    assert isinstance(package, machine_code.Compiled)
    batches: list[int] = []
    loader = package.loader

    class Counting:
        def boxed_run(self, given: list[torch.Tensor]) -> Any:
            batches.append(len(given[0]))
            return loader.boxed_run(given)

    package.loader = Counting()
    return package, batches


@pytest.mark.heavy
def test_a_fresh_process_runs_it_without_compiling(toy_file: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh.py").write_text(FRESH, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "fresh.py", toy_file], capture_output=True, text=True,
        check=False, cwd=Path(convad_fx.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["far"] < 1e-5
    assert not found["compiler"]
    assert found["shape"] == [5, 4]


@pytest.mark.heavy
def test_any_batch_and_what_it_was_not_made_for(toy_file: Path) -> None:
    masked, loaded = masked_toy(), convad_fx.load(toy_file, trusted=True)
    _, batches = counted(loaded)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for images, masks in ((1, 1), (1, 7), (4, 1), (3, 3), (2, 0)):
            x = torch.rand(images, *SHAPE[1:], generator=generator)
            mask = None
            if masks:
                mask = torch.rand(masks, 1, *SHAPE[2:], generator=generator) > 0.5
            torch.testing.assert_close(loaded(x, mask), masked(x, mask), rtol=1e-4, atol=1e-5)
        assert batches == [1, 7, 4, 3, 2]
        mask = torch.rand(1, 1, *SHAPE[2:], generator=generator) > 0.5
        hidden = torch.where(mask, x, torch.nan)
        torch.testing.assert_close(loaded(hidden, mask), masked(x, mask), rtol=1e-4, atol=1e-5)
        assert batches.pop() == 2
        # calls that it was not made for run the graph
        before = len(batches)
        other = torch.rand(1, 3, 16, 16)
        assert torch.equal(loaded(other), masked(other))
        with torch.autocast("cpu", torch.bfloat16):
            loaded(x, mask)
    x = torch.rand(SHAPE, requires_grad=True)
    loaded(x).sum().backward()
    assert x.grad is not None
    with pytest.raises(convad_fx.errors.MaskError):
        loaded(x, torch.ones(1, 1, *SHAPE[2:]))
    with pytest.raises(convad_fx.errors.MaskError):
        loaded(x, torch.ones(3, 1, *SHAPE[2:], dtype=torch.bool))
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert twin._compiled_call_impl is None
        assert torch.equal(twin(other), masked(other))
    with torch.inference_mode():
        moved = loaded.double()
        torch.testing.assert_close(moved(x.double()), masked_toy().double()(x.double()))
    assert len(batches) == before


@pytest.mark.heavy
def test_new_weights_count(toy_file: Path) -> None:
    masked, loaded = masked_toy(), convad_fx.load(toy_file, trusted=True)
    _, batches = counted(loaded)
    torch.manual_seed(7)
    fresh = {name: t + 0.1 * torch.rand_like(t) if t.is_floating_point() else t
             for name, t in masked.state_dict().items()}  # fmt: skip
    for network in (masked, loaded):
        network.load_state_dict(fresh)
    x, mask = torch.rand(SHAPE), torch.rand(2, 1, *SHAPE[2:]) > 0.5
    with torch.inference_mode():
        assert torch.equal(loaded(x, mask), masked(x, mask))
    assert batches == [], "the code knows the old ones"
    with torch.inference_mode():  # where tensors do not count their changes
        loaded = convad_fx.load(toy_file, trusted=True)
        _, batches = counted(loaded)
        torch.testing.assert_close(loaded(x, mask), masked_toy()(x, mask), rtol=1e-4, atol=1e-5)
    assert batches == [2]


@pytest.mark.heavy
def test_masks_are_evaluated_and_explained_with_it(toy_file: Path) -> None:
    masked, loaded = masked_toy(), convad_fx.load(toy_file, trusted=True)
    _, batches = counted(loaded)
    x, masks = torch.rand(1, *SHAPE[1:]), torch.rand(9, 1, *SHAPE[2:]) > 0.5
    expected, found = masked.evaluate(x, masks), loaded.evaluate(x, masks)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert found.area == expected.area
    assert sum(batches) > 0
    assert (loaded.policy, loaded.report) == (masked.policy, masked.report)
    why = convad_fx.explain(loaded, x, seed=0)
    assert why.mask.shape == SHAPE[2:]
    assert why.sufficient
    assert why.target == convad_fx.explain(masked, x, seed=0).target


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_from_the_command_line(tmp_path: Path) -> None:
    file, photo = tmp_path / "demo.cfx", tmp_path / "ladybird.png"
    Image.fromarray(scenes.held_out(1)[0].image).save(photo)
    made = run("compile", "demo", "-o", file, "--compiled", "--device", "cpu")
    assert (made.exit_code, made.stderr) == (0, "")
    answers = []
    for options in (("--model", file, "--trusted"), ("--model", "demo")):
        done = run("explain", photo, "--out", tmp_path / "why", "--json", *options, *QUICK)
        assert (done.exit_code, done.stderr) == (0, "")
        (why,) = json.loads(done.stdout)["explained"]
        answers.append(why)
    assert answers[0]["target"] == answers[1]["target"]
    assert abs(answers[0]["confidence_whole"] - answers[1]["confidence_whole"]) < 1e-4
