"""Examples in docstrings and documents run, and commands name what exists."""

import dataclasses
import doctest
import importlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import re
import sys
import tomllib
import warnings
from unittest import mock

import jax
import pytest

import jaxsp

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jaxsp").rglob("*.py")
)


@pytest.fixture
def one_device(monkeypatch):
    """What most readers have; without `jit` eight devices take a minute longer."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *backend: first)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def public_functions():
    """Every public name with a callable behind it."""
    modules = "methods", "topology", "problems", "metrics", "projections", "theory"
    modules += "aggregators", "compressors", "transforms"
    for module in (jaxsp, *(getattr(jaxsp, name) for name in modules)):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_are_documented(function):
    text = function.__doc__ or ""
    assert len(text.splitlines()[0]) > 10
    takes = not isinstance(function, type) and inspect.signature(function).parameters
    assert "Args:" in text or not takes


def python_blocks(document):
    text = (ROOT / document).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("document", ["README.md"])
def test_code_in_documents_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(document)
    assert len(blocks) >= 3
    for i, block in enumerate(blocks):
        # Each block stands alone, as a reader would paste it.
        exec(compile(block, f"{document}, block {i}", "exec"), {"__name__": "readme"})


@pytest.fixture
def loggers(monkeypatch):
    """What the page on logging imports and nothing here needs; keeps what it gets."""
    wandb, boards = mock.MagicMock(), mock.MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "tensorboardX", boards)
    run = wandb.init.return_value.__enter__.return_value
    writer = boards.SummaryWriter.return_value.__enter__.return_value
    return run.log, writer.add_scalar


# Not those that are made when the site is built, nor what has notebooks.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("docs", "docs/how-to")
    for path in (ROOT / folder).glob("*.md")
    if "```python" in path.read_text()
)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("document", PAGES)
def test_code_in_pages_runs(document, tmp_path, monkeypatch, loggers):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for i, block in enumerate(python_blocks(document)):  # one after the other
        exec(compile(block, f"{document}, block {i}", "exec"), space)
    for logged in loggers if document.endswith("logging.md") else ():
        assert logged.call_count >= 5


def test_pages_are_in_a_table_of_contents():
    pages = {p.stem for p in (ROOT / "docs" / "how-to").glob("*.md")} - {"index"}
    index = (ROOT / "docs" / "how-to" / "index.md").read_text()
    assert {p for p in pages if f"[]({p}.md)" in index and f"\n{p}\n" in index} == pages
    assert len(pages) >= 13


@pytest.fixture(scope="module")
def made():
    """The module that makes pages when the site is built."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_a_page_of_the_reference(made):
    pages = made.api()
    for name in MODULES:
        module = importlib.import_module(name)
        last = name.rpartition(".")[2]
        for public in () if last[:1] == "_" else getattr(module, "__all__", ()):
            value = getattr(module, public)
            if inspect.ismodule(value):
                continue
            page = next(e.page for e in made.public()[name] if e.name == public)
            directive = rf"^\.\. (auto\w+:: {re.escape(page)}\.|py:data:: ){public}$"
            assert re.search(directive, pages[page], re.M), f"{name}.{public}"
            assert f"`{public} <{page}.{public}>`" in pages["names"]


def test_all_claims_are_on_the_pages_of_the_papers(made):
    pages = made.papers()
    for path in (ROOT / "claims").glob("*.yaml"):
        claims = re.findall(r"^ +- claim: (.+)$", path.read_text(), re.MULTILINE)
        assert claims
        for claim in claims:
            shown = claim.strip("'\"")[:40].replace("|", r"\|")
            assert shown in pages[path.stem]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a $b$ c", "a :math:`b` c"),
        ("$m$th of `f`s", ":math:`m`\\ th of `f`\\ s"),
        ("of $\\|z -\n  z^*\\|$.", "of :math:`\\|z - z^*\\|`."),
        ("`$HOME/x` and `$y`", "`$HOME/x` and `$y`"),
        ("Args: those of `f`.", "Arguments are those of `f`."),
        (
            "| a | b |\n| --- | --- |\n| $|x|$ | `y` |\n",
            ".. list-table::\n   :header-rows: 1QQ   * - a\n     - b\n"
            "   * - :math:`|x|`\n     - `y`\n",
        ),
        ("$$a\n  b$$", "QQ.. math:: a bQQ"),
        (
            rf"$${'a' * 70} \qquad b$$",
            rf"QQ.. math:: \begin{{gathered}} {'a' * 70} \\ b \end{{gathered}}QQ",
        ),
    ],
)
def test_docstrings_become_restructured_text(made, written, expected):
    assert made.restructured(written).replace("\n\n", "QQ") == expected


def test_readme_begins_with_a_chain_and_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "optax.chain(" in "".join(lines[:40])
    assert len(lines) < 250


DOCUMENTS = "README.md", "BUILD.md", "BENCHMARKS.md", "CONTRIBUTING.md"


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES])
def test_commands_in_documents_name_what_exists(document):
    text = (ROOT / document).read_text()
    makefile = (ROOT / "Makefile").read_text()
    blocks = "\n".join(re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S))
    for target in re.findall(r"\bmake ([a-z-]+)", blocks):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for script in re.findall(r"\b((?:examples|benchmarks)/\w+\.(?:py|ipynb))", text):
        assert (ROOT / script).exists(), script


def test_flags_in_documents_are_flags_of_the_scripts(monkeypatch):
    """Each command in the README has flags that its script defines."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    defined = {}
    names = "train_gan", "compare", "jaxsp.gan.train", "jaxsp.gan.scores"
    for name in names:
        module = f"{name}.__main__" if name.startswith("jaxsp.") else name
        module = importlib.import_module(module)
        defined[name] = {field.name for field in dataclasses.fields(module.Config)}
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    text = re.sub(r"^python -m jaxsp.launch -n \d+ ", "python ", text, flags=re.M)
    commands = re.findall(
        r"^python (?:examples/|-m )([a-z_.]+?)(?:\.py)? (.*)$", text, re.MULTILINE
    )
    assert {name for name, _ in commands} >= {*defined}
    for name, rest in commands:
        for flag in set(re.findall(r"--([a-z_]+)", rest)) - {"helpshort"}:
            assert flag in defined[name], f"{name} --{flag}"


def test_version_is_one():
    """The package says it; what installs it and who cites it do not say it again."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert metadata["project"]["dynamic"] == ["version"]
    attribute = metadata["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "jaxsp.__version__"
    assert importlib.metadata.version("jaxsp") == jaxsp.__version__
    assert "version" not in metadata["project"]
    assert not re.search(r"^version", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## {jaxsp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
