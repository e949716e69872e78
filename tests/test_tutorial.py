"""The tutorial: its blocks run in order, and print what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


@pytest.mark.heavy
def test_the_blocks_print_what_the_page_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it writes files
    text = PAGE.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert 2 * len(blocks) == len(re.findall("^```", text, re.MULTILINE)), "a block is not run"
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    page = parser.get_doctest("\n".join(blocks), {}, "tutorial", str(PAGE), 0)
    said: list[str] = []
    runner.run(page, out=said.append)
    assert runner.summarize(verbose=False).attempted > 20
    assert not runner.failures, "".join(said)
    assert (tmp_path / "out" / "fish.png").stat().st_size
