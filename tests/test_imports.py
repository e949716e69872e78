"""What `import convad_fx` imports, and what its names are, each in a fresh process."""

import subprocess
import sys

import pytest

#: What only plots, tables, tuning, servers, the command line or other front ends need.
HEAVY = {
    "PIL", "jinja2", "matplotlib", "networkx", "psutil", "pyarrow", "scipy", "timm", "torchvision",
    "torch._dynamo", "torch._inductor", "tqdm", "typer",
}  # fmt: skip


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_heavy_packages_are_imported_when_they_are_used():
    first, second = run("""
import sys, torch
before = set(sys.modules)
import convad_fx
print(*set(sys.modules) - before)
body = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten()]
model = torch.nn.Sequential(*body, torch.nn.Linear(256, 2)).eval()
masked = convad_fx.convert(model, torch.zeros(1, 3, 8, 8))
assert masked(torch.zeros(1, 3, 8, 8), torch.ones(5, 1, 8, 8, dtype=bool)).shape == (5, 2)
print(*set(sys.modules) - before)
""").splitlines()
    assert HEAVY.isdisjoint(first.split())
    still = {"PIL", "jinja2", "matplotlib", "pyarrow", "timm", "torchvision", "typer"}
    assert still.isdisjoint(second.split())


def test_the_command_line_lists_its_commands_without_torch():
    run("""
import sys
from typer.testing import CliRunner
from convad_fx.cli import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "explain" in result.stdout
assert "torch" not in sys.modules
""")


def test_functions_win_over_the_modules_of_their_name():
    run("""
import types
import convad_fx.explain.explainer, convad_fx.convert, convad_fx.exporting
from convad_fx import convert, explain
from convad_fx.explain import Search
assert isinstance(explain, types.FunctionType) and explain is convad_fx.explain
assert isinstance(convert, types.FunctionType) and convert is convad_fx.convert
assert isinstance(convad_fx.exporting, types.ModuleType)
assert isinstance(convad_fx.metrics, types.ModuleType)
""")


def test_every_public_name_is_there():
    import convad_fx

    for name in convad_fx.__all__:
        assert getattr(convad_fx, name) is not None
        assert name in dir(convad_fx)
    with pytest.raises(AttributeError, match="module 'convad_fx' has no attribute 'explian'"):
        convad_fx.explian  # noqa: B018
