"""docs/quickstart.ipynb runs from its first to its last cell, on the smallest sizes."""

import warnings

import pytest

from tests.conftest import ROOT, python_environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_notebook_goes_from_training_to_a_map(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    variables = {"HFD_JAX_NOTEBOOK": "small", "HFD_JAX_NOTEBOOK_WORKDIR": str(tmp_path / "run")}
    for name, value in python_environment(**variables).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the client's libraries; the kernel is a process of its own
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
        client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.data for output in shown if "data" in output]
    assert any("HFD student (SAR)" in part.get("text/html", "") for part in data), "the table of scores"
    assert any("image/png" in part for part in data), "the map"
    assert any("of the pixels are right" in output.get("text", "") for output in shown)


def test_the_notebook_is_committed_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
