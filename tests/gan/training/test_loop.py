"""The step of all workers and the training loop."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import threading
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import jaxsp
from jaxsp.gan import bars, data, losses, md_gan, models, step
from jaxsp.gan.data import partition
from jaxsp.gan.md_gan import run
from jaxsp.gan.models.gan import initializer
from jaxsp.gan.training import checkpoint, directory, flights, loop, plots, records

COUNT = 3
WORKERS = jaxsp.Workers(COUNT, jax.devices()[:1])
ADAM = optax.adam(1e-3)
MD_GAN = md_gan.MDGan(ADAM, ADAM)
AXIS = WORKERS.axis_name
GAN = models.mlp((2,), latent_size=4, width=8, depth=1)
LOSSES = losses.non_saturating(GAN)
METHOD = jaxsp.methods.dp_oadam(1e-2, jaxsp.topology.ring(COUNT), axis_name=AXIS)
CONFIG = loop.TrainConfig(
    steps=20,
    log_every=5,
    eval_every=10,
    checkpoint_every=10,
    eval_samples=600,
    progress=False,
)


OPTIONS = ("batch_size", "ema_decay", "steps_per_call", "same_sample")


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


@pytest.fixture(scope="module")
def mixture():
    full = data.load("mixture_ring")
    return dataclasses.replace(
        full, train=full.train[:300], train_labels=full.train_labels[:300]
    )


@pytest.fixture
def fit(fit_and_draw, monkeypatch):
    """`fit_and_draw` without the pictures, which take most of the time."""
    monkeypatch.setattr(plots, "plot_samples", lambda *args: None)
    monkeypatch.setattr(plots, "plot_curves", lambda *args: None)
    monkeypatch.setattr(partition, "plot", lambda *args: None)
    return fit_and_draw


draw_of = functools.cache(initializer)


@functools.cache
def program_of(method=METHOD, workers=WORKERS, gan=GAN, game=LOSSES, **options):
    """The program of a method or of an MD-GAN; equal steps are compiled once."""
    options = {"batch_size": 8, **options}
    md = isinstance(method, md_gan.MDGan)
    with mock.patch.object(run if md else step, "initializer", draw_of):
        if md:
            return method.program(gan, game, workers, **options)
        return step.program(gan, game, method, workers, **options)


@pytest.fixture
def fit_and_draw(mixture):
    """`loop.train` on the small mixture, with what `program_of` takes."""
    iid = partition.iid(mixture.train_labels, COUNT, seed=0)
    names = ("method", "workers", "gan", "game", *OPTIONS)

    def fit(config=CONFIG, parts=iid, **kwargs):
        own = {name: kwargs.pop(name) for name in names if name in kwargs}
        return loop.train(program_of(**own), mixture, parts, config, **kwargs)

    return fit


def score(samples):
    return {"frechet_distance": float(np.mean(samples)), "size": len(samples)}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def lines(path):
    """The metrics of a run without the time they took."""
    written = records.read_metrics(path / "metrics.jsonl")
    return [record | {"seconds": None} for record in written]


def contents(path):
    files = (p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}


@pytest.mark.parametrize("kind", ["method", "md_gan"])
@pytest.mark.parametrize("devices", [1, COUNT])
def test_after_the_first_step_nothing_is_compiled(mixture, caplog, kind, devices):
    """What a first step returns is placed as what it got, so that a second is quick."""
    workers = jaxsp.Workers(COUNT, jax.devices()[:devices])
    method = METHOD if kind == "method" else MD_GAN
    program = program_of(method, workers)
    parts = np.arange(300).reshape(COUNT, -1)
    stacked = workers.shard(partition.stack(mixture.train, parts))
    state, key = program.init(jax.random.key(0)), jax.random.key(1)
    for index in range(3):
        with jax.log_compiles(index > 0), caplog.at_level("WARNING"):
            state, _ = program.step(state, *stacked, key, 1)
    assert [r.message[:90] for r in caplog.records if "Compiling" in r.message] == []


# ------------------------------------------------------------------ one step


def probe_step(operators, **kwargs):
    """A step whose update is what `operators` makes of the two fields it is given.

    The game is x·(mean of the batch), y·(mean of the batch), so that the field at any
    point is the mean of the batch that was drawn for it.
    """

    def update(g, state, params, operator_fn, **_):
        return operators(g, operator_fn(params)), state

    method = optax.GradientTransformationExtraArgs(lambda z: optax.EmptyState(), update)
    game = losses.Losses(
        lambda x, y, batch, key: x @ batch.mean(0),
        lambda x, y, batch, key: y @ batch.mean(0),
    )
    start = step.TrainState(
        step=jnp.zeros(COUNT, jnp.int32),
        params=jaxsp.MinMax(jnp.zeros((COUNT, 2)), jnp.zeros((COUNT, 2))),
        opt_state=optax.EmptyState(),
        ema=jnp.zeros((COUNT, 2)),
    )
    return step.make_step(game, method, WORKERS, batch_size=4, **kwargs), start


def test_each_worker_draws_two_fresh_batches_from_its_own_share():
    """The first batch goes to x, the second to y; a share holds its worker's number."""
    run, state = probe_step(lambda first, second: jaxsp.MinMax(first.x, second.x))
    shares = np.stack([np.full((50, 2), m, np.float32) for m in range(COUNT)])
    shares[:, :, 1] = np.random.default_rng(0).normal(size=50)  # alike on all workers
    sizes = np.array([50, 50, 2], np.int32)
    shares[2, 2:] = 1e9  # padding
    before = jaxsp.MinMax(np.zeros((COUNT, 2)), np.zeros((COUNT, 2)))
    drawn = []
    for _ in range(3):
        state, _ = run(state, shares, sizes, jax.random.key(0), 1)
        after = jax.tree.map(np.array, state.params)
        for moved in (after.x - before.x, after.y - before.y):
            np.testing.assert_allclose(moved[:, 0], [0, 1, 2], atol=1e-5)
            drawn += [*moved[:2, 1]]
        before = after
    assert np.abs(after.x).max() < 1e3
    # Workers, first and second batch, and steps all draw differently.
    assert len(np.unique(np.round(drawn, 4))) == len(drawn) == 12


def test_average_of_the_generator_is_exponential_with_a_short_memory_at_first():
    run, state = probe_step(
        lambda first, second: jaxsp.MinMax(jnp.ones(2), jnp.ones(2)), ema_decay=0.3
    )
    shares, sizes = np.zeros((COUNT, 5, 2), np.float32), np.full(COUNT, 5, np.int32)
    ema = 0.0
    for t in range(12):
        state, _ = run(state, shares, sizes, jax.random.key(0), 1)
        decay = min(0.3, (1 + t) / (10 + t))
        ema = decay * ema + (1 - decay) * (t + 1)
        np.testing.assert_allclose(state.ema, np.full((COUNT, 2), ema), rtol=1e-5)
    assert state.step.tolist() == [12] * COUNT


def test_the_second_gradient_costs_nothing_where_it_is_not_used():
    """Losses are traced once a gradient."""
    traced = []

    def counted(loss):
        return lambda *args: traced.append(1) or loss(*args)

    counting = losses.Losses(*map(counted, LOSSES))
    shares, sizes = jnp.zeros((COUNT, 20, 2)), jnp.full(COUNT, 20)
    for method, calls in (
        (jaxsp.methods.cp_oadam(1e-2, AXIS), 2),
        (jaxsp.methods.extra_step(1e-2, AXIS), 4),
    ):
        state = step.init_state(GAN, method, WORKERS, jax.random.key(0))
        traced.clear()
        run = step.make_step(counting, method, WORKERS, batch_size=4)
        jax.eval_shape(run, state, shares, sizes, jax.random.key(0), 1)
        assert len(traced) == calls


def test_buffers_are_given_up_and_never_shared():
    """A state may hold the parameters themselves, which cannot be given up twice."""
    holder = optax.GradientTransformation(
        lambda params: {"start": params},
        lambda g, state, params=None: (g, state),
    )
    state = step.init_state(GAN, holder, WORKERS, jax.random.key(0))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    copy = jax.tree.map(np.array, state)
    run = step.make_step(LOSSES, holder, WORKERS, batch_size=4)
    shares, sizes = np.ones((COUNT, 20, 2), np.float32), np.full(COUNT, 20, np.int32)
    after, _ = run(state, shares, sizes, jax.random.key(0), 1)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert_same(after.opt_state, copy.opt_state)
    assert not np.array_equal(
        jax.tree.leaves(after.params)[0], jax.tree.leaves(copy.params)[0]
    )


# ------------------------------------------------------------------ what is recorded


def test_records_what_happened(fit_and_draw, tmp_path):
    seen = []
    result = fit_and_draw(score=score, callback=seen.append, workdir=tmp_path)
    assert [r["step"] for r in seen] == [0, 5, 10, 15, 20]
    assert seen == result.history == records.read_metrics(tmp_path / "metrics.jsonl")
    assert (result.step, result.signal) == (20, None)
    where = f"{len(result.files)} files in {tmp_path}"
    assert repr(result) == f"Result(step=20, 5 records, {where})"
    names = {"step", "seconds", "loss_generator", "loss_discriminator"}
    names |= {"bits_up", "bits_down", "consensus_distance", "consensus_relative"}
    scored = {"frechet_distance", "size", "d_real", "d_fake"}
    assert [set(r) - names for r in seen] == [scored, set(), scored, set(), scored]
    assert all(names <= set(r) for r in seen)
    assert seen[0]["loss_generator"] is None
    assert 0.2 < seen[-1]["loss_generator"] < 2
    assert seen[0]["size"] == 600
    params = sum(x[0].size for x in jax.tree.leaves(result.state.params))
    for r in seen:  # two neighbours on the ring, 32 bits a parameter
        assert r["bits_up"] == r["bits_down"] == r["step"] * params * 64
    assert seen[0]["consensus_distance"] < 1e-6
    assert seen[-1]["consensus_distance"] == pytest.approx(
        float(jaxsp.metrics.consensus_distance(result.state.params)), rel=1e-6
    )
    mean_norm = optax.tree.norm(jax.tree.map(lambda x: x.mean(0), result.state.params))
    assert seen[-1]["consensus_relative"] == pytest.approx(
        seen[-1]["consensus_distance"] / float(mean_norm), rel=1e-6
    )
    seconds = [r["seconds"] for r in seen]
    assert seconds == sorted(seconds)
    pictures = {"curves.png", "partition.png", "samples.png", "samples_000000.png"}
    others = {"checkpoints", "config.json", "metrics.jsonl"}
    assert set(os.listdir(tmp_path)) == pictures | others | {".lock"}
    assert {p.name for p in result.files} == pictures | others
    shown = {n: np.asarray(PIL.Image.open(tmp_path / n).convert("L")) for n in pictures}
    assert all(len(np.unique(picture)) > 20 for picture in shown.values())
    assert not np.array_equal(shown["samples.png"], shown["samples_000000.png"])
    mean = jax.tree.map(lambda stacked: np.mean(stacked, axis=0), result.state.ema)
    assert_close(result.generator, mean)


def test_losses_are_means_since_the_line_before(fit):
    each = fit(config(log_every=1)).history
    for every, calls in ((4, 1), (5, 4)):
        some = fit(config(log_every=every), steps_per_call=calls).history
        for before, line in itertools.pairwise(some):
            window = each[before["step"] + 1 : line["step"] + 1]
            for name in ("loss_generator", "loss_discriminator"):
                mean = np.mean([r[name] for r in window])
                tolerance = 1e-12 if calls == 1 else 1e-4
                assert line[name] == pytest.approx(mean, rel=tolerance)


@pytest.mark.parametrize("kind", ["method", "md_gan"])
def test_a_second_run_of_a_program_compiles_nothing(fit, caplog, kind):
    method = METHOD if kind == "method" else MD_GAN
    for first in (True, False):
        with jax.log_compiles(not first), caplog.at_level("WARNING"):
            fit(config(steps=2), method=method, score=score)
    assert [r.message[:90] for r in caplog.records if "Compiling" in r.message] == []


def test_without_a_directory_nothing_is_written(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = fit(config(steps=3))
    assert os.listdir(tmp_path) == list(result.files) == []
    # There is a line at the end, whether or not its turn has come.
    assert [r["step"] for r in result.history] == [0, 3]
    assert capsys.readouterr() == ("", "")


def test_a_generator_that_stands_still_scores_the_same(fit):
    """Scores use the same latents every time; and what counts no bits may be used."""
    history = fit(config(steps=10), method=optax.set_to_zero(), score=score).history
    first, last = (record["frechet_distance"] for record in (history[0], history[-1]))
    assert last == pytest.approx(first, rel=1e-4)
    assert history[-1]["bits_up"] is history[-1]["bits_down"] is None


# ------------------------------------------------------------------ the same numbers


def test_many_steps_a_call_are_the_same_steps(fit):
    one = fit(steps_per_call=1)
    many = fit(steps_per_call=4)  # 4 does not divide 5 or 10
    assert [r["step"] for r in many.history] == [0, 5, 10, 15, 20]
    assert_close(one.state, many.state)


def test_workers_on_devices_of_their_own_are_the_same_workers(fit):
    spread = jaxsp.Workers(COUNT, jax.devices()[:COUNT])
    assert spread.mode == "shard_map"
    virtual = fit(config(steps=40))
    for calls in (1, 4):
        result = fit(config(steps=40), steps_per_call=calls, workers=spread)
        assert_close(result.state, virtual.state)
        assert result.history[-1]["bits_up"] == virtual.history[-1]["bits_up"]


def four_bits(axis):
    compressor = jaxsp.compressors.scaled(jaxsp.compressors.quantize(4))
    channel = jaxsp.channel(axis, compressor, key=jax.random.key(5))
    return jaxsp.methods.dqgan_adam(1e-2, channel)


BLOCKS = {
    "gossip": lambda axis: jaxsp.methods.dp_oadam(
        1e-2, jaxsp.topology.ring(6), axis_name=axis
    ),
    "four bits": four_bits,
    "local steps": lambda axis: jaxsp.methods.local_extra_adam(1e-2, 3, axis),
}


@pytest.mark.parametrize(
    ("method", "impl"),
    [*((method, "threefry2x32") for method in BLOCKS), ("gossip", "rbg")],
)
def test_workers_in_blocks_are_the_same_workers(fit, mixture, method, impl):
    """Six workers on three devices; to rounding, as the networks are of float32."""
    parts = partition.iid(mixture.train_labels, 6, seed=0)
    results = []
    for devices in (1, 3):
        workers = jaxsp.Workers(6, jax.devices()[:devices])
        made = BLOCKS[method](workers.axis_name)
        with jax.default_prng_impl(impl):
            results.append(fit(method=made, workers=workers, parts=parts))
    assert workers.mode == "blocks"
    assert_close(results[1].state, results[0].state)
    bits = [[r["bits_up"] for r in result.history] for result in results]
    assert bits[0] == bits[1]


METHODS = {
    "dposg": jaxsp.methods.dposg(1e-2, jaxsp.topology.path(COUNT), axis_name=AXIS),
    "rand_dp_oadam": jaxsp.methods.rand_dp_oadam(
        1e-2,
        jaxsp.topology.random_ring(COUNT),
        key=jax.random.key(5),
        axis_name=AXIS,
    ),
    "extra_step_local_sgd": jaxsp.methods.extra_step_local_sgd(1e-2, 3, AXIS),
}


@pytest.mark.parametrize(
    ("method", "steps_per_call"),
    [("dposg", 4), *((name, 1) for name in METHODS)],
)
def test_a_resumed_run_continues_bit_for_bit(fit, tmp_path, method, steps_per_call):
    kwargs = {"method": METHODS[method], "steps_per_call": steps_per_call}
    kwargs["score"] = score
    whole = fit(workdir=tmp_path / "whole", **kwargs)
    parts = tmp_path / "parts"
    for steps in (7, 13, 20):  # neither recorded nor saved in the whole run
        resumed = fit(config(steps=steps), workdir=parts, resume=True, **kwargs)
    assert_same(resumed.state, whole.state)
    assert_same(resumed.generator, whole.generator)
    kept = [r for r in lines(parts) if r["step"] not in (7, 13)]
    assert kept == lines(tmp_path / "whole")
    seconds = [r["seconds"] for r in resumed.history]
    assert seconds == sorted(seconds)


def test_lines_after_the_last_checkpoint_are_written_anew(fit, tmp_path):
    """As after SIGKILL: the metrics are ahead of the checkpoint."""
    fit(workdir=tmp_path / "whole", score=score)

    def kill(record):
        return 1 / (15 - record["step"]) < 0

    killed = tmp_path / "killed"
    with pytest.raises(ZeroDivisionError):
        fit(workdir=killed, score=score, callback=kill)
    assert lines(killed)[-1]["step"] == 15
    fit(workdir=killed, score=score, resume=True)
    assert lines(killed) == lines(tmp_path / "whole")


def test_a_finished_run_is_resumed_without_a_change(fit, tmp_path):
    done = fit(workdir=tmp_path)
    files = contents(tmp_path)
    again = fit(workdir=tmp_path, resume=True)
    assert_same(again.state, done.state)
    assert again.history == done.history
    assert contents(tmp_path) == files


# ------------------------------------------------------------------ how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_with_a_checkpoint(fit, tmp_path, number, terminal):
    handlers = tuple(map(signal.getsignal, (signal.SIGTERM, signal.SIGINT)))

    def stop(record):
        if record["step"] == 5:
            os.kill(os.getpid(), number)

    stopped = fit(workdir=tmp_path / "stopped", callback=stop)
    assert (stopped.step, stopped.signal) == (5, number)
    assert (tmp_path / "stopped" / "checkpoints" / "5").is_dir()
    assert tuple(map(signal.getsignal, (signal.SIGTERM, signal.SIGINT))) == handlers
    resumed = fit(workdir=tmp_path / "stopped", resume=True)
    whole = fit(workdir=tmp_path / "whole")
    assert_same(resumed.state, whole.state)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_a_second_interrupt_ends_at_once(fit, terminal):
    def stop(record):
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(callback=stop)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trains_beside_the_main_thread(fit):
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(config(steps=5))))
    thread.start()
    thread.join()
    assert results[0].step == 5


@functools.cache
def failing_at(update):
    """A method whose update number `update`, from 0, is not a number."""
    return optax.sgd(lambda count: jnp.where(count == update, jnp.nan, 1e-2))


@pytest.mark.parametrize(
    ("grid", "found", "last"),
    [
        # Update 6 spoils the parameters of step 7; the loss is seen to be NaN at 8.
        ({"checkpoint_every": 4}, "generator loss of worker 0 is nan at step 8", 4),
        ({"checkpoint_every": 7}, "a parameter is not finite at step 7", 0),
        ({"log_every": 7}, "a parameter is not finite at step 7", 0),
    ],
)
def test_numbers_that_are_not_finite_stop_it(fit, tmp_path, grid, found, last):
    rare = {"checkpoint_every": 100, "log_every": 100, "eval_every": 100}
    settings = config(**rare | grid)
    with pytest.raises(loop.TrainingDivergedError, match=found) as caught:
        fit(settings, method=failing_at(6), workdir=tmp_path, score=score)
    assert caught.value.checkpoint == tmp_path / "checkpoints" / str(last)
    assert str(caught.value.checkpoint) in str(caught.value)
    assert [r["step"] for r in lines(tmp_path)] == [0]
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == last
        like = program_of(failing_at(6)).init(jax.random.key(1))
        state = checkpoints.restore(last, like)
    assert state.step.tolist() == [last] * COUNT
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_without_checkpoints_it_says_so(fit):
    with pytest.raises(loop.TrainingDivergedError, match="there is no checkpoint"):
        fit(method=failing_at(2))


# ------------------------------------------------------------------ bad arguments


def test_another_run_is_never_touched(fit, tmp_path, mixture):
    fit(config(description={"method": "dp_oadam"}), workdir=tmp_path)
    files = contents(tmp_path)
    other = partition.by_label(mixture.train_labels, COUNT)
    for kwargs, message in [
        ({}, "holds another run"),
        (
            {"resume": True, "config": config(description={"method": "cp"})},
            "method is 'cp' now and 'd",
        ),
        ({"resume": True, "config": config(seed=1)}, "seed is 1 now and 0 there"),
        ({"resume": True, "batch_size": 9}, "batch_size is 9 now and 8"),
        ({"resume": True, "parts": other}, "data_crc32 is"),
        ({"resume": True, "config": config(steps=5)}, "steps must be at least 20"),
        ({"resume": True, "method": optax.sgd(1e-2)}, "opt_state.* missing here"),
    ]:
        with pytest.raises(checkpoint.WorkdirError, match=message):
            fit(workdir=tmp_path, **kwargs)
        assert contents(tmp_path) == files
    for option, value in (
        ("threefry_partitionable", False),
        ("default_prng_impl", "rbg"),
        ("enable_x64", True),
        ("default_matmul_precision", "highest"),
    ):
        message = f"jax_{option} is '{value}' now and '"
        with (
            getattr(jax, option)(value),
            pytest.raises(checkpoint.WorkdirError, match=message),
        ):
            fit(workdir=tmp_path, resume=True)
        assert contents(tmp_path) == files
    # What does not touch the trajectory may change.
    fit(config(steps=25, log_every=1, eval_every=3), workdir=tmp_path, resume=True)


def test_another_version_of_jax_is_noted(fit, tmp_path, caplog):
    fit(config(steps=10), workdir=tmp_path)
    with caplog.at_level("WARNING", "jaxsp.gan"):
        fit(config(steps=11), workdir=tmp_path, resume=True)
        assert not caplog.messages
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace(f'"{jax.__version__}"', '"0.9.1"'))
        fit(config(steps=12), workdir=tmp_path, resume=True)
    (line,) = caplog.messages
    said = f"goes on with jax 0.9.1 -> {jax.__version__}: its numbers may differ"
    assert said in line


def test_that_data_lie_elsewhere_is_not_noted(tmp_path, caplog):
    directory.write_config(tmp_path, {}, {"data_dir": "/a", "jax": "1"})
    directory.note_changes(tmp_path, {"data_dir": "/b", "jax": "1"})
    assert not caplog.messages
    directory.note_changes(tmp_path, {"data_dir": "/b", "jax": "2"})
    assert "goes on with jax 1 -> 2:" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 101}, "at most 100, .* worker 0 holds, got 101"),
        ({"parts": [np.arange(9)]}, "each of the 3 workers, got 1"),
        ({"gan": models.mlp((3,))}, r"samples of shape \(3,\), but .* shape \(2,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(fit, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit(workdir=tmp_path / "a", **kwargs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 2.0),
        ("seed", -1),
        ("seed", 2**32),
        ("description", {"rate": float("nan")}),
        ("description", {"rate": object()}),
        ("log_every", True),
        ("steps_per_call", 0),
        ("ema_decay", 1.0),
    ],
)
def test_bad_settings_are_refused(field, value):
    makes = [program_of] if field in OPTIONS else [loop.TrainConfig]
    if field in ("batch_size", "ema_decay"):
        adam = optax.adam(1e-3)
        makes.append(functools.partial(program_of, md_gan.MDGan(adam, adam)))
    for make in makes:
        with pytest.raises(ValueError, match=rf"{field} must be .*got {value}"):
            make(**{field: value})


# ------------------------------------------------------------------ other workers


def other_workers(mixture, count):
    """So many workers, the data divided among them, to go on with."""
    workers = jaxsp.Workers(count, jax.devices()[:1])
    parts = partition.iid(mixture.train_labels, count, seed=0)
    return {"workers": workers, "parts": parts, "resume": True}


def test_other_workers_go_on_from_the_mean(fit, tmp_path, mixture, caplog):
    method = jaxsp.methods.dposg(1e-2, jaxsp.topology.ring(COUNT), axis_name=AXIS)
    first = fit(method=method, workdir=tmp_path)
    reported = jax.vmap(jaxsp.methods.eval_params)(
        first.state.opt_state, first.state.params
    )
    means = jax.tree.map(lambda x: np.asarray(x).mean(0), reported)

    two = other_workers(mixture, 2)
    axis, complete = two["workers"].axis_name, jaxsp.topology.complete(2)
    two["method"] = jaxsp.methods.dposg(1e-2, complete, axis_name=axis)
    stopped = fit(
        config(steps=25),
        workdir=tmp_path,
        callback=lambda record: record["step"] == 20,
        **two,
    )
    assert "step 20: 3 -> 2 workers" in caplog.text
    assert "mean of the parameters" in caplog.text
    assert stopped.step == 20
    for m in range(2):
        mine = jax.tree.map(lambda x, m=m: x[m], stopped.state.params)
        assert_close(mine, means)
    assert_close(stopped.generator, first.generator)
    assert jax.tree.leaves(stopped.state.opt_state.count)[0].tolist() == [0, 0]
    (said,) = [r for r in stopped.history if "workers" in r]
    assert said["workers"] == "3 -> 2 workers"
    assert said["bits_up"] == first.history[-1]["bits_up"]

    # Nothing was saved since: it goes on from the same mean again, and once there is a
    # checkpoint of two workers, bit for bit.
    whole = fit(config(steps=35), workdir=tmp_path, **two)
    again = shutil.copytree(tmp_path, tmp_path.with_name("again"))
    shutil.rmtree(again / "checkpoints" / "35")
    same = fit(config(steps=35), workdir=again, **two)
    assert_same(whole.state, same.state)
    assert lines(tmp_path) == lines(again)
    # Of going on that left no checkpoint no line is left either.
    assert sum("workers" in record for record in whole.history) == 1
    bits = [record["bits_up"] for record in whole.history]
    assert bits == sorted(bits)
    assert bits[-1] > said["bits_up"]
    settings = json.loads((again / "config.json").read_text())["settings"]
    assert (settings["workers"], settings["conditional"]) == (2, False)


def test_a_callback_can_end_it(fit, tmp_path):
    seen = []
    result = fit(
        workdir=tmp_path,
        callback=lambda record: seen.append(record["step"]) or record["step"] >= 5,
    )
    assert seen == [0, 5, 5]  # once more, with a score
    assert result.step == 5
    assert result.signal is None
    whole = fit(workdir=tmp_path, resume=True)
    assert_same(whole.state, fit().state)


# ------------------------------------------------------------------ samples and classes


def test_the_second_gradient_may_be_on_the_first_sample():
    run, state = probe_step(
        lambda first, second: jaxsp.MinMax(first.x - second.x, first.y - second.y),
        same_sample=True,
    )
    shares = np.random.default_rng(0).normal(size=(COUNT, 50, 2)).astype(np.float32)
    state, _ = run(state, shares, np.full(COUNT, 50), jax.random.key(0), 1)
    assert not np.any(state.params.x)
    assert not np.any(state.params.y)


def test_a_conditional_gan_is_given_images_with_their_classes(fit, mixture, tmp_path):
    """The batch's labels are those of its images: here the mode tells the angle."""
    gan = models.mlp((2,), latent_size=12, width=8, depth=1, num_classes=8)

    def wrong(x, y, batch, key):
        points, labels = batch
        far = jnp.linalg.norm(
            points - jnp.asarray(mixture.centers)[labels], axis=-1
        ).max()
        return far + 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves((x, y)))

    settings, game = config(steps=2, log_every=1), losses.Losses(wrong, wrong)
    result = fit(settings, gan=gan, game=game, workdir=tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["settings"]["conditional"] is True  # its scores depend on it
    assert 0 < result.history[-1]["loss_generator"] < 6 * mixture.std
    other = models.mlp((2,), latent_size=12, width=8, num_classes=5)
    with pytest.raises(ValueError, match=r"conditional on 5 classes.*has 8"):
        fit(gan=other, game=losses.non_saturating(other))


def test_a_signal_at_the_very_end_leaves_a_checkpoint(fit, tmp_path, monkeypatch):
    """It comes when everything for the step has been written."""

    def update(bar, step, **numbers):
        if step == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(bars.ProgressBar, "update", update)
    result = fit(config(log_every=15), workdir=tmp_path)
    assert (result.step, result.signal) == (15, signal.SIGTERM)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 15


def test_a_run_that_was_killed_at_its_start_goes_on(fit, tmp_path, monkeypatch):
    def killed(workdir, settings):
        (workdir / "checkpoints").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "Checkpoints", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(workdir=tmp_path)
    assert fit(config(steps=5), workdir=tmp_path, resume=True).step == 5


def test_seconds_are_without_the_call_that_compiles(fit, monkeypatch):
    """By a clock that ticks once whenever it is looked at."""
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(flights, "time", clock)
    result = fit(config(steps=3, log_every=1))
    assert [record["seconds"] for record in result.history] == [0, 0, 1, 2]


def test_an_optimizer_may_keep_the_parameters_of_a_generator(fit):
    """Buffers are given up at every update, and none twice."""
    holder = optax.GradientTransformation(
        lambda params: params, lambda g, state, params=None: (g, state)
    )
    result = fit(config(steps=2), method=md_gan.MDGan(holder, optax.sgd(0.1)))
    assert result.step == 2


def test_the_dead_do_not_come_back_with_other_workers(fit, tmp_path, mixture):
    sgd = optax.sgd(0.1)
    method = md_gan.MDGan(sgd, sgd, alive=lambda step: [step < 2, True, True])
    three = fit(config(steps=4), method=method, workdir=tmp_path)
    one = fit(
        config(steps=8),
        method=md_gan.MDGan(sgd, sgd),
        workdir=tmp_path,
        callback=lambda record: record["step"] == 4,
        **other_workers(mixture, 1),
    )
    first_alive = jax.tree.map(lambda leaf: leaf[1:2], three.state.params.y)
    assert_same(one.state.params.y, first_alive)


def test_an_md_gan_goes_on_with_other_workers(fit, tmp_path, mixture, caplog):
    """Three discriminators go to five workers in turn."""
    adam = optax.adam(1e-2, b1=0.5)
    method = md_gan.MDGan(adam, adam, swap_every=3)
    three = fit(config(steps=4, log_every=4), method=method, workdir=tmp_path)
    five = fit(
        config(steps=8, log_every=4),
        method=method,
        workdir=tmp_path,
        callback=lambda record: record["step"] == 4,
        **other_workers(mixture, 5),
    )
    assert "3 -> 5 workers" in caplog.text
    assert "one of the discriminators in turn" in caplog.text
    assert_same(five.state.params.x, three.state.params.x)
    turn = np.arange(5) % 3
    in_turn = jax.tree.map(lambda leaf: np.asarray(leaf)[turn], three.state.params.y)
    assert_same(five.state.params.y, in_turn)
    assert_same(five.generator, three.generator)
    assert five.history[-1]["bits_up"] == three.history[-1]["bits_up"] > 0
