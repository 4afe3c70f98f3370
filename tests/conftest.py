"""Eight CPU devices for every test, and the fixtures the tests share."""

import os
import pathlib
import signal

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# Tests compile much and run little: more than half of their time is saved without
# optimization and with the older, quicker emitter of kernels, which JAX 0.10 still has.
FAST = "--xla_backend_optimization_level=0"
if jax.__version__.startswith("0.10."):
    FAST += " --xla_cpu_use_fusion_emitters=false"
# Of a flag that is given twice the last counts, so XLA_FLAGS can undo this.
os.environ["XLA_FLAGS"] = f"{FAST} {os.environ.get('XLA_FLAGS', '')}".strip()

# Compiling takes longer than hypothesis thinks a test should, and no test is timed.
hypothesis.settings.register_profile("jaxsp", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxsp")


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def terminal():
    """Signals as in a terminal: a shell makes what it runs behind ignore some."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, how) for number, how in usual.items()}
    yield
    for number, how in before.items():
        signal.signal(number, how)


@pytest.fixture(scope="session")
def tfds_dir():
    """A directory of prepared TFDS data sets, or None where there is none."""
    path = os.environ.get("JAXSP_DATA_DIR")
    return pathlib.Path(path) if path else None


@pytest.fixture(autouse=True, scope="session")
def cache_dir(tmp_path_factory):
    """Keep what the tests train and cache out of the user's cache."""
    path = tmp_path_factory.mktemp("cache")
    previous = os.environ.get("JAXSP_CACHE_DIR")
    os.environ["JAXSP_CACHE_DIR"] = str(path)
    yield path
    if previous is None:
        del os.environ["JAXSP_CACHE_DIR"]
    else:
        os.environ["JAXSP_CACHE_DIR"] = previous


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Call a command as from a shell, in an empty directory: exit code and words."""
    from jaxsp.gan import command  # which few tests want

    monkeypatch.chdir(tmp_path)
    jax.devices()  # there are eight from now on, whatever --devices says

    def call(script, *arguments):
        code = command.call(script.PROGRAM, script.Config, script.main, *arguments)
        return code, *capsys.readouterr()

    return call
