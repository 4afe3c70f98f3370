"""MD-GAN against a NumPy loop written from the paper, and what it must never do."""

import functools
import itertools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_md_gan as reference
from flax import linen as nn
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxsp
from jaxsp.gan import data, losses, md_gan, models, step
from jaxsp.gan.data import partition
from jaxsp.gan.training import loop, plots

GAN = models.mlp((2,), latent_size=3, width=6, depth=1, dtype=jnp.float64)
LOSSES = losses.non_saturating(GAN)
NETS = reference.Nets(3, 6, 2, 6)
RATES = {"lr": 0.01}, {"lr": 0.03}  # of the server and of the workers
OPTIMIZERS = tuple(optax.adam(rate["lr"], b1=0.5, b2=0.9, eps=1e-8) for rate in RATES)
ADAMS = tuple(reference.Adam(**rate) for rate in RATES)
MDGan = functools.partial(md_gan.MDGan, *OPTIMIZERS)
init = jax.jit(models.init, static_argnums=0)


class Judge(nn.Module):
    """A discriminator with a second head, for the class."""

    num_classes: int

    @nn.compact
    def __call__(self, samples):
        h = nn.tanh(nn.Dense(5, param_dtype=jnp.float64)(samples))
        out = nn.Dense(1 + self.num_classes, param_dtype=jnp.float64)(h)
        return out[:, 0], out[:, 1:]


CONDITIONAL = models.Gan(GAN.generator, Judge(4), 3 + 4, (2,), num_classes=4)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def rows(tree, count):
    """A stacked tree as [count, parameters]."""
    leaves = [np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


def assert_equal(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# ---------------------------------------------------------------------- who gets what


@pytest.mark.parametrize(
    ("alive", "k", "g", "d"),
    [
        ([1, 1, 1, 1, 1], 1, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ([1, 1, 1, 1, 1], 2, [0, 1, 0, 1, 0], [1, 0, 1, 0, 1]),
        ([1, 1, 1, 1, 1], 5, [0, 1, 2, 3, 4], [1, 2, 3, 4, 0]),
        ([0, 1, 1, 0, 1], 3, [None, 0, 1, None, 2], [None, 1, 2, None, 0]),
        ([1], 1, [0], [0]),
    ],
)
def test_batches_go_round_among_the_living(alive, k, g, d):
    actual = md_gan.assignment(np.array(alive, bool), k)
    for index, expected in zip(actual, (g, d), strict=True):
        index = np.asarray(index)
        assert index.shape == (len(alive),)
        assert np.issubdtype(index.dtype, np.integer)
        assert ((index >= 0) & (index < k)).all()  # an index, even for the dead
        for have, want in zip(index, expected, strict=True):
            assert want is None or have == want


def test_the_server_generates_distinct_batches(x64):
    x = init(GAN, jax.random.key(0)).x
    keys = jax.random.split(jax.random.key(1), 3)
    generate = jax.jit(md_gan.server_generate, static_argnums=(0, 3))
    fakes, latents = generate(GAN, x, keys, 4)
    assert fakes.shape == (3, 4, 2)
    assert latents.shape == (3, 4, 3)
    flattened = models.generate(GAN, x, latents.reshape(12, 3))
    assert_equal(fakes.reshape(12, 2), flattened)
    for i, j in itertools.combinations(range(3), 2):
        assert not np.isclose(latents[i], latents[j]).any()
    for j in range(3):
        assert_equal(latents[j], models.latents(GAN, keys[j], 4))


def test_a_conditional_server_sends_classes(x64):
    x = init(CONDITIONAL, jax.random.key(0)).x
    keys = jax.random.split(jax.random.key(1), 2)
    (fakes, labels), latents = md_gan.server_generate(CONDITIONAL, x, keys, 5)
    assert fakes.shape == (2, 5, 2)
    for j in range(2):
        assert_same(labels[j], models.labels_of(CONDITIONAL, latents[j]))
        assert_equal(fakes[j], models.generate(CONDITIONAL, x, latents[j]))


# ---------------------------------------------------------------- the server's gradient


@functools.partial(jax.jit, static_argnums=0)
def drawn(gan, keys, latent_keys):
    """A discriminator for each key, and a batch of three latents for each other one."""
    y = jax.vmap(lambda key: models.init(gan, key).y)(keys)
    return y, jax.vmap(lambda key: models.latents(gan, key, 3))(latent_keys)


@functools.cache
def both_gradients(gan, k):
    """The gradient of the server, and that of the mean loss; and the server's step."""
    loss = losses.acgan(gan) if gan.num_classes else losses.non_saturating(gan)

    def on(samples, latents):
        if gan.num_classes:
            return samples, models.labels_of(gan, latents)
        return samples

    @jax.jit
    def run(x, y, latents, g_index, alive):
        batches = jax.vmap(lambda z: models.generate(gan, x, z))(latents)
        feedback = jax.vmap(
            lambda y, j: jax.grad(
                lambda s: loss.generator_on(y, on(s, latents[j])),
            )(batches[j])
        )(y, g_index)
        feedback = jnp.where(alive[:, None, None], feedback, jnp.nan)

        def mean_loss(x):
            values = jax.vmap(
                lambda y, j: loss.generator_on(
                    y, on(models.generate(gan, x, latents[j]), latents[j])
                )
            )(y, g_index)
            return jnp.where(alive, values, 0).sum() / alive.sum()

        optimizer = optax.sgd(0.5)
        state = optimizer.init(x)
        after, _, gradient = md_gan.server_update(
            gan, optimizer, x, state, latents, feedback, g_index, alive
        )
        moved = jax.tree.map(lambda a, b: (a - b) / 0.5, x, after)
        return [ravel_pytree(t)[0] for t in (gradient, jax.grad(mean_loss)(x), moved)]

    return run


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    case=st.sampled_from([(GAN, 5, 2), (GAN, 3, 3), (CONDITIONAL, 5, 2)]),
)
def test_the_server_descends_the_mean_loss(seed, case):
    """∇_w (1/N) Σ_n B_n(G_w(Z_n)); the feedback of the dead is NaN and counts not."""
    gan, N, k = case
    rng = np.random.default_rng(seed)
    alive = rng.random(N) < 0.7
    alive[rng.integers(N)] = True
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), N + 1 + k)
        x = init(gan, keys[N]).x
        y, latents = drawn(gan, keys[:N], keys[-k:])
        g_index, _ = md_gan.assignment(alive, k)
        actual, expected, moved = both_gradients(gan, k)(
            x, y, latents, jnp.asarray(g_index), jnp.asarray(alive)
        )
    assert np.abs(expected).max() > 1e-3
    assert_equal(actual, expected)
    assert_equal(moved, expected)


# ------------------------------------------------- the loop of functions, and the paper


@functools.cache
def iteration(L):
    """An iteration made of the module's functions."""

    @jax.jit
    def run(x, state_x, y, state_y, latents, real, g_index, d_index, alive):
        fakes = jax.vmap(lambda z: models.generate(GAN, x, z))(latents)
        worker = functools.partial(
            md_gan.worker_step, LOSSES, OPTIMIZERS[1], disc_steps=L
        )
        *new, feedback, values = jax.vmap(worker, in_axes=(0,) * 4 + (None,))(
            y, state_y, real, (fakes[d_index], fakes[g_index]), jax.random.key(0)
        )
        y, state_y = jax.tree.map(
            lambda a, b: jnp.where(alive.reshape(-1, *[1] * (a.ndim - 1)), a, b),
            tuple(new),
            (y, state_y),
        )
        x, state_x, _ = md_gan.server_update(
            GAN, OPTIMIZERS[0], x, state_x, latents, feedback, g_index, alive
        )
        return x, state_x, y, state_y, values

    return run


def test_fifty_iterations_are_those_of_the_paper(x64):
    """With L steps, k batches, swaps and crashes; a dead worker has but NaN to draw."""
    N, k, L = 5, 2, 3
    b, T = 3, 50
    rng = np.random.default_rng(N)
    Z, real = rng.normal(size=(T, k, b, 3)), rng.normal(size=(T, N, b, 2))
    alive = np.ones((T, N), bool)
    alive[20:, 1] = alive[35:, 4] = False
    swaps = {i: md_gan.derangement(rng, alive[i]) for i in range(4, T, 5)}
    keys = jax.random.split(jax.random.key(3), N)
    x, (y, _) = init(GAN, jax.random.key(2)).x, drawn(GAN, keys, keys)
    expected = reference.md_gan(
        NETS,
        flat(x),
        rows(y, N),
        lambda i, j: Z[i, j],
        lambda i, n: real[i, n],
        T,
        *ADAMS,
        k=k,
        L=L,
        swaps=swaps,
        alive=lambda i: alive[i],
    )
    real = np.where(alive[:, :, None, None], real, np.nan)
    state_x = OPTIMIZERS[0].init(x)
    state_y = jax.vmap(OPTIMIZERS[1].init)(y)
    for i in range(T):
        g_index, d_index = map(jnp.asarray, md_gan.assignment(alive[i], k))
        x, state_x, y, state_y, values = iteration(L)(
            x, state_x, y, state_y, Z[i], real[i], g_index, d_index, alive[i]
        )
        if i in swaps:
            y, state_y = md_gan.swap((y, state_y), swaps[i])
        assert_equal(flat(x), expected.w[i + 1])
        assert_equal(rows(y, N), expected.theta[i + 1])
        values = np.where(alive[i][:, None], values, np.nan)
        assert_equal(values, expected.losses[i], 1e-6)  # recorded in float32
    assert np.abs(expected.w[-1] - expected.w[0]).max() > 0.1


# ------------------------------------------------------------------------------- swaps


def test_a_swap_gives_place_n_what_was_at_permutation_n():
    tree = {"a": np.arange(8.0).reshape(4, 2), "b": np.arange(4)}
    swapped = md_gan.swap(tree, np.array([2, 0, 1, 3]))
    np.testing.assert_array_equal(swapped["a"], tree["a"][[2, 0, 1, 3]])
    np.testing.assert_array_equal(swapped["b"], [2, 0, 1, 3])


@hypothesis.given(
    st.integers(0, 2**31 - 1), st.lists(st.booleans(), min_size=1, max_size=12)
)
def test_a_derangement_moves_all_the_living_and_none_of_the_dead(seed, alive):
    alive = np.array(alive)
    permutation = np.asarray(md_gan.derangement(np.random.default_rng(seed), alive))
    np.testing.assert_array_equal(np.sort(permutation), np.arange(len(alive)))
    still = permutation == np.arange(len(alive))
    np.testing.assert_array_equal(still, ~alive if alive.sum() > 1 else alive | True)


def test_derangements_are_uniform():
    """All nine of four, with Pearson's test at 1e-4; one of five workers is dead."""
    rng, alive = np.random.default_rng(0), np.array([1, 1, 0, 1, 1], bool)
    drawn = [tuple(map(int, md_gan.derangement(rng, alive))) for _ in range(1800)]
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 9
    assert ((counts - 200) ** 2 / 200).sum() < 31.8  # quantile of χ² with 8 degrees


# ----------------------------------------------- the work of a worker and of the server


def role_of_worker(generator_width):
    """What a worker runs in an iteration, lowered."""
    gan = models.Gan(
        models.MLPGenerator((2,), generator_width, 1),
        models.MLPDiscriminator(6, 1),
        3,
        (2,),
    )
    workers = jaxsp.Workers(4, jax.devices()[:1])
    program = MDGan(batches_k=2, disc_steps=2).program(
        gan, losses.non_saturating(gan), workers, batch_size=5
    )
    role = program.roles(np.zeros((4, 9, 2), np.float32), np.full(4, 9, np.int32))
    (lowered,) = role["worker"].parts
    assert role["worker"].members == 4
    assert str(generator_width) in sides(role["server"].parts[0].as_text())
    return lowered


def test_a_worker_has_no_generator():
    """No array of its program has a side that only the generator has."""
    narrow, wide = role_of_worker(37), role_of_worker(3700)
    assert {"2", "5", "6"} <= sides(narrow.as_text())
    assert "37" not in sides(narrow.as_text())
    assert narrow.as_text() == wide.as_text()
    assert flops(narrow) == flops(wide) > 0


def sides(text):
    """The sides of all arrays in StableHLO, as 4 and 2 in tensor<4x2xf32>."""
    shapes = re.findall(r"tensor<([\dx]+)x\w+>", text)
    return {side for shape in shapes for side in shape.split("x")}


def flops(lowered):
    cost = lowered.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_the_server_goes_backward_once_a_batch():
    """Its work grows with the distinct batches, not with the workers."""
    gan, b = models.mlp((2,), latent_size=16, width=32), 64
    optimizer = optax.sgd(0.1)

    def work(N, k):
        x = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)).x)
        shape = jax.ShapeDtypeStruct
        lowered = jax.jit(
            functools.partial(md_gan.server_update, gan, optimizer)
        ).lower(
            x,
            jax.eval_shape(optimizer.init, x),
            shape((k, b, 16), jnp.float32),
            shape((N, b, 2), jnp.float32),
            shape((N,), jnp.int32),
            shape((N,), bool),
        )
        return flops(lowered)

    assert work(16, 2) < 1.1 * work(2, 2)
    assert 1.9 * work(16, 2) < work(16, 4) < 2.1 * work(16, 2)


# ------------------------------------------------------------------ through the trainer

COUNT, BATCH, STEPS = 4, 5, 10
SIZES = (40, 30, 25, 20)
# Worker 1 crashes before iteration 2; it joins anew, just as 0 crashes, before 6; and 0
# joins before 8. Nobody ever hears of worker 3.
ALIVE = np.ones((STEPS, COUNT), bool)
ALIVE[2:6, 1] = ALIVE[6:8, 0] = ALIVE[:, 3] = False
# Who joins copies the first that lives and lived before: 1 cannot ask 0, who is gone.
JOINS = {6: {1: 2}, 8: {0: 1}}


def lives(step):
    return ALIVE[step]


def shares(count):
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES))[:count]


@pytest.fixture(scope="module")
def points():
    """Float points, each share its own class; those of worker 3 are NaN."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(COUNT), SIZES).astype(np.int32)
    train = rng.normal(size=(sum(SIZES), 2)) + labels[:, None]
    train[labels == 3] = np.nan
    train = train.astype(np.float32)
    return data.Dataset("points", train, labels, train[:9], labels[:9], COUNT)


@pytest.fixture
def fit(points, monkeypatch):
    """`loop.train` on the points, without pictures; one program for one object."""
    monkeypatch.setattr(plots, "plot_samples", lambda *args: None)
    monkeypatch.setattr(plots, "plot_curves", lambda *args: None)
    monkeypatch.setattr(partition, "plot", lambda *args: None)
    programs = {}

    def program_of(method, gan, losses, workers):
        options = {"batch_size": BATCH}
        if isinstance(method, md_gan.MDGan):
            return method.program(gan, losses, workers, **options)
        return step.program(gan, losses, method, workers, same_sample=True, **options)

    def fit(method, steps=STEPS, workers=None, gan=GAN, losses=LOSSES, **kwargs):
        workers = workers or jaxsp.Workers(COUNT, jax.devices()[:1])
        config = loop.TrainConfig(
            steps=steps,
            seed=4,
            log_every=1,
            eval_every=1000,
            checkpoint_every=1000,
            eval_samples=1,
            progress=False,
        )
        if id(method) not in programs:
            made = program_of(method, gan, losses, workers)
            programs[id(method)] = method, made
        program = programs[id(method)][1]
        return loop.train(program, points, shares(workers.count), config, **kwargs)

    return fit


@pytest.fixture
def permutations(monkeypatch):
    """The permutations that are drawn, in order."""
    drawn, derangement = [], md_gan.derangement

    def recorded(rng, alive):
        drawn.append(np.asarray(derangement(rng, alive)))
        return drawn[-1]

    monkeypatch.setattr(md_gan.roles, "derangement", recorded)
    return drawn


def draws(points):
    """Start, latents and real batches of the trainer: its keys, written out again."""
    init_key, train_key, _ = jax.random.split(jax.random.key(4), 3)

    @jax.jit
    def keys(i, n):
        key = jax.random.fold_in(jax.random.fold_in(train_key, n), i)
        draw_key, noise_key, *_ = jax.random.split(key, 4)
        return draw_key, jax.random.split(noise_key)[0]  # the other is for penalties

    def latents(i, j):
        return np.asarray(models.latents(GAN, keys(i, j)[1], BATCH))

    def real(i, n):
        rows = shares(COUNT)[n]
        drawn = jax.random.randint(keys(i, n)[0], (BATCH,), 0, len(rows), jnp.int32)
        return points.train[rows[drawn]].astype(float)

    z = init(GAN, init_key)
    return flat(z.x), np.stack([flat(z.y)] * COUNT), latents, real


@pytest.mark.parametrize(
    ("devices", "server", "place", "moments", "L"),
    [
        (1, None, 0, "stay", 2),
        (1, 5, 5, "travel", 1),
        (4, None, 4, "reset", 2),  # the server takes the first device that is free
        (2, None, 2, "travel", 1),
    ],
    ids=["virtual", "virtual, server apart", "devices", "blocks"],
)
def test_the_trainer_runs_the_loop_of_the_paper(
    x64, fit, points, permutations, devices, server, place, moments, L
):
    """The living alone learn, teach and swap; the rest hold NaN, which goes nowhere."""
    workers = jaxsp.Workers(COUNT, jax.devices()[:devices])
    method = MDGan(
        batches_k=2,
        disc_steps=L,
        swap_every=2,
        alive=lives,
        moments=moments,
        server_device=None if server is None else jax.devices()[server],
    )
    result = fit(method, workers=workers)
    params, opt_state = result.state.params, result.state.opt_state

    swaps = dict(zip(range(1, STEPS, 2), permutations, strict=True))  # after 2, 4, ...
    for i, permutation in swaps.items():
        np.testing.assert_array_equal(permutation == np.arange(COUNT), ~ALIVE[i])
    expected = reference.md_gan(
        NETS,
        *draws(points),
        STEPS,
        *ADAMS,
        k=2,
        L=L,
        swaps=swaps,
        moments=moments,
        alive=lives,
        joins=JOINS,
    )
    assert_equal(flat(params.x), expected.w[-1])
    assert_equal(rows(params.y, COUNT), expected.theta[-1])
    recorded = [
        (line["loss_generator"], line["loss_discriminator"])
        for line in result.history[1:]
    ]
    assert_equal(recorded, np.nanmean(expected.losses, axis=1), 1e-6)

    for leaf in jax.tree.leaves((params.x, opt_state.x, result.state.ema)):
        assert leaf.devices() == {jax.devices()[place]}
    for leaf in jax.tree.leaves((params.y, opt_state.y)):
        assert leaf.devices() == set(workers.devices)

    # What travels: b samples up and 2 b down, 8 bytes a number; discriminators.
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (params.y, opt_state.y))
    theta, adam = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in one)
    assert theta == 8 * expected.theta.shape[-1]
    lived, samples = ALIVE.sum(axis=0), BATCH * 2 * 8
    swapped = (theta + adam * (moments == "travel")) * ALIVE[1::2].sum(axis=0)
    up = lived * samples + swapped + theta * np.array([0, 1, 1, 0])
    down = lived * 2 * samples + swapped + theta * np.array([1, 1, 0, 0])
    sent = jaxsp.metrics.bits_sent(result.state.traffic)
    np.testing.assert_array_equal(sent.up, 8 * up)
    np.testing.assert_array_equal(sent.down, 8 * down)
    assert result.history[-1]["bits_up"] == 8 * up.sum() // COUNT
    assert result.history[-1]["bits_down"] == 8 * down.sum() // COUNT


def test_messages_are_those_of_the_table(x64):
    b, theta = 7, flat(init(GAN, jax.random.key(0)).y).nbytes
    message = md_gan.messages(GAN, b)
    assert message == md_gan.messages(GAN, b, OPTIMIZERS[1], "stay")
    assert message == (8 * 2 * b * 2 * 8, 8 * b * 2 * 8, 8 * theta, 8 * theta)
    travelling = md_gan.messages(GAN, b, OPTIMIZERS[1], "travel")
    assert travelling == message._replace(swap=8 * (3 * theta + 4))  # Adam counts
    conditional = md_gan.messages(CONDITIONAL, b)  # a class is an int32
    assert conditional.down == message.down + 2 * b * 32
    assert conditional.up == message.up


@pytest.mark.parametrize(
    ("gan", "loss", "L"),
    [(GAN, losses.wasserstein, 2), (CONDITIONAL, losses.acgan, 1)],
    ids=["gradient penalty", "conditional"],
)
def test_one_worker_is_the_standalone_gan(x64, fit, gan, loss, L):
    """The discriminator's L steps first, on one sample for both, to 1e-12."""
    one = jaxsp.Workers(1)
    kwargs = {"workers": one, "gan": gan, "losses": loss(gan)}
    method = jaxsp.transforms.alternating(*OPTIMIZERS, y_steps=L)
    distributed = fit(MDGan(disc_steps=L), **kwargs)
    alone = fit(method, **kwargs)
    x, y = distributed.state.params
    assert_equal(flat(x), rows(alone.state.params.x, 1)[0])
    assert_equal(rows(y, 1), rows(alone.state.params.y, 1))
    for a, b in zip(distributed.history[1:], alone.history[1:], strict=True):
        assert_equal(a["loss_discriminator"], b["loss_discriminator"], 1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(x64, fit, tmp_path):
    """Stopped after a swap and a crash and just before a newcomer; three swap later."""
    settings = {"batches_k": 2, "swap_every": 3, "alive": lives}
    method = MDGan(**settings)
    whole = fit(method)
    fit(method, 6, workdir=tmp_path)
    resumed = fit(MDGan(**settings), workdir=tmp_path, resume=True)
    assert_same(resumed.state, whole.state)
    assert_same(resumed.generator, whole.generator)
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


# --------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused(x64, fit):
    for name, settings in {
        "batches_k": {"batches_k": 0},
        "disc_steps": {"disc_steps": 0},
        "swap_every": {"swap_every": 0},
        "moments": {"moments": "fly"},
        "alive": {"alive": [True, True]},
    }.items():
        with pytest.raises(ValueError, match=rf"\b{name}\b.*must"):
            MDGan(**settings)
    with pytest.raises(ValueError, match=r"\bbatches_k\b.*4.*5"):
        fit(MDGan(batches_k=5))
    with pytest.raises(ValueError, match=r"\bswap_every\b"):
        fit(MDGan(swap_every=3), workers=jaxsp.Workers(1))
    with pytest.raises(ValueError, match=r"\bgenerator_on\b"):
        fit(MDGan(), losses=losses.Losses(LOSSES.generator, LOSSES.discriminator))
    with pytest.raises(ValueError, match=r"\balive\b.*4.*2"):
        fit(MDGan(alive=lambda step: [True, False]))
    with pytest.raises(ValueError, match=r"\balive\b.*step 0"):
        fit(MDGan(alive=lambda step: [False] * 4))
    with pytest.raises(ValueError, match=r"\balive\b.*step 1"):  # none to copy from
        fit(MDGan(alive=lambda step: [step < 1, step < 1, step > 0, step > 0]))
