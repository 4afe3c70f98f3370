"""Run directories: whose they are, and checkpoints that are whole."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp.gan import program
from jaxsp.gan.training import checkpoint, directory
from jaxsp.gan.training.progress import Progress


class State(NamedTuple):
    params: dict
    others: tuple


SETTINGS = {"method": "dposg", "learning_rate": 0.1, "shape": (2, 3)}
SUMMARY = program.Summary(
    generator={"a": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}},
    params=jaxsp.MinMax(np.ones(2, np.float32), {"v": np.zeros(3, np.float32)}),
)


def make_state(seed=0, size=3):
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (4, size)), "b": jnp.ones(4, jnp.bfloat16)}
    traffic = jnp.array([[seed, 2**32 - 1]] * 4, jnp.uint32)
    opt_state = jax.vmap(optax.adam(1e-3).init)(params)
    return State(params, (opt_state, traffic, jax.random.split(key, 4), ()))


def assert_same(a, b):
    def check(x, y):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    jax.tree.map(check, a, b)


def test_restores_exactly_what_was_saved(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        progress = Progress(7, 0.1, (1 / 3, 2.0), 3, (0, 0), (None, 2**60 + 1), 4, 5)
        checkpoints.save(make_state(1), SUMMARY, progress)
        state = checkpoints.restore(7, make_state(0))
        assert checkpoints.progress(7) == progress
    assert_same(state, make_state(1))


def test_a_summary_is_read_without_knowing_the_state(tmp_path):
    directory.write_config(tmp_path, SETTINGS, {})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (7, 9):
            scaled = jax.tree.map(lambda x, step=step: step * x, SUMMARY)
            checkpoints.save(make_state(), scaled, Progress(step))
        nothing = jax.tree.map(lambda x: np.zeros(()), SUMMARY)
        assert_same(checkpoints.summary(9, like=nothing), scaled)
        other = SUMMARY._replace(generator={"c": np.zeros(1)})
        message = "another configuration: generator/a/w is present there and missing"
        with pytest.raises(checkpoint.WorkdirError, match=message):
            checkpoints.summary(9, like=other)
    for path, step in ((tmp_path, 9), (tmp_path / "checkpoints" / "7", 7)):
        found, generator, settings = checkpoint.read_generator(path)
        assert (found, settings["method"]) == (step, "dposg")
        assert_same(generator, {"a/w": step * SUMMARY.generator["a"]["w"]})


def test_there_is_no_generator_where_there_is_no_checkpoint(tmp_path):
    with pytest.raises(checkpoint.WorkdirError, match="neither"):
        checkpoint.read_generator(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(checkpoint.WorkdirError, match=r"config\.json cannot be read"):
        checkpoint.read_generator(tmp_path)
    directory.write_config(tmp_path, SETTINGS, {})
    for path in (tmp_path, tmp_path / "checkpoints" / "3"):
        with pytest.raises(checkpoint.WorkdirError, match="no checkpoint in"):
            checkpoint.read_generator(path)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(), SUMMARY, Progress(5))
    assert checkpoint.read_generator(tmp_path)[0] == 5


def test_restores_to_where_it_is_used(tmp_path):
    spread = jaxsp.Workers(4, jax.devices()[:4])
    single = jaxsp.Workers(4, jax.devices()[:1])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(spread.shard(make_state(1)), SUMMARY, Progress(0))
        for workers in (spread, single):
            like = workers.shard(make_state(0))
            state = checkpoints.restore(0, like)
            assert_same(state, make_state(1))
            for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
                assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_restores_to_workers_on_some_of_the_devices_and_to_one_of_them(tmp_path):
    """A server's and workers' arrays, on devices of their own, and copies."""
    pairs, other = (jaxsp.Workers(4, jax.devices()[i : i + 2]) for i in (1, 6))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    copies = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[:3]), "d"), jax.P()
    )
    three = np.arange(3.0, dtype=np.float32)
    state = (
        pairs.shard(make_state(1)),
        jax.device_put(three, one),
        jax.device_put(three, copies),
    )
    likes = (
        (pairs.shard(make_state(0)), state[1] + 1, state[2] + 1),
        (other.shard(make_state(0)), state[2] + 1, state[1] + 1),
        (make_state(0), jnp.zeros(3), jnp.zeros(3)),
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, SUMMARY, Progress(0))
        for like in likes:
            found = checkpoints.restore(0, like)
            assert_same(found, (make_state(1), three, three))
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
                assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    # Each number is written once, wherever it is, with four bytes of checksum a file.
    numbers = sum(
        (jax.random.key_data(x) if x.dtype.name.startswith("key") else x).nbytes
        for x in jax.tree.leaves(state)
    )
    files = chunks(checkpoints)
    assert sum(path.stat().st_size - 4 for path in files) == numbers


def chunks(checkpoints, array="", step=0, item="shards"):
    """The files of a checkpoint that hold an array of the state, or all of them."""
    found = (checkpoints.path(step) / item / array).rglob("*")
    return [path for path in found if path.is_file() and "c" in path.parts]


def test_a_checkpoint_that_has_lost_a_part_is_damaged(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), SUMMARY, Progress(0))
        (chunk,) = chunks(checkpoints, "params/w")
        chunk.write_bytes(chunk.read_bytes()[:-9])
        with pytest.raises(checkpoint.WorkdirError, match=r"checkpoints/0 is damaged"):
            checkpoints.restore(0, make_state(0))
        chunk.unlink()
        with pytest.raises(checkpoint.WorkdirError, match=r"is damaged"):
            checkpoints.restore(0, make_state(0))


def test_keeps_the_last_two_whole_ones(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), SUMMARY, Progress(step))
        checkpoints.save(make_state(9), SUMMARY, Progress(3))  # there already: kept
    # What a machine that goes down while writing leaves behind.
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with checkpoint.Checkpoints(tmp_path) as again:
        assert again.latest == 3
        assert again.path(3) == tmp_path / "checkpoints" / "3"
        assert not again.path(1).exists()
        assert_same(again.restore(2, make_state()), make_state(2))
        assert_same(again.restore(3, make_state()), make_state(3))
        again.save(make_state(4), SUMMARY, Progress(4))
        assert_same(again.restore(4, make_state()), make_state(4))


def test_refuses_a_state_of_another_layout(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(size=3), SUMMARY, Progress(1))
        state = make_state()
        for like, message in (
            (
                make_state(size=5),
                r"params/w is float32\[4, 3\] there and float32\[4, 5\]",
            ),
            (state._replace(others=(*state.others, jnp.ones(3))), "is missing there"),
        ):
            with pytest.raises(checkpoint.WorkdirError, match=message):
                checkpoints.restore(1, like)


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_directory_has_no_run_and_is_not_made(tmp_path, resume):
    (tmp_path / "notes.txt").write_text("not a run's")
    for path in (tmp_path / "a" / "b", tmp_path):
        assert directory.check_directory(path, SETTINGS, resume) is False
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_is_resumed_only_with_its_settings(tmp_path):
    directory.write_config(tmp_path, SETTINGS, {"steps": 10})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["settings"] == {**SETTINGS, "shape": [2, 3]}
    assert saved["free"] == {"steps": 10}
    assert directory.check_directory(tmp_path, SETTINGS, True) is True
    assert directory.check_directory(tmp_path, {**SETTINGS, "new": 1}, True) is True
    other = {**SETTINGS, "method": "cp"}
    assert directory.check_directory(tmp_path, other, True, may_differ=["method"])
    other["learning_rate"] = 0.2
    message = (
        "configuration: method is 'cp' now and 'dposg' there; learning_rate is 0.2 now "
        "and 0.1 there. Resume"  # and nothing of the shape
    )
    with pytest.raises(checkpoint.WorkdirError, match=message):
        directory.check_directory(tmp_path, other, True)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_what_belongs_to_a_run_is_not_taken_over(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(checkpoint.WorkdirError, match=f"another run.*{name}"):
        directory.check_directory(tmp_path, SETTINGS, False)
    with pytest.raises(checkpoint.WorkdirError, match=r"config\.json cannot be read"):
        directory.check_directory(tmp_path, SETTINGS, True)
    assert (tmp_path / name).read_text() == "{}"


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(checkpoint.WorkdirError, match="is a file"):
        directory.check_directory(tmp_path / "a" / "b", SETTINGS, False)


def test_numpy_arrays_are_kept_too(tmp_path):
    state = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(3), "c": jnp.arange(2)}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"g": np.ones(2)}, Progress(1))
        again = checkpoints.restore(1, jax.tree.map(np.zeros_like, state))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert isinstance(again["a"], np.ndarray)


@pytest.mark.parametrize("what", ["shards", "summary", "note", "number", "empty"])
def test_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, caplog, what):
    """One bit of any file, a number in its note, or nothing at all in its directory."""
    rng = np.random.default_rng(len(what))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step), SUMMARY, Progress(step))
        if what == "empty":
            (tmp_path / "checkpoints" / "7").mkdir()
            last = 7
        elif what == "number":
            last, file = 2, checkpoints.path(2) / "note" / "metadata"
            text = file.read_text()
            assert '"step": 2' in text
            file.write_text(text.replace('"step": 2', '"step": 3'))
        else:
            last = 2
            files = sorted(chunks(checkpoints, "", 2, what))
            file = rng.choice(files or [checkpoints.path(2) / "note" / "metadata"])
            damaged = bytearray(file.read_bytes())
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        before = 2 if what == "empty" else 1
        assert checkpoints.whole(tmp_path) == before
        assert f"checkpoints/{last} is damaged" in caplog.text
        assert (tmp_path / f"damaged_{last}").is_dir()
        assert_same(checkpoints.restore(before, make_state(0)), make_state(before))
        assert checkpoints.progress(before) == Progress(before)
        checkpoints.save(make_state(last), SUMMARY, Progress(last))
        assert checkpoints.whole(tmp_path) == last


def test_the_only_checkpoint_is_not_thrown_away(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), SUMMARY, Progress(0))
        (chunk,) = chunks(checkpoints, "params/w")
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
        with pytest.raises(checkpoint.DamagedError, match=r"0 is damaged: .*igest"):
            checkpoints.whole(tmp_path)
        assert chunk.exists()
