"""The tutorials: run from top to bottom, and are stored with what they show.

After a change of a tutorial or of what it calls, `python tools/notebooks.py NAME` runs
all of it, in a minute or some, and stores it with its outputs.
"""

import base64
import json
import re
import socket
import struct

import nbformat
import notebooks
import pytest

ROOT = notebooks.ROOT
NAMES = sorted(path.stem for path in notebooks.TUTORIALS.glob("*.md"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def source(name):
    return notebooks.parse((notebooks.TUTORIALS / f"{name}.md").read_text())


def stored(name):
    path = notebooks.TUTORIALS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


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


def printed(name):
    """What the cells of a stored notebook print, by their number."""
    return [text(cell) for cell in code_cells(stored(name))]


def test_all_are_here():
    assert {path.stem for path in notebooks.TUTORIALS.glob("*.ipynb")} == {*NAMES}
    assert "quickstart" in NAMES


# ------------------------------------------------------------------ as text


def test_reads_code_text_and_options():
    cells = notebooks.parse(
        "---\nkernelspec:\n  name: python3\n---\n\n# A title\n\nText.\n\n+++\n\nMore.\n"
        "\n```{code-cell}\n:tags: [hide-input]\n\nx = 1\n\n\nprint(x)\n```\n\n"
        "A command:\n\n```sh\nls\n```\n\n```{code-cell}\nx[1:2]\n```\n"
    ).cells
    found = [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in cells]
    assert found == [
        ("markdown", "# A title\n\nText.", {}),
        ("markdown", "More.", {}),
        ("code", "x = 1\n\n\nprint(x)", {"tags": ["hide-input"]}),
        ("markdown", "A command:\n\n```sh\nls\n```", {}),
        ("code", "x[1:2]", {}),
    ]


def test_the_address_is_in_one_place(name):
    """All install by the same cell, in which nothing is filled in yet."""
    first = code_cells(source(name))[0].source
    assert first == code_cells(source("quickstart"))[0].source
    assert 'ADDRESS = ""\n' in first
    for path in (ROOT / "docs").rglob("*.md"):
        if path.parent != notebooks.TUTORIALS:
            assert "ADDRESS =" not in path.read_text(), path


def test_needs_no_tensorflow(name):
    for cell in code_cells(source(name)):
        assert "tensorflow" not in cell.source.lower()


def test_installs_what_it_needs():
    """Where there is no jaxsp, or only a clone that Python takes for a namespace."""
    inputtransformer = pytest.importorskip("IPython.core.inputtransformer2")
    program = inputtransformer.TransformerManager().transform_cell(
        code_cells(source("quickstart"))[0].source
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
        names = {"get_ipython": Shell, "specs": specs}
        cell = program.replace(
            "from importlib.util import find_spec", "find_spec = specs.get"
        )
        assert cell != program
        with pytest.raises(ValueError, match="write into ADDRESS where it is"):
            exec(compile(cell, "cell", "exec"), names)
        given = cell.replace('ADDRESS = ""', 'ADDRESS = "file:///a.whl"')
        with pytest.raises(InstalledError) as installed:
            exec(compile(given, "cell", "exec"), names)
        magic, arguments = installed.value.args
        assert magic == "pip"
        assert arguments == 'install -q "jaxsp[robust] @ {ADDRESS}" "{JAX}"'
        assert names["JAX"] == jax


# ------------------------------------------------------------------ as executed


def test_runs_in_its_short_form(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSP_SHORT", "1")
    notebook = source(name)
    end = 'import sys; print("tensorflow" in sys.modules, jaxsp.__file__)'
    notebook.cells.append(nbformat.v4.new_code_cell(end))
    notebooks.execute(notebook, tmp_path)

    *cells, last = code_cells(notebook)
    assert text(last) == f"False {ROOT / 'jaxsp' / '__init__.py'}\n"
    assert any(text(cell) == "a short run\n" for cell in cells)
    for cell, before in zip(cells, code_cells(stored(name)), strict=True):
        assert "stderr" not in [out.get("name") for out in cell.outputs], text(cell)
        assert [out.output_type for out in cell.outputs] == [
            out.output_type for out in before.outputs
        ]
        assert len(images(cell)) == len(images(before))
    assert [*tmp_path.iterdir()] == []  # nothing is left behind where it ran


# ------------------------------------------------------------------ as stored


def test_is_stored_as_it_is_written(name):
    assert [(cell.cell_type, cell.source) for cell in stored(name).cells] == [
        (cell.cell_type, cell.source) for cell in source(name).cells
    ]


def test_is_stored_with_its_outputs(name):
    cells = code_cells(stored(name))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell.outputs or "print(" not in cell.source, cell.source
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data"), cell.source
            assert output.get("name") != "stderr", cell.source
        assert images(cell) or "plt.show()" not in cell.source, cell.source
        for image in images(cell):
            assert image[:8] == b"\x89PNG\r\n\x1a\n"
            width, height = struct.unpack(">II", image[16:24])
            assert 300 < width < 1200
            assert 200 < height < 1000
    assert sum(len(images(cell)) for cell in cells) >= 1
    assert any(text(cell) == "a full run\n" for cell in cells)
    path = notebooks.TUTORIALS / f"{name}.ipynb"
    assert path.stat().st_size < 1.5e6


def test_holds_nothing_of_the_machine_that_ran_it(name):
    notebook = stored(name)
    assert dict(notebook.metadata) == notebooks.METADATA
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code_cells(notebook):
        shown = text(cell) + "".join(
            str(value)
            for output in cell.outputs
            for kind, value in output.get("data", {}).items()
            if kind != "image/png"
        )
        assert str(ROOT) not in shown
        assert socket.gethostname() not in re.split(r"[^\w.-]+", shown)
        assert not re.search(r"/(home|root|tmp|usr|var|opt|Users)/|\.py\b", shown)


# ------------------------------------------------------------------ what they say


def numbers(pattern, shown):
    """The numbers that a pattern finds, by the name it finds before them."""
    found = {name.strip(): float(n) for name, n in re.findall(pattern, shown, re.M)}
    assert found, f"{pattern} in {json.dumps(shown)}"
    return found


def shown_by(name, start):
    """What the cell with a line that begins so prints, as stored."""
    return next(
        text(cell) for cell in code_cells(stored(name)) if f"\n{start}" in cell.source
    )


def test_quickstart_shows_what_it_says():
    """The stored numbers bear out the text: who leaves and who arrives."""
    game = shown_by("quickstart", "one_worker =")
    last = numbers(r"(\S+): distance 1.41 -> (\S+)", game)
    assert last["descent-ascent"] > 10
    assert last["extragradient"] < 1e-2
    assert last["optimistic"] < 1e-3
    dposg = shown_by("quickstart", "eight_workers =")
    rows = re.findall(r"^ *(\S.*?)  +(\S+) +(\S+)$", dposg, re.MULTILINE)
    away, ring, complete, falling = (float(row[1]) for row in rows)
    assert not away < 1e3
    assert 1 > ring > 2 * complete > 4 * falling
    gan = shown_by("quickstart", "result =")
    scores = [float(score) for score in re.findall(r"Fréchet +(\S+),", gan)]
    assert scores[0] > 20 * scores[-1]
    own = shown_by("quickstart", "own =")
    assert float(re.search(r"distance (\S+),", own)[1]) < 1e-2


def test_same_numbers_shows_what_it_says():
    divided = shown_by("same_numbers", "placements =")
    row = r"^ +([a-z, ]+?) +(\S+) +(\S+) +(\S+e\S+)$"
    rows = re.findall(row, divided, re.MULTILINE)
    found = {name: [float(cell) for cell in cells] for name, *cells in rows}
    assert min(found.pop("batch")) > 1e-3
    assert {*found} == {"none", "layer", "batch, synchronized"}
    assert max(max(cells) for cells in found.values()) < 1e-12
    placed = shown_by("same_numbers", "print(f\"{'':>18}")
    pairs = re.findall(r"(\S+)\s+(\d\S*)$", placed, re.MULTILINE)
    differences = [float(cell) for pair in pairs for cell in pair if "e" in cell[1:]]
    assert len(differences) == 8
    assert max(differences) < 1e-12


def test_adversarial_shows_what_it_says():
    sent = numbers(r"^ +(\S.*): +(\S+) MB", shown_by("adversarial", "trained = {}"))
    assert sent["adversarial, 32 bits"] > 7 * sent["adversarial, 4 bits"]
    table = shown_by("adversarial", "radii =")
    rows = re.findall(r"^ +(\S.*?) {2,}(.*%)$", table, re.MULTILINE)
    clean, radius = 0, 2  # of the columns
    right = {name: [int(c.strip("%")) for c in cells.split()] for name, cells in rows}
    plain, full, coded = right.values()
    assert min(plain[clean], full[clean]) > 75
    assert plain[radius] < full[radius] / 3
    for column in (clean, radius):
        assert coded[column] > 0.9 * full[column]


def test_choosing_shows_what_it_says():
    table = shown_by("choosing", "sent = {")
    rows = re.findall(r"^ +(\S.*?) {2,}(.*)$", table, re.MULTILINE)
    found = {name: [float(cell) for cell in cells.split()] for name, cells in rows}
    workers = found.pop("megabytes a step; workers")
    at_eight = {name: cells[workers.index(8)] for name, cells in found.items()}
    exact = at_eight["exact mean"]
    assert 3.9 < exact / at_eight["8-bit mean"] < 4.1
    assert 7.9 < exact / at_eight["every 8th step"] < 8.1
    assert at_eight["one-peer exponential"] == min(found["one-peer exponential"])
    costs = shown_by("choosing", "ways = {")
    plain, roles = re.findall(r"operations a step +(\S+) GFLOP", costs)
    assert float(roles) < 0.8 * float(plain)


def test_md_gan_shows_what_it_says():
    costs = shown_by("md_gan", "titles =")
    row = r"^ +(MD-GAN|FL-GAN) +(worker|server) +(\S+) +(\S+)"
    flops = {found[:2]: float(found[2]) for found in re.findall(row, costs, re.M)}
    worker = flops["MD-GAN", "worker"]
    assert worker < 0.7 * flops["FL-GAN", "worker"]
    runs = shown_by("md_gan", "runs =")
    distance = numbers(r"^ +(\S.*): Fréchet distance +(\S+),", runs)
    assert distance["all live"] < 0.9 * distance["a crash"]
    sent = numbers(r"^ +(\S.*): Fréchet.* sent (\S+) MB", runs)
    # Half of the workers send nothing in half of the time.
    assert abs(sent["a crash"] / sent["all live"] - 0.75) < 0.01


def test_compose_shows_what_it_says():
    played = shown_by("compose", "choices = {")
    distance = numbers(r"^ +(\S.*): distance (\S+),", played)
    assert distance["exact mean"] < distance["8-bit codes"] < 0.005
    assert 0.01 < distance["2-bit codes"] < distance["ring of neighbours"] < 1
    generated = shown_by("compose", "figure, panels =")
    assert int(re.match(r"(\d+)%", generated)[1]) > 50
    counts = re.search(r"\[(.*)\]", generated)[1].split()
    assert len(counts) == 8
    assert min(map(int, counts)) > 60
    classified = shown_by("compose", "for name, tx in ways")
    right = numbers(r"^ +(\S.*): accuracy (\S+)%", classified)
    assert min(right.values()) > right["exact mean"] - 5 > 80
