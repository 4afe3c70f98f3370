"""The pages that are made when the site is built: the reference, and the papers.

What is public is what an `__all__` names. A page is a module; an object that several
modules export is on the page of the outermost of them, and the others refer to it.
"""

import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import sys
import types
from typing import Any, NamedTuple

import yaml

import jaxsp

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "claims"))

import page as claims  # noqa: E402


class Entry(NamedTuple):
    """A public name, and the module whose page describes it."""

    name: str
    value: Any
    page: str


def modules() -> list[str]:
    """The modules with public names, those nearer to the root first."""
    found = pkgutil.walk_packages(jaxsp.__path__, "jaxsp.")
    names = [m.name for m in found if not m.name.rpartition(".")[2].startswith("_")]
    return ["jaxsp", *sorted(names, key=lambda name: (name.count("."), name))]


def public() -> dict[str, list[Entry]]:
    """The public names of every module, each with its page."""
    homes: dict[Any, str] = {}
    found = {}
    for module in modules():
        loaded = importlib.import_module(module)
        entries = []
        for name in getattr(loaded, "__all__", ()):
            value = getattr(loaded, name)
            # A number or a text is not known again by where it is.
            shared = inspect.ismodule(value) or callable(value)
            home = homes.setdefault(id(value) if shared else (module, name), module)
            entries.append(Entry(name, value, home))
        if entries:
            found[module] = entries
    return found


def described() -> dict[str, list[Entry]]:
    """By page the names that it describes."""
    found = {
        module: [e for e in all_ if e.page == module and not inspect.ismodule(e.value)]
        for module, all_ in public().items()
    }
    return {page: entries for page, entries in found.items() if entries}


def outer() -> set[str]:
    """The modules that one reaches from `jaxsp` by names in `__all__`."""
    reached, left = set(), [jaxsp]
    while left:
        module = left.pop()
        reached.add(module.__name__)
        values = [getattr(module, name) for name in getattr(module, "__all__", ())]
        left += [v for v in values if inspect.ismodule(v)]
    return reached | {"jaxsp.launch", "jaxsp.gan.train", "jaxsp.gan.program"}


def write(docs: pathlib.Path) -> None:
    """Write the pages that are made, those that have changed."""
    pages = {f"api/{name}.md": text for name, text in api().items()}
    pages |= {f"papers/{name}.md": text for name, text in papers().items()}
    pages["tutorials.md"] = tutorials(docs / "tutorials")
    for folder in ("api", "papers"):
        (docs / folder).mkdir(exist_ok=True)
        for path in (docs / folder).glob("*.md"):
            if f"{folder}/{path.name}" not in pages:
                path.unlink()
    for name, text in pages.items():
        path = docs / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def api() -> dict[str, str]:
    """The pages of the reference, by name."""
    everything, by_page, near = public(), described(), outer()
    pages = {}
    for module, entries in by_page.items():
        rows = [f"- {_link(e, module)}: {first_line(e.value)}" for e in entries]
        rest = [e for e in everything[module] if e.page != module]
        also = ", ".join(_link(e, e.page) for e in rest if e.page in by_page)
        body = "\n\n".join(_directive(e) for e in entries)
        pages[module] = (
            f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :no-members:"
            "\n```\n\n"
            + "\n".join(rows)
            + (f"\n\nDescribed elsewhere: {also}." if also else "")
            + f"\n\n```{{eval-rst}}\n{body}\n```\n"
        )
    first = [m for m in pages if m in near]
    second = [m for m in pages if m not in near]
    pages["index"] = (
        "# API reference\n\nEvery public name, from the docstrings; "
        "[all names](names.md) in one list. A method is an optax transformation, and "
        "all formulas are those that the tests compare with plain NumPy loops.\n\n"
        f"{_listing(first)}\n\n## Inner modules\n\nWhat the library itself is made of, "
        "for those who change it. These names may change without notice.\n\n"
        f"{_listing(second)}\n\n{_tree(['names', *first, *second])}"
    )
    names = sorted(
        (entry.name.lower(), _link(entry, page), f"[{page}]({page}.md)")
        for page, entries in by_page.items()
        for entry in entries
    )
    rows = "\n".join(f"| {link} | {page} |" for _, link, page in names)
    pages["names"] = (
        f"# All names\n\n{len(names)} public names, and the page of each.\n\n"
        f"| name | page |\n| --- | --- |\n{rows}\n"
    )
    return pages


def _listing(names):
    """A list of modules with the first lines of their docstrings."""
    lines = ((name, first_line(importlib.import_module(name))) for name in names)
    return "\n".join(f"- [{name}]({name}.md): {line}" for name, line in lines)


def _tree(names):
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def first_line(value: Any) -> str:
    """The first line of a docstring."""
    if not (callable(value) or inspect.ismodule(value)):
        return f"a {type(value).__name__}"
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _link(entry, page):
    return f"{{py:obj}}`{entry.name} <{page}.{entry.name}>`"


def _directive(entry):
    """What describes an entry."""
    name = f"{entry.page}.{entry.name}"
    if inspect.isclass(entry.value) and not isinstance(entry.value, types.GenericAlias):
        kind = "exception" if issubclass(entry.value, BaseException) else "class"
        return f".. auto{kind}:: {name}"
    if callable(entry.value) and inspect.isroutine(inspect.unwrap(entry.value)):
        return f".. autofunction:: {name}"
    lines = [f".. py:data:: {entry.name}", f"   :module: {entry.page}"]
    if (
        len(value := " ".join(repr(entry.value).split())) < 200
        and " at 0x" not in value
    ):
        lines.append(f"   :value: {value}")
    return "\n".join(lines)


def on_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Make a docstring reStructuredText."""
    lines[:] = restructured("\n".join(lines)).split("\n")


def restructured(text: str) -> str:
    """Write formulas, code spans and tables of Markdown as reStructuredText has them.

    `$$...$$` becomes a block, with a line for each part of a long one; `$...$` a role;
    and `Args: those of f, and` a sentence before the section.
    """

    def block(match):
        formula = " ".join(match[2].split())
        parts = formula.split(r"\qquad")
        if len(formula) > 70 and len(parts) > 1 and r"\begin" not in formula:
            lines = r" \\ ".join(part.strip() for part in parts)
            formula = rf"\begin{{gathered}} {lines} \end{{gathered}}"
        return f"\n\n{match[1]}.. math:: {formula}\n\n{match[1]}"

    def span(match):
        before, code, formula, after = match.groups()
        inside = code or f":math:`{' '.join(formula.split())}`"
        return before + ("\\ " if before else "") + inside + ("\\ " if after else "")

    def table(match):
        between = r"(?<!\\)\|(?=(?:[^$]*\$[^$]*\$)*[^$]*$)"  # not inside a formula
        items = [
            f"   {' ' if column else '*'} - {cell.strip()}".replace(r"\|", "|")
            for line in match[0].strip("\n").split("\n")
            if "| --- |" not in line
            for column, cell in enumerate(re.split(between, line.strip()[1:-1]))
        ]
        return ".. list-table::\n   :header-rows: 1\n\n" + "\n".join(items) + "\n"

    text = re.sub(r"(?m)(?:^ *\|.*\|$\n?)+", table, text)
    text = re.sub(r"(?m)^( *)\$\$(.*?)\$\$ *", block, text, flags=re.DOTALL)
    text = re.sub(
        r"(\w?)(?:(?<![`:])(`[^`\n]+`)(?!`)|\$([^$]+?)\$)(?=(\w?))", span, text
    )
    text = re.sub(
        r"(?m)^( *)Args: (.+), and$", r"\1Arguments are \2, and:\n\n\1Args:", text
    )
    text = re.sub(r"(?m)^( *)Args: (.+)$", r"\1Arguments are \2", text)
    return re.sub(r"(?m)(?:^ *\|.*\|$\n?)+", table, text)


def on_member(app, what, name, obj, skip, options) -> bool | None:
    """Leave the fields of a class to its docstring."""
    shown = inspect.isroutine(obj) or isinstance(obj, property)
    return True if what in ("class", "exception") and not shown else None


def on_source(app, docname: str, source: list[str]) -> None:
    """Put documents of the repository where a page says `{{ NAME.md # heading }}`."""
    source[0] = re.sub(
        r"^\{\{ (\S+)(?: # (.+?))? \}\}$",
        lambda found: document(found[1], found[2], docname.count("/")),
        source[0],
        flags=re.MULTILINE,
    )


def document(name: str, heading: str | None, depth: int) -> str:
    """A document of the repository, or what is under one of its headings."""
    if name == "claims":
        return differences()
    text = (ROOT / name).read_text()
    if heading is None:
        text = text.partition("\n")[2]  # the page has a title of its own
    else:
        text = re.split(rf"(?m)^## {re.escape(heading)}\n", text)[1]
        text = re.split(r"(?m)^## ", text)[0]
    up = "../" * (depth + 1)
    return re.sub(r"(!\[[^\]]*\]\()(?!http)", rf"\1{up}", text)


def tutorials(folder: pathlib.Path) -> str:
    """The page that names the notebooks, with the first sentence of each."""
    rows, names = [], []
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        words = "".join(
            next(c for c in cells if c["cell_type"] == "markdown")["source"]
        )
        title, _, rest = words.partition("\n")
        first = claims.words(rest.strip().partition("\n\n")[0])
        first = first[: first.rfind(".") + 1]  # whole sentences
        rows.append(f"| [{title.lstrip('# ')}](tutorials/{path.name}) | {first} |")
        names.append(f"tutorials/{path.stem}")
    return (
        "# Tutorials\n\nNotebooks for Colab, on a TPU chip, a GPU or the CPU, shown as "
        "they came out. The tests run them in a short form.\n\n"
        "| notebook | what it does |\n| --- | --- |\n" + "\n".join(rows) + "\n\n"
    ) + _tree(names)


def papers() -> dict[str, str]:
    """The pages of the papers: what each claims, and what came out."""
    pages, rows = {}, []
    for path in sorted((ROOT / "claims").glob("*.yaml")):
        written, *rest = yaml.safe_load_all(path.read_text())
        recorded = rest[0] if rest and rest[0] else {}
        pages[path.stem] = claims.paper(path.stem, written, recorded)
        judged = []
        for name in written["experiments"]:
            forms = recorded.get(name, {})  # of both forms the long one's count
            both = [
                claims.verdicts(written, name, forms.get(f)) for f in ("short", "long")
            ]
            judged += [last or first for first, last in zip(*both, strict=True)]
        rows.append((f"[{written['title']}]({path.stem}.md)", judged))
    pages["index"] = (
        "# The papers\n\nWhat the papers claim, and what came out when it was recorded "
        "last. A claim is judged on every seed: *held* on all, *partly held* on some, "
        "*not held* on none. Where both forms were recorded, the long one counts here. "
        "`make papers` tests all of them anew, in a short form, and draws figures "
        "beside the numbers; `FULL=1` takes the papers' sizes.\n\n"
        f"{claims.summary(rows, 'not recorded')}\n\n{_tree(pages)}"
    )
    return pages


def differences() -> str:
    """For each paper how the experiments here differ from its own."""
    parts = []
    for path in sorted((ROOT / "claims").glob("*.yaml")):
        claimed = next(iter(yaml.safe_load_all(path.read_text())))
        lines = [f"- {claims.words(note)}" for note in claimed.get("notes", ())]
        lines += [
            f"- *{experiment['title']}*: {claims.words(line)}"
            for experiment in claimed["experiments"].values()
            for line in experiment.get("differences", ())
        ]
        if lines:
            title = f"### [{claimed['title']}](papers/{path.stem}.md)"
            parts.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)
