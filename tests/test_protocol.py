"""What every transformation promises, whatever it computes: one table, every row."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import table

import jaxsp
from jaxsp import methods, topology, transforms

N = 8
AXIS = table.AXIS
ROWS = pytest.mark.parametrize("row", table.ALL, ids=lambda row: row.name)
# Compiling is most of what these tests do: what needs it runs on one row of each kind.
KINDS = ("extra_step_local_sgd", "decentralized_extra_step_chebyshev", "dposg")
KINDS += ("cp_oadam", "rand_dp_oadam", "gossip_one_peer", "alternating_extragradient")
KINDS += ("dqgan", "masha1", "compressed_gossip", "error_feedback_average")
KINDS += ("federated_average", "tracked_extragradient")
KINDS = pytest.mark.parametrize(
    "row", [row for row in table.ALL if row.name in KINDS], ids=lambda row: row.name
)
TWO_CALLS = (
    "extra",
    "local_extra",
    "decentralized",
    "masha",
    "vr_",
    "compressed_extra",
    "tracked_extra",
    "three_pillars",
)


def params_of(dtype=jnp.float32, n=N):
    """A stacked game's worth of parameters, of different shapes."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=(n, *shape)), dtype)

    return jaxsp.MinMax({"w": array(3, 2), "b": array(2)}, [array(4), array()])


def operator(z):
    """Monotone, mixes no leaves."""
    return jax.tree.map(lambda p: 0.5 * p + jnp.sin(p), z)


def make_step(tx, **extra):
    """One update of one worker."""

    def step(params, state):
        given = dict.fromkeys(table.OPERATORS, operator) | extra
        updates, state = tx.update(operator(params), state, params, **given)
        return optax.apply_updates(params, updates), state

    return step


def start(tx, workers, dtype=jnp.float32):
    """Parameters and states, placed as a step leaves them: it is compiled once."""
    params = workers.shard(params_of(dtype, workers.count))
    return params, workers.shard(jax.jit(workers.map(tx.init))(params))


def run(tx, workers, steps=5, dtype=jnp.float32, **extra):
    """The parameters and states of all workers after some jitted steps."""
    params, state = start(tx, workers, dtype)
    step = jax.jit(workers.map(make_step(tx, **extra)))
    for _ in range(steps):
        params, state = step(params, state)
    return jax.block_until_ready((params, state))


@functools.cache
def plain(row, rate=0.1, steps=5):
    """The parameters where virtual workers end with nothing but the transformation."""
    return run(row.build(ring(), rate), virtual(), steps)[0]


def ring():
    return topology.ring(N)


def virtual():
    return jaxsp.Workers(N, devices=jax.devices()[:1])


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerance
        ),
        a,
        b,
    )


def test_the_table_is_complete():
    """A method or transformation that is not in the table would go untested."""
    known = {name for row in table.ALL for name in (row.name, *row.covers)}
    public = {name for name in methods.__all__ if name != "eval_params"}
    built = {name for name in transforms.__all__ if name.islower()}
    assert public | built <= known


@ROWS
def test_is_an_optax_transformation_with_extra_args(row):
    tx = row.build(ring(), 0.1)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


@ROWS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_and_updates_keep_structure_shapes_and_dtypes(row, dtype):
    tx, workers = row.build(ring(), 0.1), virtual()
    params = params_of(dtype)
    state = workers.map(tx.init)(params)
    new_params, new_state = jax.eval_shape(workers.map(make_step(tx)), params, state)
    assert shapes(new_params) == shapes(params)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert shapes(new_state) == shapes(state)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))


@KINDS
def test_scans_and_equals_the_loop(row):
    tx, workers = row.build(ring(), 0.1), virtual()

    @jax.jit
    def scanned(params):
        step = workers.map(make_step(tx))
        carry = params, workers.map(tx.init)(params)
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=5)[0]

    assert_close(scanned(params_of())[0], plain(row), rtol=1e-5, atol=1e-6)


@KINDS
def test_a_second_step_does_not_compile_again(row):
    tx, workers = row.build(ring(), 0.1), virtual()
    traces = []

    def step(params, state):
        traces.append(None)
        return make_step(tx)(params, state)

    params, state = start(tx, workers)
    jitted = jax.jit(workers.map(step))
    for _ in range(3):
        params, state = jax.block_until_ready(jitted(params, state))
    assert len(traces) == 1
    assert jitted._cache_size() == 1


@KINDS
def test_in_a_chain_with_unknown_extra_arguments_nothing_changes(row):
    tx = optax.chain(optax.identity(), row.build(ring(), 0.1), optax.scale(1.0))
    ours, _ = run(tx, virtual(), value=jnp.ones(()), unheard_of="x")
    assert_close(ours, plain(row), rtol=1e-6)


@KINDS
def test_vmap_shard_map_and_pmap_agree(row, x64):
    tx, params = row.build(ring(), 0.1), params_of(jnp.float64)
    expected = run(tx, virtual(), dtype=jnp.float64)
    ours = run(tx, jaxsp.Workers(N), dtype=jnp.float64)
    assert_close(ours, expected, rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pmap.*", DeprecationWarning)
        state = jax.pmap(tx.init, axis_name=AXIS)(params)
        step = jax.pmap(make_step(tx), axis_name=AXIS)
        for _ in range(5):
            params, state = jax.block_until_ready(step(params, state))
    assert_close((params, state), expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------- composition with optax


@KINDS
def test_masked_moves_only_what_the_mask_leaves_in(row):
    mask = jaxsp.MinMax({"w": True, "b": False}, [False, True])
    tx = optax.chain(
        optax.masked(row.build(ring(), 0.1), mask),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, mask)),
    )
    (params, _), alone, before = run(tx, virtual()), plain(row), params_of()
    np.testing.assert_array_equal(params.x["b"], before.x["b"])
    np.testing.assert_array_equal(params.y[0], before.y[0])
    # The operator mixes no leaves, so the others move as if they were alone.
    np.testing.assert_allclose(params.x["w"], alone.x["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params.y[1], alone.y[1], rtol=1e-5, atol=1e-6)


@KINDS
def test_partition_has_two_time_scales(row):
    rates = {"x": 0.1, "y": 0.02}
    tx = optax.partition(
        {player: row.build(ring(), rate) for player, rate in rates.items()},
        jaxsp.MinMax("x", "y"),
    )
    params, _ = run(tx, virtual())
    for player, rate in rates.items():
        alone = plain(row, rate)
        assert_close(
            getattr(params, player), getattr(alone, player), rtol=1e-5, atol=1e-6
        )


@KINDS
def test_multi_steps_of_equal_gradients_is_one_step(row):
    tx = row.build(ring(), 0.1)
    multi = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    ours, _ = run(multi, virtual(), 10)
    assert_close(ours, plain(row), rtol=1e-5, atol=1e-6)


INJECTED = {
    "extra_step": dict(factory=methods.extra_step, channel=AXIS),
    "decentralized_extra_step": dict(
        factory=methods.decentralized_extra_step,
        static=("rounds",),
        topology=ring(),
        rounds=2,
    ),
    "extra_step_local_sgd": dict(
        factory=methods.extra_step_local_sgd, sync_every=2, channel=AXIS
    ),
    "local_extra_adam": dict(
        factory=methods.local_extra_adam, sync_every=2, channel=AXIS
    ),
    "pearl_sgd": dict(factory=methods.pearl_sgd, sync_every=2),
    "dposg": dict(factory=methods.dposg, static=("rounds",), topology=ring()),
    "cp_oadam": dict(factory=methods.cp_oadam, channel=AXIS),
    "dp_oadam": dict(factory=methods.dp_oadam, static=("rounds",), topology=ring()),
    "rand_dp_oadam": dict(
        factory=methods.rand_dp_oadam,
        static=("key",),
        topology=topology.random_ring(N, pool=3),
        key=table.KEY,
    ),
    "fedgda_gt": dict(factory=methods.fedgda_gt, sync_every=2, channel=AXIS),
    "proxskip_vip": dict(
        factory=methods.proxskip_vip,
        channel=jaxsp.channel(AXIS, key=table.KEY),
        probability=0.5,
    ),
    "prox_skip": dict(
        factory=transforms.prox_skip,
        channel=jaxsp.channel(AXIS, key=table.KEY),
        probability=0.5,
    ),
    "qoda": dict(factory=methods.qoda, channel=AXIS),
    "optimistic_dual_averaging": dict(
        factory=transforms.optimistic_dual_averaging, channel=AXIS
    ),
    "tracked_extragradient": dict(
        factory=methods.tracked_extragradient, static=("rounds",), topology=ring()
    ),
    "tracked_optimistic": dict(
        factory=methods.tracked_optimistic, static=("rounds",), topology=ring()
    ),
    "tracked_dp_oadam": dict(
        factory=methods.tracked_dp_oadam, static=("rounds",), topology=ring()
    ),
    "optimal_decentralized": dict(
        factory=methods.optimal_decentralized,
        topology=ring(),
        dual_learning_rate=1.0,
        feedback=0.5,
    ),
    "optimal_time_varying": dict(
        factory=methods.optimal_time_varying,
        static=("rounds",),
        topology=ring(),
        steps=table.DUAL,
    ),
    "accelerated_dual_gossip": dict(
        factory=transforms.accelerated_dual_gossip,
        static=("rounds",),
        topology=ring(),
        steps=table.DUAL,
    ),
    "vr_optimal_decentralized": dict(
        factory=methods.vr_optimal_decentralized,
        topology=ring(),
        dual_learning_rate=1.0,
        feedback=0.5,
        refresh=transforms.Refresh(0.5, table.KEY),
    ),
    "dqgan": dict(factory=methods.dqgan, channel=table.on(AXIS, table.SIGN)),
    "masha1": dict(
        factory=methods.masha1, channel=table.on(AXIS, table.EXACT), refresh=0.5
    ),
    "past_extragradient": dict(factory=transforms.past_extragradient, axis=False),
    "optimistic_adam": dict(factory=transforms.optimistic_adam, axis=False),
}


def test_everything_with_a_learning_rate_is_injected():
    compressed = table.COMPRESSED_METHODS + table.COMPRESSED_TRANSFORMS
    same = {  # compositions of the same parts
        name for row in compressed for name in (row.name, *row.covers)
    }
    with_rate = {
        name
        for module in (methods, transforms)
        for name in module.__all__
        if name[0].islower()
        and "learning_rate" in inspect.signature(getattr(module, name)).parameters
    }
    assert with_rate - same == set(INJECTED) - same


@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name):
    spec = dict(INJECTED[name])
    factory, static = spec.pop("factory"), spec.pop("static", ())
    if spec.pop("axis", "channel" not in spec):
        spec["axis_name"] = AXIS
    tx = optax.inject_hyperparams(factory, static_args=static)(
        learning_rate=0.1, **spec
    )
    (ours, state) = run(tx, virtual())
    theirs, _ = run(factory(learning_rate=0.1, **spec), virtual())
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.1)


def test_injected_rounds_must_be_static_and_the_message_says_how():
    tx = optax.inject_hyperparams(methods.dposg)(0.1, ring(), axis_name=AXIS)
    with pytest.raises(ValueError, match=r'static_args=\("rounds",\)'):
        tx.init(jnp.ones(3))


# ---------------------------------------------------------- missing arguments


@pytest.mark.parametrize(
    "name", [row.name for row in table.ALL if row.name.startswith(TWO_CALLS)]
)
def test_two_call_methods_ask_for_the_operator(name):
    (row,) = [row for row in table.ALL if row.name == name]
    tx, z = row.build(topology.ring(1), 0.1), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="operator_fn"):
        jax.vmap(lambda z: tx.update(z, tx.init(z), z), axis_name=AXIS)(z)


@ROWS
def test_what_moves_parameters_asks_for_them(row):
    looks = ("average", "cp_oadam", "dqgan_adam", "sgda", "optimistic_adam", "delay")
    looks += ("drift_correction",)
    if row.name.endswith(looks):
        return  # only at updates
    workers = jaxsp.Workers(N, devices=jax.devices()[:1])
    tx, z = row.build(ring(), 0.1), jnp.ones((N, 3))
    with pytest.raises(ValueError, match="params"):
        workers.map(lambda z: tx.update(z, tx.init(z), operator_fn=operator))(z)


@ROWS
def test_integer_parameters_are_refused_by_name(row):
    if row.name in ("extragradient", "alternating_extragradient", "alternating"):
        return  # what they allow is the base optimizer's choice
    if row.name in ("past_extragradient", "optimistic_adam", "delay"):
        return  # nothing is averaged
    params = {"w": jnp.ones(3), "steps": jnp.zeros(3, jnp.int32)}
    with pytest.raises(ValueError, match=r"params\['steps'\] is int32"):
        row.build(ring(), 0.1).init(params)
