"""Examples in docstrings and documents run, and commands name what exists."""

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import re
import warnings

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
    modules += "compressors", "transforms"
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


def test_readme_begins_with_a_chain_and_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "optax.chain(" in "".join(lines[:40])
    assert len(lines) < 250


@pytest.mark.parametrize("document", ["README.md", "BUILD.md", "BENCHMARKS.md"])
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
    metadata = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{jaxsp.__version__}"' in metadata
    assert f"## {jaxsp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
