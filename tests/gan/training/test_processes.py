"""The trainer over processes: what one process does on one device, and how it ends.

The four processes are started once, for all tests here.
"""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest
from processes import gan_train, start

import jaxsp
from jaxsp.gan.data import partition
from jaxsp.gan.training import plots, records

COUNT = gan_train.COUNT


@pytest.fixture(scope="module", autouse=True)
def quickly():
    kept = plots.plot_samples, plots.plot_curves, partition.plot
    gan_train.quickly()
    yield
    plots.plot_samples, plots.plot_curves, partition.plot = kept


@functools.cache
def virtual(count):
    return jaxsp.Workers(count, jax.devices()[:1])


@functools.cache
def expected(method, count=COUNT, config=gan_train.CONFIG):
    """What virtual workers of this process do."""
    return gan_train.fit(method, virtual(count), config=config)


@pytest.fixture(scope="module")
def four(quickly, tmp_path_factory):
    """What four processes saw, and the states that they came to."""
    path = tmp_path_factory.mktemp("gan")
    for name, method, count in (
        ("begun_by_one", gan_train.gossip, COUNT),
        ("begun_by_two", gan_train.gossip, 2),
        ("served_by_one", gan_train.served, COUNT - 1),
    ):
        half = {"config": gan_train.HALF, "workdir": path / name}
        gan_train.fit(method, virtual(count), **half)
    shutil.copytree(path / "begun_by_two", path / "to_restart")
    code, output = start.launch(4, "gan_train.py", path)
    assert code == 0, output
    saw = [json.loads((path / f"saw-{i}.json").read_text()) for i in range(4)]
    states: dict[str, list] = {}
    with np.load(path / "states.npz") as file:
        for name in file.files:
            states.setdefault(name.partition("/")[0], []).append(file[name])
    return types.SimpleNamespace(path=path, saw=saw, states=states)


def assert_close(state, result, count=COUNT):
    """To 1e-6 of the whole and 1e-5 of each array; what is no float to the bit."""
    wanted = gan_train.everything(virtual(count), result)
    errors, sizes = [], []
    for found, leaf in zip(state, wanted, strict=True):
        assert found.dtype == leaf.dtype
        if leaf.dtype.kind == "f" and leaf.size:
            errors.append(np.abs(found - leaf).max())
            sizes.append(np.abs(leaf).max())
            assert errors[-1] <= 1e-5 * sizes[-1]
        else:
            np.testing.assert_array_equal(found, leaf)
    assert max(errors) <= 1e-6 * max(sizes)


def assert_same_lines(found, wanted):
    """Alike but for rounding and seconds."""
    assert [r["step"] for r in found] == [r["step"] for r in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert list(a) == list(b)
        assert (a["loss_generator"] is None) == (b["loss_generator"] is None)
        for name in a.keys() - {"seconds"}:
            if b[name] is not None:
                # Scores are means of samples of both signs, distances start at 0.
                close = pytest.approx(b[name], rel=5e-6, abs=2e-6)
                assert a[name] == close, name


@pytest.mark.parametrize("name", gan_train.METHODS)
def test_a_worker_in_each_process_trains_as_in_one(four, name):
    result = expected(gan_train.METHODS[name])
    assert_close(four.states[name], result)
    assert_same_lines(four.saw[0][name]["history"], result.history)


def test_two_workers_in_each_process_train_as_in_one(four):
    result = expected(gan_train.gossip, 2 * COUNT)
    assert_close(four.states["blocks"], result, 2 * COUNT)
    assert_same_lines(four.saw[0]["blocks"]["history"], result.history)


def test_process_0_alone_records(four):
    for saw in four.saw[1:]:
        assert all(saw[name]["history"] == [] for name in gan_train.METHODS)
        assert [saw[name]["step"] for name in gan_train.METHODS] == [12] * 4


def test_what_one_process_saved_goes_on_in_four(four):
    half = expected(gan_train.gossip, config=gan_train.HALF)
    wanted = jax.tree.leaves(virtual(COUNT).fetch(half.state))
    for found, leaf in zip(four.states["half_begun_by_one"], wanted, strict=False):
        np.testing.assert_array_equal(found, leaf)
    whole = expected(gan_train.gossip)
    assert_close(four.states["begun_by_one"], whole)
    metrics = four.path / "begun_by_one" / "metrics.jsonl"
    assert_same_lines(records.read_metrics(metrics), whole.history)


def test_what_four_processes_saved_goes_on_in_one(four):
    workers = virtual(COUNT)
    kwargs = {"workdir": four.path / "begun_by_many", "resume": True}
    half = gan_train.fit(gan_train.gossip, workers, config=gan_train.HALF, **kwargs)
    state = jax.tree.leaves(workers.fetch(half.state))
    for found, leaf in zip(four.states["half"], state, strict=False):
        np.testing.assert_array_equal(found, leaf)
    assert half.step == 6
    whole = gan_train.fit(gan_train.gossip, workers, **kwargs)
    assert_close(gan_train.everything(workers, whole), expected(gan_train.gossip))
    assert_same_lines(whole.history, expected(gan_train.gossip).history)


def test_another_number_of_workers_goes_on_in_four_processes(four):
    """As in one process, from what two workers left."""
    whole = gan_train.fit(
        gan_train.gossip, virtual(COUNT), workdir=four.path / "to_restart", resume=True
    )
    assert_close(four.states["begun_by_two"], whole)
    found = four.saw[0]["begun_by_two"]["history"]
    assert [r["workers"] for r in found if "workers" in r] == ["2 -> 4 workers"]


@pytest.mark.parametrize("name", ["served", "served_by_one"])
def test_a_server_with_a_process_of_its_own_trains_as_in_one(four, name):
    """From the start, and from what one process left half-way."""
    result = expected(gan_train.served, COUNT - 1)
    wanted = jax.tree.leaves(result.generator)
    for found, leaf in zip(four.states[name], wanted, strict=True):
        assert np.abs(found - leaf).max() <= 5e-6 * np.abs(leaf).max()
    assert_same_lines(four.saw[0][name]["history"], result.history)


def test_a_signal_to_one_process_stops_all_at_one_step(four):
    (step, number, latest), *others = (saw["signalled"] for saw in four.saw)
    assert others == [[step, number, latest]] * 3
    assert 5 <= step == latest < 12
    assert number == 15
    assert_close(four.states["continued"], expected(gan_train.gossip))
    assert_same_lines(
        [r for r in four.saw[0]["continued"]["history"] if r["step"] % 3 == 0],
        expected(gan_train.gossip).history,
    )


def test_what_ends_one_process_ends_all(four):
    def said(name):
        return [saw[name] for saw in four.saw]

    assert said("stopped") == [3] * 4
    (diverged,) = {tuple(error) for error in said("diverged")}
    assert diverged[0] == "TrainingDivergedError"
    assert "generator loss of worker 0 is nan at step 6" in diverged[1]
    first, *others = said("failed")
    assert first == ["ZeroDivisionError", "division by zero"]
    again = ["DistributedError", "process 0: ZeroDivisionError: division by zero"]
    assert others == [again] * 3


def test_what_is_wrong_is_said_by_all(four):
    for process, saw in enumerate(four.saw):
        assert saw["unequal"][0] == "ValueError"
        assert "in all processes, and batch_size is not the same" in saw["unequal"][1]
        kind = "DistributedError" if process else "WorkdirError"
        assert saw["taken"][0] == kind
        assert "signalled holds another run" in saw["taken"][1]
        assert saw["lost"][0] == "WorkdirError"  # all see the directory
        assert "checkpoints is no directory that can be written" in saw["lost"][1]
        assert saw["own"][0] == "WorkdirError"
        assert f"own-{process} must be a directory that all" in saw["own"][1]
        assert "process 1 does not see there" in saw["own"][1]
    # Nothing was begun where nobody else could have gone on.
    assert [p.name for p in (four.path / "own-0").iterdir()] == [".lock"]
    assert not (four.path / "own-1").exists()
