"""The site, as Sphinx builds it: `make docs`, without a network."""

import importlib.metadata
import importlib.util
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pages  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

project = "jaxsp"
author = "The jaxsp authors"
copyright = "The jaxsp authors, Apache-2.0"
version = release = importlib.metadata.version("jaxsp")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "myst_nb",
]
# The text form of the notebooks is not a page of its own.
exclude_patterns = [
    f"tutorials/{path.stem}.md" for path in (HERE / "tutorials").glob("*.ipynb")
]

# Docstrings: Google's form, dollars around formulas, single backticks around code.
autodoc_default_options = {"members": True, "exclude-members": "tree_flatten"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the arguments are described in words
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 76

# Notebooks are stored executed.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "attrs_block", "dollarmath"]
myst_heading_anchors = 3

# MathJax is the copy that a package has, of which a page needs one file and the fonts.
MATHJAX = pathlib.Path(
    importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0],
    "static/mathjax",
)
mathjax_path = "mathjax/tex-chtml.js"

html_theme = "sphinx_book_theme"
html_title = "jaxsp"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def copy_mathjax(app, exception):
    """Put MathJax beside the pages."""
    target = pathlib.Path(app.outdir, "_static/mathjax")
    fonts = "output/chtml/fonts/woff-v2"
    if exception is None and not target.exists():
        shutil.copytree(MATHJAX / fonts, target / fonts)
        shutil.copy(MATHJAX / "tex-chtml.js", target)


def check_reference(app, exception):
    """Refuse a site that does not describe every public name."""
    if exception is None and app.builder.name == "html":
        found = app.env.domains["py"].objects
        names = (
            f"{page}.{entry.name}"
            for page, entries in pages.described().items()
            for entry in entries
        )
        if missing := sorted(set(names) - set(found)):
            raise ExtensionError(f"names on no page: {', '.join(missing)}")


def setup(app):
    """Write the pages that are made of something else, and mend docstrings."""
    pages.write(HERE)
    app.connect("autodoc-process-docstring", pages.on_docstring, priority=400)
    app.connect("autodoc-skip-member", pages.on_member)
    app.connect("source-read", pages.on_source)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", check_reference)
    return {"parallel_read_safe": True}
