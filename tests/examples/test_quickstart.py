"""The notebook: runs from top to bottom, and is stored with what it shows.

After a change of the notebook or of what it calls,
`python tests/examples/test_quickstart.py` runs all of it, in a few minutes, and stores
it with its outputs.
"""

import base64
import os
import pathlib
import re
import socket
import struct
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook, directory):
    """Run all cells in a kernel of their own, in a directory; raises what they do."""
    resources = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
    ).execute()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def images(cell):
    """The PNG files that a cell shows."""
    return [
        base64.b64decode(output.data["image/png"])
        for output in cell.outputs
        if output.output_type == "display_data"
    ]


def text(cell):
    """What a cell prints."""
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


@pytest.fixture(scope="module")
def stored():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


# ------------------------------------------------------------------ as executed


def test_runs_in_its_short_form(stored, tmp_path, monkeypatch):
    for name, value in {
        "JAXSP_SHORT": "1",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():
        monkeypatch.setenv(name, value)
    # The backend of the tests would show nothing, and a TFDS directory is not needed.
    for name in ("MPLBACKEND", "TFDS_DATA_DIR", "JAXSP_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.from_dict(stored)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    end = 'import sys; print("tensorflow" in sys.modules, jaxsp.__file__, workers)'
    notebook.cells.append(nbformat.v4.new_code_cell(end))
    execute(notebook, tmp_path)

    *cells, last = code_cells(notebook)
    package = ROOT / "jaxsp" / "__init__.py"
    assert text(last) == f"False {package} Workers(8, mode='vmap')\n"
    assert any(text(cell) == "a short run\n" for cell in cells)
    for cell, before in zip(cells, code_cells(stored), strict=True):
        assert "stderr" not in [out.get("name") for out in cell.outputs], text(cell)
        assert [out.output_type for out in cell.outputs] == [
            out.output_type for out in before.outputs
        ]
        assert len(images(cell)) == len(images(before))
    # Nothing is left behind where it ran.
    assert {path.name for path in tmp_path.iterdir()} <= {"ipython"}


def test_installs_what_it_needs(stored):
    """Where there is no jaxsp, or only a clone that Python takes for a namespace."""
    inputtransformer = pytest.importorskip("IPython.core.inputtransformer2")
    source = inputtransformer.TransformerManager().transform_cell(
        code_cells(stored)[0].source
    )

    class Spec:
        origin = None

    class InstalledError(Exception):
        pass

    class Shell:
        def run_line_magic(self, *line):
            raise InstalledError(*line)

    for specs, jax in [
        ({}, "jax"),
        ({"jaxsp": Spec, "libtpu": Spec}, "jax[tpu]"),
        ({"jax_cuda12_plugin": Spec}, "jax[cuda12]"),
    ]:
        names = {"get_ipython": Shell}
        program = source.replace(
            "from importlib.util import find_spec", "find_spec = specs.get"
        )
        assert program != source
        names["specs"] = specs
        with pytest.raises(ValueError, match="write into ADDRESS where it is"):
            exec(compile(program, "cell", "exec"), names)
        given = program.replace('ADDRESS = ""', 'ADDRESS = "file:///a.whl"')
        with pytest.raises(InstalledError) as installed:
            exec(compile(given, "cell", "exec"), names)
        magic, arguments = installed.value.args
        assert magic == "pip"
        assert arguments == 'install -q "jaxsp[gan] @ {ADDRESS}" "{JAX}"'
        assert names["JAX"] == jax


# ------------------------------------------------------------------ as stored


def test_is_stored_with_its_outputs(stored):
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell.outputs, cell.source
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data"), cell.source
            assert output.get("name") != "stderr", cell.source
        shows = cell.source.count("plt.show()")
        assert len(images(cell)) == shows, cell.source
        for image in images(cell):
            assert image[:8] == b"\x89PNG\r\n\x1a\n"
            width, height = struct.unpack(">II", image[16:24])
            assert 300 < width < 1200
            assert 200 < height < 1000
    assert sum(len(images(cell)) for cell in cells) >= 7
    assert any(text(cell) == "a full run\n" for cell in cells)
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_shows_what_it_says(stored):
    """The stored numbers bear out the text: who leaves and who arrives."""
    game, dposg, gan, own = (
        next(text(cell) for cell in code_cells(stored) if f"\n{start}" in cell.source)
        for start in ("one_worker =", "eight_workers =", "result =", "own =")
    )
    last = dict(re.findall(r"(\S+): distance 1.41 -> (\S+)", game))
    assert float(last["descent-ascent"]) > 10
    assert float(last["extragradient"]) < 1e-2
    assert float(last["optimistic"]) < 1e-3
    rows = re.findall(r"^ *(\S.*?)  +(\S+) +(\S+)$", dposg, re.MULTILINE)
    away, ring, complete, falling = (float(row[1]) for row in rows)
    assert not away < 1e3
    assert 1 > ring > 2 * complete > 4 * falling
    scores = [float(score) for score in re.findall(r"Fréchet +(\S+),", gan)]
    assert scores[0] > 20 * scores[-1]
    assert float(re.search(r"distance (\S+),", own)[1]) < 1e-2


def test_holds_nothing_of_the_machine_that_ran_it(stored):
    assert dict(stored.metadata) == METADATA
    parameters = [c for c in stored.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    for cell in stored.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code_cells(stored):
        shown = text(cell) + "".join(
            str(value)
            for output in cell.outputs
            for kind, value in output.get("data", {}).items()
            if kind != "image/png"
        )
        assert str(ROOT) not in shown
        assert socket.gethostname() not in re.split(r"[^\w.-]+", shown)
        assert not re.search(r"/(home|root|tmp|usr|var|opt|Users)/|\.py\b", shown)


def test_needs_no_tensorflow(stored):
    for cell in code_cells(stored):
        assert "tensorflow" not in cell.source.lower()


def store():
    """Run the notebook in full and store it with its outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PYTHONPATH"] = str(ROOT)
    for name in ("JAXSP_SHORT", "MPLBACKEND"):
        os.environ.pop(name, None)
    execute(notebook, NOTEBOOK.parent)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in set(cell.metadata) - {"tags"}:
            del cell.metadata[key]
    written = NOTEBOOK.with_suffix(".part")
    written.write_text(nbformat.writes(notebook) + "\n")
    os.replace(written, NOTEBOOK)


if __name__ == "__main__":
    sys.exit(store())
