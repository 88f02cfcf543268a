"""The notebook runs from its first cell to its last, in a kernel of its own, and shows pictures."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.golden_files import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_a_notebook_of_any_python(committed):
    nbformat.validate(committed)
    assert committed.metadata.kernelspec.name == "python3"
    assert NOTEBOOK.stat().st_size < 2e6


@pytest.mark.slow
def test_it_installs_walks_forks_plans_and_trains_with_pictures(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nobody's profile
    notebook = nbformat.from_dict(committed)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    titles = [cell.source.splitlines()[0] for cell in notebook.cells if cell.cell_type == "markdown"]
    assert [f"## {part}" for part in ("Install", "Walk", "Fork", "Plan", "Train")] == [
        title for title in titles if title.startswith("## ") and title != "## Next"
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [cell for cell in code if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert len(pictures) == 4  # walk, fork, plan, train
