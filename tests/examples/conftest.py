"""What the tests of the examples share: the examples, imported as Python runs them."""

import importlib
import pathlib
import sys

import jax
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example():
    """Import an example by its name."""
    sys.path.insert(0, str(EXAMPLES))  # as Python does for a script
    jax.devices()  # there are eight from now on, whatever --devices says
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))
