"""`convad-fx check MODEL --draw FILE`."""

import json

import pytest
from typer.testing import CliRunner

from convad_fx import cli


def check(*args):
    return CliRunner().invoke(cli.app, ["check", *(str(a) for a in args)])


def test_a_picture_comes_with_the_same_report(tmp_path):
    plain = check("squeezenet1_1")
    result = check("squeezenet1_1", "--draw", tmp_path / "plan.png")
    assert (result.exit_code, result.stdout, result.stderr) == (0, plain.stdout, "")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_findings_are_drawn_too(tmp_path):
    result = check("vit_b_16", "--json", "--draw", tmp_path / "plan.svg")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["findings"]) == 12
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("file", "said"),
    [("plan.jpg", ".svg, .png or .pdf, not .jpg"), ("gone/plan.svg", "there is no folder")],
)
def test_files_that_cannot_be_are_refused_before_the_work(tmp_path, file, said):
    result = check("no_such_model", "--draw", tmp_path / file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "\n" not in result.stderr.strip()
