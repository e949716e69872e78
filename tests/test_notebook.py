"""The notebook in the documentation: run as it stands, and still true."""

import copy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def printed(book):
    return [
        output["text"]
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream" and output["name"] == "stdout"
    ]


def kinds(book):
    return [
        sorted(output.get("data", {}))
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output["output_type"] in ("display_data", "execute_result")
    ]


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own event loops and paths
def test_the_notebook_runs_and_shows_what_it_showed():
    stored = nbformat.read(PATH, 4)
    assert all(cell["execution_count"] for cell in stored.cells if cell.cell_type == "code")
    assert len(printed(stored)) == 2
    again = copy.deepcopy(stored)
    nbclient.NotebookClient(again, timeout=240, kernel_name="python3").execute()
    assert printed(again) == printed(stored)
    assert kinds(again) == kinds(stored)
    assert any("text/html" in data for data in kinds(again))
