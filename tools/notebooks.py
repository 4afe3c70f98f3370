"""Run the tutorials, and store each with what it shows.

A tutorial is written as text, `docs/tutorials/NAME.md`, in jupytext's MyST form: code
stands in fences of `{code-cell}`, `+++` parts text from text. Beside it lies what it
shows when it runs, `NAME.ipynb`, which this makes and nobody edits. The first code cell
of all is that of the quickstart, so that the address to install from is in one place.

    python tools/notebooks.py [NAME ...]
"""

import os
import pathlib
import re
import sys
import tempfile
import time

import nbclient
import nbformat
import yaml

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_CODE = re.compile(r"^```\{code-cell\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTIONS = re.compile(r"(?:^:\w.*\n)*", re.MULTILINE)
# Sliders would be stored without what they show: the kernel finds no ipywidgets.
_STARTUP = 'import sys\nsys.modules["ipywidgets"] = None\n'


def parse(text: str) -> nbformat.NotebookNode:
    """The notebook, without outputs, that a text is."""
    body = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.MULTILINE | re.DOTALL)
    cells = []
    for i, part in enumerate(_CODE.split(body)):  # text and code by turns
        if i % 2:
            options = _OPTIONS.match(part).group()
            metadata = yaml.safe_load(re.sub("^:", "", options, flags=re.M)) or {}
            source = part[len(options) :].strip("\n")
            cells.append(nbformat.v4.new_code_cell(source, metadata=metadata))
        else:
            for piece in re.split(r"^\+\+\+$", part, flags=re.MULTILINE):
                if piece.strip():
                    cells.append(nbformat.v4.new_markdown_cell(piece.strip("\n")))
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # as new_*_cell draws it, every run would change it
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def first_cell(text: str) -> str:
    """The first code cell of a text, in its fence."""
    return _CODE.search(text).group()


def execute(notebook: nbformat.NotebookNode, directory: pathlib.Path) -> None:
    """Run all cells in a kernel of their own, in a directory; raises what they do."""
    with tempfile.TemporaryDirectory() as profile:
        startup = pathlib.Path(profile, "profile_default", "startup")
        startup.mkdir(parents=True)
        (startup / "00.py").write_text(_STARTUP)
        environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": profile}
        nbclient.NotebookClient(
            notebook,
            timeout=900,
            kernel_name="python3",
            resources={"metadata": {"path": str(directory)}},
            record_timing=False,
            coalesce_streams=True,
        ).execute(env=environment)


def store(name: str) -> None:
    """Run a tutorial in full, and write its notebook."""
    source = TUTORIALS / f"{name}.md"
    install = first_cell((TUTORIALS / "quickstart.md").read_text())
    text = source.read_text()
    if first_cell(text) != install:
        text = text.replace(first_cell(text), install)
        source.write_text(text)
    notebook = parse(text)
    with tempfile.TemporaryDirectory() as directory:
        execute(notebook, pathlib.Path(directory))
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in set(cell.metadata) - {"tags"}:
            del cell.metadata[key]
    written = source.with_suffix(".part")
    written.write_text(nbformat.writes(notebook) + "\n")
    os.replace(written, source.with_suffix(".ipynb"))


def main(names: list[str]) -> None:
    """Store some tutorials, or all."""
    for name in names or sorted(path.stem for path in TUTORIALS.glob("*.md")):
        os.environ.pop("JAXSP_SHORT", None)
        began = time.perf_counter()
        store(name)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
