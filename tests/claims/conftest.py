"""Claims are imported as where they are run, and leave no modules to other scripts."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "claims"


@pytest.fixture(autouse=True)
def own_modules():
    """Forget modules of these names before and after: `md_gan` is an example too."""
    names = [path.stem for path in ROOT.glob("*.py")]
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)
