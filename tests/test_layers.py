"""Imports run one way, and the core stays light."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jaxsp"

# What each module may import of jaxsp; a package stands for all its files.
LAYERS = {
    "topology": {"_arguments"},
    "operators": {"_arguments"},
    "_arguments": set(),
    "aggregators": {"_arguments"},
    "comm": {"_arguments", "aggregators", "compressors", "topology"},
    "compressors": {"_arguments"},
    "_devices": {"_arguments"},
    "workers": {"_arguments", "_devices", "comm"},
    "distributed": set(),
    "launch": set(),
    "transforms": {
        "_arguments",
        "comm",
        "compressors",
        "operators",
        "topology",
    },
    "metrics": {"_arguments", "comm", "operators"},
    "projections": {"_arguments"},
    "theory": {"_arguments"},
    "problems": {"_arguments", "operators", "projections", "topology"},
}
LAYERS["methods"] = LAYERS["transforms"] | {"transforms"}
HEAVY = {"flax", "tensorflow_datasets", "tensorflow", "sklearn", "matplotlib"}
HEAVY |= {"orbax", "tensorstore", "networkx", "PIL", "tqdm", "tokenizers"}


def modules():
    """What is neither of `gan` nor of `robust`, which may use all."""
    return sorted(p for p in ROOT.rglob("*.py") if room(p) not in ("gan", "robust"))


def imported(path):
    """Every module that the file imports anywhere, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path):
    """`transforms/gossip.py` and `comm.py` as `transforms` and `comm`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    if path.parent == ROOT and path.name == "__init__.py":
        return
    inside = {
        name.split(".")[1] for name in imported(path) if name.startswith("jaxsp.")
    }
    allowed = LAYERS[room(path)]
    if (
        path.parent != ROOT and room(path) != "transforms"
    ) or path.name == "__init__.py":
        allowed = allowed | {room(path)}  # transforms never import one another
    assert inside <= allowed


def test_gan_knows_nothing_of_robust():
    for path in (ROOT / "gan").rglob("*.py"):
        assert not any(name.startswith("jaxsp.robust") for name in imported(path)), path


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imported(path)} & HEAVY


def test_collectives_stand_in_comm_alone():
    names = {"psum", "pmean", "pmax", "pmin", "ppermute", "all_gather", "all_to_all"}
    names |= {"axis_index", "psum_scatter", "axis_size"}
    for path in ROOT.rglob("*.py"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert room(path) == "comm" or not used & names, path


def functions(path):
    """Every function of a file, with the names of its parameters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            yield node, [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]


@pytest.mark.parametrize("room", ["comm", "methods", "transforms"])
def test_nothing_that_a_method_is_made_of_takes_more_than_six_arguments(room):
    for path in (ROOT / room).rglob("*.py"):
        for node, names in functions(path):
            assert len(names) <= 6, f"{path.name}: {node.name}({', '.join(names)})"


# Functions that take more than eight arguments, files of more than 400 lines, and
# private names of other libraries, each with its reason.
MANY_ARGUMENTS = {
    "problems/robust_regression.py": "the sizes and constants of one problem",
}
LONG: dict[str, str] = {}
PRIVATE = {
    "distributed/detect.py": {"jax._src"},  # which cluster this is, JAX tells nobody
    "distributed/failure.py": {"os._exit"},  # Python's own name for it
}


def test_no_function_takes_more_than_eight_arguments():
    for path in ROOT.rglob("*.py"):
        many = [node.name for node, names in functions(path) if len(names) > 8]
        name = str(path.relative_to(ROOT))
        assert bool(many) == (name in MANY_ARGUMENTS), f"{name}: {', '.join(many)}"


@pytest.mark.parametrize("folder", ["jaxsp", "examples", "benchmarks", "claims"])
def test_no_file_is_longer_than_400_lines(folder):
    for path in (ROOT.parent / folder).rglob("*.py"):
        long = len(path.read_text().splitlines()) > 400
        assert long == (path.name in LONG), path


def private_names(path):
    """Names with an underscore that a file takes from another library."""
    tree, theirs = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                theirs[alias.asname or top] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                theirs[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    theirs = {k: v for k, v in theirs.items() if not v.startswith("jaxsp")}
    for name in theirs.values():
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.startswith("_") and not part.startswith("__"):
                yield ".".join(parts[: i + 1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            known = isinstance(base, ast.Name) and base.id in theirs
            if known and not node.attr.startswith("__"):
                yield ast.unparse(node)


def test_other_libraries_are_used_by_their_public_names():
    for path in ROOT.rglob("*.py"):
        found = set(private_names(path))
        assert found == PRIVATE.get(str(path.relative_to(ROOT)), set()), path


def test_import_loads_no_heavy_package():
    code = "import sys, jaxsp; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert "optax" in loaded
    assert not loaded & (HEAVY - {"scipy"})  # JAX itself loads SciPy
