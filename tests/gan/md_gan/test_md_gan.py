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
import reference_gan
import reference_md_gan as reference
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxsp
from jaxsp.gan import losses, md_gan, models, step
from jaxsp.gan.training import checkpoint
from jaxsp.gan.training.progress import Progress

GAN = models.mlp((2,), latent_size=3, width=6, depth=1, dtype=jnp.float64)
LOSSES = losses.non_saturating(GAN)
NETS = ((3, 6, 2), 0.0), ((2, 6, 1), 0.2)
RATES = 0.01, 0.03  # of the server and of the workers
OPTIMIZERS = tuple(optax.adam(rate, b1=0.5, b2=0.9, eps=1e-8) for rate in RATES)
ADAMS = tuple(map(reference_gan.adam, RATES))
MDGan = functools.partial(md_gan.MDGan, *OPTIMIZERS)
init = jax.jit(models.init, static_argnums=0)
CONDITIONAL = models.mlp((2,), 4, latent_size=7, width=6, depth=1, dtype=jnp.float64)


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


@pytest.mark.parametrize("gan", [GAN, CONDITIONAL], ids=["plain", "conditional"])
def test_the_server_generates_distinct_batches(x64, gan):
    x = init(gan, jax.random.key(0)).x
    keys = jax.random.split(jax.random.key(1), 3)
    fakes, latents = md_gan.server_generate(gan, x, keys, 4)
    fakes, *labels = fakes if gan.num_classes else (fakes,)
    assert fakes.shape == (3, 4, 2)
    assert latents.shape == (3, 4, gan.latent_size)
    assert len(labels) == bool(gan.num_classes)
    for i, j in itertools.combinations(range(3), 2):
        assert not np.isclose(latents[i, :, :3], latents[j, :, :3]).any()
    for j in range(3):
        assert_equal(latents[j], models.latents(gan, keys[j], 4))
        assert_equal(fakes[j], models.generate(gan, x, latents[j]))
        for classes in labels:
            assert_same(classes[j], models.labels_of(gan, latents[j]))


# ---------------------------------------------------------------- the server's gradient


@functools.cache
def gradients(gan, N, k):
    """That of the server, what its step divided by the rate is, and that of the mean.

    The feedback of the dead is NaN.
    """
    loss = losses.acgan(gan) if gan.num_classes else losses.non_saturating(gan)
    optimizer = optax.sgd(0.5)

    def worker_loss(y, samples, z):
        labelled = (samples, models.labels_of(gan, z)) if gan.num_classes else samples
        return loss.generator_on(y, labelled)

    @jax.jit
    def run(seed, g_index, alive):
        key, *keys = jax.random.split(jax.random.key(seed), N + 1 + k)
        x = models.init(gan, key).x
        y = jax.vmap(lambda key: models.init(gan, key).y)(jnp.stack(keys[:N]))
        latents = jnp.stack([models.latents(gan, key, 3) for key in keys[N:]])
        batches = jax.vmap(lambda z: models.generate(gan, x, z))(latents)
        feedback = jax.vmap(
            lambda y, j: jax.grad(worker_loss, 1)(y, batches[j], latents[j])
        )(y, g_index)
        feedback = jnp.where(alive[:, None, None], feedback, jnp.nan)

        def mean_loss(x):
            values = jax.vmap(
                lambda y, z: worker_loss(y, models.generate(gan, x, z), z)
            )(y, latents[g_index])
            return jnp.where(alive, values, 0).sum() / alive.sum()

        after, _, gradient = md_gan.server_update(
            gan, optimizer, x, optimizer.init(x), latents, feedback, g_index, alive
        )
        moved = jax.tree.map(lambda a, b: (a - b) / 0.5, x, after)
        return [ravel_pytree(t)[0] for t in (gradient, moved, jax.grad(mean_loss)(x))]

    return run


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    case=st.sampled_from([(GAN, 5, 2), (GAN, 3, 3), (CONDITIONAL, 5, 2)]),
)
def test_the_server_descends_the_mean_loss(seed, case):
    """∇_w (1/N) Σ_n B_n(G_w(Z_n)) over the living."""
    _, N, k = case
    rng = np.random.default_rng(seed)
    alive = rng.random(N) < 0.7
    alive[rng.integers(N)] = True
    g_index, _ = md_gan.assignment(alive, k)
    with jax.enable_x64(True):
        actual, moved, expected = gradients(*case)(seed, g_index, alive)
    assert np.abs(expected).max() > 1e-3
    assert_equal(actual, expected)
    assert_equal(moved, expected)


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


# --------------------------------------------------------------------- the whole method

COUNT, BATCH, STEPS = 4, 5, 50
SIZES = np.array([40, 30, 25, 20], np.int32)
# Worker 1 crashes before iteration 2; it joins anew, just as 0 crashes, before 6; and 0
# joins before 8. Nobody ever hears of worker 3.
ALIVE = np.ones((STEPS, COUNT), bool)
ALIVE[2:6, 1] = ALIVE[6:8, 0] = ALIVE[:, 3] = False
# Who joins copies the first that lives and lived before: 1 cannot ask 0, who is gone.
JOINS = {6: {1: 2}, 8: {0: 1}}
# Each share around its own point, and of its own class; that of worker 3 is NaN.
SHARES = np.random.default_rng(0).normal(size=(COUNT, max(SIZES), 2))
SHARES = (SHARES + np.arange(COUNT)[:, None, None]).astype(np.float32)
SHARES[3] = np.nan
INIT_KEY, TRAIN_KEY = jax.random.split(jax.random.key(4))


def lives(step):
    return ALIVE[step]


def program_of(method, workers=None, gan=GAN, loss=LOSSES):
    workers = workers or jaxsp.Workers(COUNT, jax.devices()[:1])
    if isinstance(method, md_gan.MDGan):
        return method.program(gan, loss, workers, batch_size=BATCH)
    options = {"batch_size": BATCH, "steps_per_call": 1, "same_sample": True}
    return step.program(gan, loss, method, workers, **options)


def train(program, steps=STEPS, state=None):
    """The state after so many steps, and the losses, [steps, N, 2]."""
    count, values = program.workers.count, []
    labels = np.tile(np.arange(count, dtype=np.int32)[:, None], max(SIZES))
    shares = (SHARES[:count], labels) if program.gan.num_classes else SHARES[:count]
    shares, sizes = program.workers.shard((shares, SIZES[:count]))
    state = program.init(INIT_KEY) if state is None else state
    for _ in range(steps):
        state, losses = program.step(state, shares, sizes, TRAIN_KEY, 1)
        values.append(losses)
        jax.block_until_ready(state)
    return state, np.concatenate(program.fetch(values), axis=1).swapaxes(0, 1)


@pytest.fixture
def permutations(monkeypatch):
    """The permutations that are drawn, in order."""
    drawn, derangement = [], md_gan.derangement

    def recorded(rng, alive):
        drawn.append(np.asarray(derangement(rng, alive)))
        return drawn[-1]

    monkeypatch.setattr(md_gan.roles, "derangement", recorded)
    return drawn


def draws():
    """Start, latents and real batches: the keys of a program, written out again."""

    @jax.jit
    def keys(i, n):
        key = jax.random.fold_in(jax.random.fold_in(TRAIN_KEY, n), i)
        draw_key, noise_key, *_ = jax.random.split(key, 4)
        return draw_key, jax.random.split(noise_key)[0]  # the other is for penalties

    def latents(i, j):
        return np.asarray(models.latents(GAN, keys(i, j)[1], BATCH))

    def real(i, n):
        drawn = jax.random.randint(keys(i, n)[0], (BATCH,), 0, SIZES[n], jnp.int32)
        return SHARES[n, drawn].astype(float)

    z = init(GAN, INIT_KEY)
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
def test_fifty_iterations_are_those_of_the_paper(
    x64, permutations, devices, server, place, moments, L
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
    program = program_of(method, workers)
    state, values = train(program)
    params, opt_state = state.params, state.opt_state

    swaps = dict(zip(range(1, STEPS, 2), permutations, strict=True))  # after 2, 4, ...
    for i, permutation in swaps.items():
        np.testing.assert_array_equal(permutation == np.arange(COUNT), ~ALIVE[i])
    w, theta, losses = reference.md_gan(
        NETS,
        *draws(),
        STEPS,
        *ADAMS,
        k=2,
        L=L,
        swaps=swaps,
        moments=moments,
        alive=lives,
        joins=JOINS,
    )
    assert np.abs(w[-1] - w[0]).max() > 0.05
    assert_equal(flat(params.x), w[-1])
    assert_equal(rows(params.y, COUNT), theta[-1])
    of_dead = np.nanmean(losses, axis=1, keepdims=True)
    losses = np.where(ALIVE[:, :, None], losses, of_dead)
    assert_equal(values, losses, 1e-6)  # recorded in float32

    for leaf in jax.tree.leaves((params.x, opt_state.x, state.ema)):
        assert leaf.devices() == {jax.devices()[place]}
    for leaf in jax.tree.leaves((params.y, opt_state.y)):
        assert leaf.devices() == set(workers.devices)

    # What travels: b samples up and 2 b down, 8 bytes a number; discriminators.
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (params.y, opt_state.y))
    model, adam = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in one)
    assert model == 8 * theta.shape[-1]
    lived, samples = ALIVE.sum(axis=0), BATCH * 2 * 8
    swapped = (model + adam * (moments == "travel")) * ALIVE[1::2].sum(axis=0)
    up = lived * samples + swapped + model * np.array([0, 1, 1, 0])
    down = lived * 2 * samples + swapped + model * np.array([1, 1, 0, 0])
    sent = jaxsp.metrics.bits_sent(state.traffic)
    np.testing.assert_array_equal(sent.up, 8 * up)
    np.testing.assert_array_equal(sent.down, 8 * down)
    assert program.bits(state) == (8 * up.sum() // COUNT, 8 * down.sum() // COUNT)


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
def test_one_worker_is_the_standalone_gan(x64, gan, loss, L):
    """The discriminator's L steps first, on one sample for both, to 1e-12."""
    alternating = jaxsp.transforms.alternating(*OPTIMIZERS, y_steps=L)
    (state, values), (alone, values_alone) = (
        train(program_of(method, jaxsp.Workers(1), gan, loss(gan)))
        for method in (MDGan(disc_steps=L), alternating)
    )
    assert_equal(flat(state.params.x), rows(alone.params.x, 1)[0])
    assert_equal(rows(state.params.y, 1), rows(alone.params.y, 1))
    assert_equal(values[..., 1], values_alone[..., 1], 1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(x64, tmp_path):
    """Stopped after a swap and a crash and just before a newcomer; three swap later."""
    method = MDGan(batches_k=2, swap_every=3, alive=lives)
    program, again = program_of(method), program_of(method)
    whole, values = train(program, 10)
    half, _ = train(program, 6)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half, program.summary(half), Progress(6))
        half = checkpoints.restore(6, again.init(jax.random.key(0)))
    resumed, last_values = train(again, 4, half)
    assert_same(resumed, whole)
    assert_same(last_values, values[6:])


# --------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused(x64):
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
        program_of(MDGan(batches_k=5))
    with pytest.raises(ValueError, match=r"\bswap_every\b"):
        program_of(MDGan(swap_every=3), jaxsp.Workers(1))
    of_latents = losses.Losses(LOSSES.generator, LOSSES.discriminator)
    with pytest.raises(ValueError, match=r"\bgenerator_on\b"):
        program_of(MDGan(), loss=of_latents)
    for alive, said in (
        (lambda step: [True, False], "4.*2"),
        (lambda step: [False] * 4, "step 0"),
        (lambda step: [step < 1, step < 1, step > 0, step > 0], "step 1"),
    ):  # of the last there is none to copy from
        with pytest.raises(ValueError, match=rf"\balive\b.*{said}"):
            train(program_of(MDGan(alive=alive)), 2)
