"""The losses, and training on many workers: alike in every mode, and resumable."""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp import compressors
from jaxsp.gan.training import TrainConfig, TrainingDivergedError, checkpoint
from jaxsp.robust import Attack, encoder, inner_maximum, masked_lm, text, training

MODEL = encoder.Albert(260, 8, 16, layers=1, heads=2, length=8)
ATTACK = Attack(2.0, 2)
SENTENCE = "the cat sat on the mat and the dog lay by the door. "


@pytest.fixture(scope="module")
def sentences():
    tokenizer = text.train_tokenizer([SENTENCE], 260)
    ids = np.array(tokenizer.encode(SENTENCE * 40).ids, np.int32)
    rows = ids[: len(ids) // 8 * 8].reshape(-1, 8)
    return text.Text(rows[:-20], rows[-20:], tokenizer)


@pytest.fixture(scope="module")
def params():
    tokens = jnp.zeros((1, 8), jnp.int32)
    return jax.jit(MODEL.init)(jax.random.key(0), tokens, tokens)["params"]


@pytest.fixture(autouse=True, scope="module")
def drawn_alike():
    """What draws the parameters of an encoder is compiled once for all programs."""
    with mock.patch.object(
        training, "initializer", functools.cache(training.initializer)
    ):
        yield


def averaging(workers, name):
    axis, key = workers.axis_name, jax.random.key(7)
    fours = compressors.contractive(compressors.quantize(4))
    means = {
        "plain": lambda: jaxsp.average(axis),
        "quantize": lambda: jaxsp.error_feedback_average(
            jaxsp.channel(axis, fours, fours, key=key)
        ),
        "low_rank": lambda: jaxsp.error_feedback_average(
            jaxsp.channel(axis, compressors.low_rank(1), key=key, route="gather")
        ),
    }
    if name == "vr_masha1":
        channel = jaxsp.channel(axis, compressors.rand_k(0.3), key=key)
        return jaxsp.methods.vr_masha1(0.1, channel, 0.5)
    return optax.chain(means[name](), optax.adamw(1e-3))


@functools.cache
def program_of(name, devices):
    """One program of each kind, so that equal steps are compiled once."""
    workers = jaxsp.Workers(4, jax.devices()[:devices])
    method = averaging(workers, name)
    return training.program(
        MODEL, method, workers, ATTACK, batch_size=4, full_batches=2
    )


def train(sentences, name="plain", devices=1, steps=4, **options):
    made = program_of(name, devices)
    config = TrainConfig(
        steps=steps, log_every=1, eval_every=2, checkpoint_every=2, progress=False
    )
    return training.train(made, sentences, config, lambda params: {}, **options)


def test_gaps_are_of_the_rows_and_the_same_number_in_each():
    rows = jax.random.randint(jax.random.key(1), (400, 8), 2, 260)
    batch = masked_lm.mask(jax.random.key(2), rows, 260)
    assert batch.predict.shape == (400, 2)  # 15 % of 8, rounded up
    assert (batch.predict[:, 0] < batch.predict[:, 1]).all()
    there = np.take_along_axis(np.asarray(rows), np.asarray(batch.predict), 1)
    np.testing.assert_array_equal(batch.targets, there)
    changed = np.asarray(batch.tokens != rows)
    gaps = np.zeros_like(changed)
    np.put_along_axis(gaps, np.asarray(batch.predict), True, axis=1)
    assert not (changed & ~gaps).any()
    shown = np.take_along_axis(np.asarray(batch.tokens), np.asarray(batch.predict), 1)
    assert 0.75 < (shown == text.MASK).mean() < 0.85
    assert 0.06 < (shown == there).mean() < 0.15
    assert np.bincount(np.asarray(batch.predict).ravel(), minlength=8).min() > 50


def test_the_gradient_is_that_at_the_perturbation(params):
    rows = jax.random.randint(jax.random.key(1), (4, 8), 2, 260)
    batch = masked_lm.mask(jax.random.key(2), rows, 260)
    f = jax.jit(lambda *args: masked_lm.loss(MODEL)(*args)[0])
    zero = masked_lm.start(MODEL, rows)
    delta = jax.jit(functools.partial(ATTACK.ascend, jaxsp.saddle(f)))(
        params, zero, batch
    )
    norms = np.linalg.norm(np.reshape(delta, (4, -1)), axis=1)
    np.testing.assert_allclose(norms, ATTACK.radius, rtol=1e-5)
    assert f(params, delta, batch) > f(params, zero, batch) + 0.01
    found = jax.jit(inner_maximum(f, ATTACK))(params, zero, batch)
    wanted = jax.jit(jax.grad(f))(params, delta, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted
    )


def test_a_longer_attack_is_a_stronger_one(params, sentences):
    found = [
        masked_lm.evaluator(MODEL, Attack(2.0, steps), sentences.valid, 10)(params)
        for steps in (0, 1, 10)
    ]
    robust = [one["robust_loss"] for one in found]
    assert robust[0] == pytest.approx(found[0]["clean_loss"], abs=1e-6)
    assert robust[0] < robust[1] <= robust[2] + 1e-4


def test_changes_can_be_read(params, sentences):
    rows = sentences.valid[:2]
    show = masked_lm.changes(MODEL, Attack(30.0, 5), rows, sentences.tokenizer)
    lines = show(params).splitlines()
    assert lines[0] == "row 0, perturbation of norm 30:"
    assert "{" in lines[1]
    assert lines[2].count(" -> ") == 2 + 2 * 2
    still = masked_lm.changes(MODEL, Attack(0.0, 5), rows, sentences.tokenizer)
    assert "{" not in still(params)


@pytest.mark.parametrize(("name", "devices"), [("quantize", 2), ("vr_masha1", 4)])
def test_all_modes_train_alike(sentences, name, devices):
    one, other = (train(sentences, name, n, steps=3) for n in (1, devices))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        one.params,
        other.params,
    )
    for a, b in zip(one.history, other.history, strict=True):
        assert a["bits_up"] == b["bits_up"]
        assert a["bits_down"] == b["bits_down"]
    losses = [r.history[-1]["loss"] for r in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_counted_bits_are_those_of_the_payloads(sentences, params):
    leaves = jax.tree.leaves(params)
    dense = 32 * sum(leaf.size for leaf in leaves)
    (*_, last) = train(sentences, steps=2).history
    assert last["bits_up"] == last["bits_down"] == 2 * dense * 2 * 3 // 4
    compress = functools.partial(jax.eval_shape, compressors.low_rank(1).compress)
    payload = sum(
        leaf.size * leaf.dtype.itemsize * 8
        for x in leaves
        for leaf in jax.tree.leaves(compress(jax.random.key(0), x))
    )
    (*_, last) = train(sentences, "low_rank", steps=2).history
    assert last["bits_up"] == last["bits_down"] == 2 * 3 * payload
    assert payload < dense / 3


def test_a_perturbation_does_not_travel(sentences):
    found = []
    for attack, size in ((Attack(2.0, 3), 2), (Attack(2.0, 0), 8)):
        workers = jaxsp.Workers(2, jax.devices()[:1])
        made = training.program(
            MODEL, averaging(workers, "plain"), workers, attack, batch_size=size
        )
        config = TrainConfig(steps=1, log_every=1, progress=False)
        result = training.train(made, sentences, config, lambda params: {})
        found.append(result.history[-1]["bits_up"])
    assert found[0] == found[1] > 0


def test_a_run_goes_on_bit_for_bit(sentences, tmp_path):
    name = "quantize"
    whole = train(sentences, name, workdir=tmp_path / "whole")
    train(sentences, name, steps=2, workdir=tmp_path / "parts")
    parts = train(sentences, name, workdir=tmp_path / "parts", resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    lines = [
        [json.loads(x) | {"seconds": 0} for x in p.read_text().splitlines()]
        for p in (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    ]
    assert lines[0] == lines[1]
    with pytest.raises(checkpoint.WorkdirError, match="holds another run"):
        train(sentences, name, workdir=tmp_path / "parts")
    other = sentences._replace(train=sentences.train[::-1])
    with pytest.raises(checkpoint.WorkdirError, match="data_crc32"):
        train(other, name, workdir=tmp_path / "parts", resume=True, steps=6)


def test_training_learns_the_sentence(sentences):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = optax.chain(jaxsp.average(workers.axis_name), optax.adamw(1e-2))
    made = training.program(MODEL, tx, workers, Attack(0.5, 1), batch_size=16)
    evaluate = masked_lm.evaluator(MODEL, Attack(0.5, 5), sentences.valid, 20)
    config = TrainConfig(steps=60, log_every=30, eval_every=60, progress=False)
    result = training.train(made, sentences, config, evaluate)
    before, after = result.history[0], result.history[-1]
    assert after["clean_loss"] < after["robust_loss"] < before["clean_loss"] - 2


def test_the_attack_grows_in_its_warm_up(sentences):
    """From nothing: the first step is that of plain training, and no later one is."""
    found = []
    for attack, warmup in ((Attack(2.0, 0), 0), (Attack(2.0, 2), 3)):
        workers = jaxsp.Workers(2, jax.devices()[:1])
        made = training.program(
            MODEL, averaging(workers, "plain"), workers, attack, attack_warmup=warmup
        )
        config = TrainConfig(steps=2, log_every=1, progress=False)
        result = training.train(made, sentences, config, lambda params: {})
        found.append([record["loss"] for record in result.history[1:]])
    (plain, later), (first, second) = found
    assert first == pytest.approx(plain, abs=1e-5)
    assert second > later + 1e-3


def test_what_diverges_says_so(sentences):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = optax.chain(jaxsp.average(workers.axis_name), optax.sgd(float("1e38")))
    made = training.program(MODEL, tx, workers, ATTACK, batch_size=2)
    config = TrainConfig(steps=5, log_every=1, progress=False)
    with pytest.raises(TrainingDivergedError, match="not finite at step"):
        training.train(made, sentences, config, lambda params: {})


def test_wrong_arguments(sentences):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        training.program(MODEL, optax.sgd(1.0), workers, ATTACK, batch_size=0)
    method: object = jaxsp.average
    with pytest.raises(ValueError, match="method must be an optax transformation"):
        training.program(MODEL, method, workers, ATTACK)
    few = sentences._replace(train=sentences.train[:3])
    with pytest.raises(ValueError, match="a row for each of the 4 workers, got 3"):
        train(few)
