"""The tutorial and the failure signs: their blocks run in order, and print what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "examples", "written"),
    [("tutorial.md", 30, ["out/fish.png"]), ("failure-signs.md", 8, [])],
)
def test_the_blocks_print_what_the_page_says(
    name: str, examples: int, written: list[str], monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # it writes files
    page_file = DOCS / name
    text = page_file.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert 2 * len(blocks) == len(re.findall("^```", text, re.MULTILINE)), "a block is not run"
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    page = parser.get_doctest("\n".join(blocks), {}, name, str(page_file), 0)
    said: list[str] = []
    runner.run(page, out=said.append)
    assert runner.summarize(verbose=False).attempted >= examples
    assert not runner.failures, "".join(said)
    for file in written:
        assert (tmp_path / file).stat().st_size
