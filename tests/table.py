"""Every public method and transformation, one row each, for the tests that run all.

A row knows how to build the transformation for a topology, a rate and a worker axis,
and which loop of `reference` computes the same. What is not in this table is not tested
for the protocol, so a test compares it with the public names.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference
import reference_beyond as beyond
import reference_compressed as loops
import reference_tracking as tracking

import jaxsp
from jaxsp import aggregators, compressors, methods, theory, topology, transforms

AXIS = jaxsp.Workers(1, jax.local_devices()[:1]).axis_name
KEY = jax.random.key(7)
# Around a solution Adam is chaotic: a perturbation of 1e-15 grows to 1e-3 in 200
# iterations of a rate of 0.1, in NumPy as here. At this rate it is on its way.
ADAM_RATE = 0.003


class Row(NamedTuple):
    """A transformation, `build(topology, rate, axis)`, and its loop if a method."""

    name: str
    build: Callable
    loop: Callable | None = None
    rate: float = 0.1
    covers: tuple[str, ...] = ()  # other public names that are the same but for a part


def random_ring(n):
    """Few rings, because each is a branch to compile."""
    return topology.random_ring(n, pool=3)


def drawn(random_topology, steps):
    """The matrices that a random topology takes in the first iterations."""
    pool = random_topology.matrices
    keys = [jax.random.fold_in(KEY, k) for k in range(steps)]
    return [pool[int(jax.random.randint(key, (), 0, len(pool)))] for key in keys]


def rand_dp_oadam(z0, F, W, lr, steps):
    """The reference over the rings that the shared key draws."""
    matrices = drawn(random_ring(len(W)), steps)
    return reference.rand_dp_oadam(z0, F, matrices, lr)


def coins(probability, steps, key=KEY):
    """Whether the snapshot is taken anew, iteration by iteration."""
    keys = [jax.random.fold_in(key, k) for k in range(steps)]
    return [bool(jax.random.bernoulli(step_key, probability)) for step_key in keys]


def optimal_decentralized(z0, F, W, lr, steps, **finite_sums):
    """The reference, with the dual step, the feedback and the momentum of the rows."""
    G = tracking.gossip_matrix(W) if len(W) > 1 else np.zeros((1, 1))
    return tracking.optimal_decentralized(
        z0, F, G, lr, 1.0, 0.5, 1.0, steps, **finite_sums
    )[0]


# Of `optimal_time_varying`, whose rows take the members one by one.
DUAL = transforms.AcceleratedDualSteps(*theory.optimal_time_varying(2.0, 0.2, 3.0)[1:])


def optimal_time_varying(z0, F, matrices, lr, steps, rounds=1):
    """The reference over matrices in turn, so many rounds in an iteration."""
    eye = np.eye(len(z0))
    gossip = []
    for k in range(steps):
        taken = (matrices[(k * rounds + h) % len(matrices)] for h in range(rounds))
        gossip.append(eye - functools.reduce(lambda product, W: W @ product, taken))
    return tracking.optimal_time_varying(z0, F, gossip, lr, DUAL)[0]


def qoda(z0, F, lr, steps):
    """The reference without a compressor, the points of all workers, and what X is."""

    def at_one(z):
        return F(np.tile(z, (len(z0), 1)))

    found = beyond.qoda(z0[0], at_one, loops.exactly, lr, steps)
    return tuple(np.repeat(points[:, None], len(z0), 1) for points in found)


def delayed(lr, average, look_ahead=2.0):
    """Optimistic descent with a mean of the step before."""
    ahead = transforms.past_extragradient(lr, look_ahead=look_ahead)
    return optax.chain(transforms.delay(), average, ahead)


def by_layers(build, *codecs):
    """A method through compressors of layers: the codecs in turn, leaf by leaf."""

    def method(tree):
        leaves, structure = jax.tree.flatten(tree)
        turns = (codecs * len(leaves))[: len(leaves)]
        return build(compressors.per_leaf(structure.unflatten(turns)))

    return optax.GradientTransformationExtraArgs(
        lambda params: method(params).init(params),
        lambda updates, *rest, **extra: method(updates).update(updates, *rest, **extra),
    )


def in_two(method, at=2):
    """A method that sees every vector as two layers."""

    def cut(z):
        return {
            "first": jax.tree.map(lambda v: v[:at], z),
            "rest": jax.tree.map(lambda v: v[at:], z),
        }

    def update(updates, state, params, **extra):
        del extra
        updates, state = method.update(cut(updates), state, cut(params))
        join = lambda *parts: jnp.concatenate(parts)  # noqa: E731
        return jax.tree.map(join, updates["first"], updates["rest"]), state

    return optax.GradientTransformationExtraArgs(lambda z: method.init(cut(z)), update)


def nesterov():
    """The outer optimizer of DiLoCo, of less momentum, with which games do not grow."""
    return optax.sgd(0.7, momentum=0.5, nesterov=True)


# All that some method asks for, beside the gradient.
OPERATORS = "operator_fn", "full_operator_fn", "dual_operator_fn", "server_operator_fn"

METHODS = [
    Row(
        "extra_step",
        lambda t, lr, axis=AXIS: methods.extra_step(lr, axis),
        lambda z0, F, W, lr, n: reference.extra_step(z0, F, lr, n),
    ),
    Row(
        "decentralized_extra_step",
        lambda t, lr, axis=AXIS: methods.decentralized_extra_step(
            lr, t, 2, None, axis_name=axis
        ),
        lambda z0, F, W, lr, n: reference.decentralized_extra_step(
            z0, F, W, 2, None, lr, n
        ),
    ),
    Row(
        "decentralized_extra_step_fastmix",
        lambda t, lr, axis=AXIS: methods.decentralized_extra_step(
            lr, t, 3, "fastmix", axis_name=axis
        ),
        lambda z0, F, W, lr, n: reference.decentralized_extra_step(
            z0, F, W, 3, "fastmix", lr, n
        ),
    ),
    Row(
        "decentralized_extra_step_chebyshev",
        lambda t, lr, axis=AXIS: methods.decentralized_extra_step(
            lr, t, 3, axis_name=axis
        ),
        lambda z0, F, W, lr, n: reference.decentralized_extra_step(
            z0, F, W, 3, "chebyshev", lr, n
        ),
    ),
    Row(
        "extra_step_local_sgd",
        lambda t, lr, axis=AXIS: methods.extra_step_local_sgd(lr, 3, axis),
        lambda z0, F, W, lr, n: reference.extra_step_local_sgd(z0, F, lr, 3, n),
    ),
    Row(
        "local_extra_adam",
        lambda t, lr, axis=AXIS: methods.local_extra_adam(lr, 3, axis),
        lambda z0, F, W, lr, n: reference.extra_adam(z0, F, lr, n, sync_every=3),
        ADAM_RATE,
    ),
    Row(
        "extra_step_local_sgd_outer",
        lambda t, lr, axis=AXIS: methods.extra_step_local_sgd(
            lr, 3, axis, outer=nesterov()
        ),
        lambda z0, F, W, lr, n: loops.local_steps(
            z0, loops.extra_steps(F, lr), 3, n, outer=loops.nesterov(0.7, 0.5)
        ),
    ),
    Row(
        "local_extra_adam_outer",
        lambda t, lr, axis=AXIS: methods.local_extra_adam(
            lr, 3, axis, outer=nesterov()
        ),
        lambda z0, F, W, lr, n: loops.local_steps(
            z0, loops.extra_adam_steps(F, lr), 3, n, outer=loops.nesterov(0.7, 0.5)
        ),
        ADAM_RATE,
    ),
    Row(
        "dposg",
        lambda t, lr, axis=AXIS: methods.dposg(lr, t, axis_name=axis),
        lambda z0, F, W, lr, n: reference.dposg(z0, F, W, 1, lr, n)[0],
    ),
    Row(
        "dposg_2_rounds",
        lambda t, lr, axis=AXIS: methods.dposg(lr, t, 2, axis_name=axis),
        lambda z0, F, W, lr, n: reference.dposg(z0, F, W, 2, lr, n)[0],
    ),
    Row(
        "dposg_combine_then_adapt",
        lambda t, lr, axis=AXIS: methods.dposg(
            lr, t, 2, axis_name=axis, order="combine_then_adapt"
        ),
        lambda z0, F, W, lr, n: reference.dposg(z0, F, W, 2, lr, n, combine_first=True)[
            0
        ],
    ),
    Row(  # of an array, which is one player; of several in methods/test_players.py
        "pearl_sgd",
        lambda t, lr, axis=AXIS: methods.pearl_sgd(lr, 3, axis),
        lambda z0, F, W, lr, n: beyond.local_play(z0, F, np.ones_like(z0), lr, 3, n),
    ),
    Row(
        "optimal_decentralized",
        lambda t, lr, axis=AXIS: methods.optimal_decentralized(
            lr, t, 1.0, 0.5, axis_name=axis
        ),
        optimal_decentralized,
        covers=("primal_dual_gossip",),
    ),
    Row(
        "vr_optimal_decentralized",
        lambda t, lr, axis=AXIS: methods.vr_optimal_decentralized(
            lr, t, 1.0, 0.5, transforms.Refresh(0.3, KEY), axis_name=axis
        ),
        lambda z0, F, W, lr, n: optimal_decentralized(
            z0, F, W, lr, n, blend=0.3, coins=coins(0.3, n), sampled=lambda c, Z: F(Z)
        ),
    ),
    Row(
        "optimal_time_varying",
        lambda t, lr, axis=AXIS: methods.optimal_time_varying(
            lr, t, DUAL, axis_name=axis
        ),
        lambda z0, F, W, lr, n: optimal_time_varying(z0, F, [W], lr, n),
        covers=("accelerated_dual_gossip",),
    ),
    Row(
        "optimal_time_varying_one_peer",
        lambda t, lr, axis=AXIS: methods.optimal_time_varying(
            lr, topology.one_peer_exponential(t.size), DUAL, 2, axis_name=axis
        ),
        lambda z0, F, W, lr, n: optimal_time_varying(
            z0, F, topology.one_peer_exponential(len(W)).matrices, lr, n, 2
        ),
    ),
    Row(
        "delayed_optimistic",
        lambda t, lr, axis=AXIS: delayed(lr, jaxsp.average(axis)),
        lambda z0, F, W, lr, n: loops.delayed_optimistic(z0, F, lr, n, 2.0),
    ),
    Row(
        "cp_oadam",
        lambda t, lr, axis=AXIS: methods.cp_oadam(lr, axis),
        lambda z0, F, W, lr, n: reference.cp_oadam(z0, F, lr, n),
        ADAM_RATE,
    ),
    Row(
        "dp_oadam",
        lambda t, lr, axis=AXIS: methods.dp_oadam(lr, t, 2, axis_name=axis),
        lambda z0, F, W, lr, n: reference.dp_oadam(z0, F, W, 2, lr, n),
        ADAM_RATE,
    ),
    Row(
        "rand_dp_oadam",
        lambda t, lr, axis=AXIS: methods.rand_dp_oadam(
            lr, random_ring(t.size), key=KEY, axis_name=axis
        ),
        rand_dp_oadam,
        ADAM_RATE,
    ),
    Row(
        "fedgda_gt",
        lambda t, lr, axis=AXIS: methods.fedgda_gt(lr, 3, axis),
        lambda z0, F, W, lr, n: beyond.fedgda_gt(z0, F, lr, 3, n),
    ),
    Row(
        "proxskip_vip",
        lambda t, lr, axis=AXIS: methods.proxskip_vip(
            lr, jaxsp.channel(axis, key=KEY), 0.3
        ),
        lambda z0, F, W, lr, n: beyond.proxskip(z0, F, coins(0.3, n), lr, 0.3),
    ),
    Row(
        "qoda",
        lambda t, lr, axis=AXIS: methods.qoda(lr, axis),
        lambda z0, F, W, lr, n: qoda(z0, F, lr, n)[0],
        rate=1.0,
        covers=("optimistic_dual_averaging",),
    ),
    Row(
        "tracked_extragradient",
        lambda t, lr, axis=AXIS: methods.tracked_extragradient(
            lr, t, axis_name=axis, order="combine_then_adapt"
        ),
        lambda z0, F, W, lr, n: tracking.tracked_extragradient(
            z0, F, W, 1, lr, n, combine_first=True
        ),
    ),
    Row(
        "tracked_optimistic",
        lambda t, lr, axis=AXIS: methods.tracked_optimistic(
            lr, t, 2, axis_name=axis, order="combine_then_adapt"
        ),
        lambda z0, F, W, lr, n: tracking.tracked_optimistic(
            z0, F, W, 2, lr, n, combine_first=True
        ),
    ),
    Row(
        "tracked_dp_oadam",
        lambda t, lr, axis=AXIS: methods.tracked_dp_oadam(lr, t, 2, axis_name=axis),
        lambda z0, F, W, lr, n: tracking.tracked_oadam(z0, F, W, 2, lr, n),
        ADAM_RATE,
    ),
]

TRANSFORMS = [
    Row("average", lambda t, lr, axis=AXIS: transforms.average(axis)),
    Row(
        "apply_if_all_finite",
        lambda t, lr, axis=AXIS: transforms.apply_if_all_finite(
            methods.dposg(lr, t, axis_name=axis), 3, axis
        ),
    ),
    Row("sync", lambda t, lr, axis=AXIS: transforms.sync(2, axis)),
    Row("sync_players", lambda t, lr, axis=AXIS: transforms.sync_players(2, axis)),
    Row("gossip", lambda t, lr, axis=AXIS: transforms.gossip(t, axis_name=axis)),
    Row(
        "gossip_one_peer",
        lambda t, lr, axis=AXIS: transforms.gossip(
            topology.one_peer_exponential(t.size), 2, axis_name=axis
        ),
    ),
    Row(
        "extragradient",
        lambda t, lr, axis=AXIS: transforms.extragradient(optax.adam(lr)),
    ),
    Row(
        "alternating_extragradient",
        lambda t, lr, axis=AXIS: transforms.alternating_extragradient(optax.adam(lr)),
    ),
    Row(
        "alternating",
        lambda t, lr, axis=AXIS: transforms.alternating(
            optax.adam(lr), optax.sgd(lr), 2
        ),
    ),
    Row(
        "federated_average",
        lambda t, lr, axis=AXIS: transforms.federated_average(
            optax.sgd(lr, momentum=0.5),
            2,
            weights=range(1, t.size + 1),
            participants=t.size // 2 + 1,
            key=KEY,
            axis_name=axis,
        ),
    ),
    Row(
        "past_extragradient", lambda t, lr, axis=AXIS: transforms.past_extragradient(lr)
    ),
    Row("delay", lambda t, lr, axis=AXIS: transforms.delay()),
    Row(
        "drift_correction",
        lambda t, lr, axis=AXIS: transforms.drift_correction(2, axis),
    ),
    Row("lookahead", lambda t, lr, axis=AXIS: transforms.lookahead(2)),
    Row(
        "prox_skip",
        lambda t, lr, axis=AXIS: transforms.prox_skip(
            lr, jaxsp.channel(axis, key=KEY), 0.5, prox=lambda z, reach: z
        ),
    ),
    Row(
        "gradient_tracking",
        lambda t, lr, axis=AXIS: transforms.gradient_tracking(
            optax.adam(lr), transforms.gossip(t, axis_name=axis)
        ),
    ),
    Row("optimistic_adam", lambda t, lr, axis=AXIS: transforms.optimistic_adam(lr)),
]

# Compressors here leave each leaf alone, so that masks and partitions change nothing;
# what methods do with real ones is in tests/methods.
SIGN = compressors.per_leaf(compressors.sign())
EXACT = compressors.identity()
NEGATED = compressors.Compressor(  # whose payload is no other's
    "negated",
    lambda key, x: -x,
    lambda payload, like: -payload.astype(like.dtype),
    q=lambda d: 1.0,
)


def on(axis, up, down=None, route="gather"):
    """The channel that all compressed rows are given."""
    return jaxsp.channel(axis, up, down, key=KEY, route=route)


COMPRESSED_METHODS = [
    Row("dqgan", lambda t, lr, axis=AXIS: methods.dqgan(lr, on(axis, SIGN, SIGN))),
    Row(
        "dqgan_adam",
        lambda t, lr, axis=AXIS: methods.dqgan_adam(lr, on(axis, SIGN)),
        covers=("cp_oadam_gq",),
    ),
    Row(
        "masha1",
        lambda t, lr, axis=AXIS: methods.masha1(lr, on(axis, EXACT, EXACT), 0.5),
        covers=("pp_masha1",),
    ),
    Row(
        "masha2",
        lambda t, lr, axis=AXIS: methods.masha2(lr, on(axis, SIGN, SIGN), 0.5),
    ),
    Row(
        "vr_masha1",
        lambda t, lr, axis=AXIS: methods.vr_masha1(lr, on(axis, EXACT), 0.5),
        covers=("vr_masha2",),
    ),
    Row(
        "optimistic_masha",
        lambda t, lr, axis=AXIS: methods.optimistic_masha(
            lr, on(axis, EXACT, EXACT), 0.5
        ),
        covers=("optimistic_snapshot",),
    ),
    Row(
        "three_pillars",
        lambda t, lr, axis=AXIS: methods.three_pillars(
            lr, on(axis, EXACT), 0.5, 3, 0.05
        ),
        covers=("server_steps",),
    ),
    Row(
        "compressed_extragradient",
        lambda t, lr, axis=AXIS: methods.compressed_extragradient(lr, on(axis, SIGN)),
        covers=("error_feedback_extragradient",),
    ),
    Row(
        "delayed_feedback",
        lambda t, lr, axis=AXIS: delayed(
            lr, jaxsp.error_feedback_average(on(axis, SIGN, SIGN))
        ),
    ),
    Row(
        "compressed_extra_step_local_sgd",
        lambda t, lr, axis=AXIS: methods.extra_step_local_sgd(
            lr, 2, on(axis, SIGN, SIGN), outer=nesterov()
        ),
    ),
    Row(
        "median_cp_oadam",
        lambda t, lr, axis=AXIS: methods.cp_oadam(
            lr, jaxsp.channel(axis, aggregate=aggregators.coordinate_median())
        ),
    ),
    Row(
        "extra_step_geometric_median",
        lambda t, lr, axis=AXIS: methods.extra_step(
            lr, jaxsp.channel(axis, aggregate=aggregators.geometric_median(3))
        ),
    ),
    Row(
        "diana_sgda",
        lambda t, lr, axis=AXIS: methods.diana_sgda(lr, on(axis, EXACT)),
        covers=("ef21_sgda", "qsgda"),
    ),
    Row(
        "qoda_layers",
        lambda t, lr, axis=AXIS: by_layers(
            lambda layers: methods.qoda(lr, on(axis, layers)), NEGATED, EXACT
        ),
        rate=1.0,
    ),
]

COMPRESSED_TRANSFORMS = [
    Row(
        "compressed_average",
        lambda t, lr, axis=AXIS: transforms.average(on(axis, SIGN)),
    ),
    Row(
        "compressed_sync",
        lambda t, lr, axis=AXIS: transforms.sync(2, on(axis, SIGN, SIGN)),
    ),
    Row(
        "error_feedback_average",
        lambda t, lr, axis=AXIS: transforms.error_feedback_average(
            on(axis, SIGN, SIGN)
        ),
        covers=("difference_average", "two_step_feedback", "snapshot_extragradient"),
    ),
    Row(
        "compressed_gossip",
        lambda t, lr, axis=AXIS: transforms.compressed_gossip(
            t, SIGN, 0.3, key=KEY, axis_name=axis
        ),
    ),
]

# Real compressors and the families that they make, for the tests of worker modes.
FOUR_BITS = compressors.scaled(compressors.quantize(4))
RAND, TOP = compressors.rand_k(0.5), compressors.top_k(0.5)
PERM = compressors.perm_k()
TWO_AND_EIGHT = compressors.per_leaf(
    {"first": compressors.quantize(8), "rest": compressors.quantize(2)}
)
ONE_ROUTE = {("cp_oadam_gq", "gather"), ("ef21", "gather")}
ONE_ROUTE |= {("optimistic", "sharded"), ("pillars", "gather")}
ONE_ROUTE |= {("qsgda", "sharded"), ("diana", "sharded")}
LOSSY = [
    Row(
        f"{name}_{route}",
        lambda t, lr, axis=AXIS, build=build, codecs=codecs, route=route: build(
            lr, on(axis, *codecs, route=route)
        ),
        rate=rate,
    )
    for name, rate, codecs, build in [
        ("dqgan", 0.05, (FOUR_BITS, FOUR_BITS), methods.dqgan),
        ("dqgan_adam", 0.003, (FOUR_BITS,), methods.dqgan_adam),
        ("cp_oadam_gq", 0.003, (RAND,), methods.cp_oadam_gq),
        ("masha1", 0.1, (RAND,), lambda lr, c: methods.masha1(lr, c, 0.3)),
        ("masha2", 0.02, (TOP,), lambda lr, c: methods.masha2(lr, c, 0.3)),
        (
            "optimistic",
            0.05,
            (RAND,),
            lambda lr, c: methods.optimistic_masha(lr, c, 0.3),
        ),
        (
            "pillars",
            0.2,
            (PERM,),
            lambda lr, c: methods.three_pillars(lr, c, 0.3, 3, 0.05),
        ),
        (
            "local",
            0.05,
            (FOUR_BITS, TOP),
            lambda lr, c: methods.extra_step_local_sgd(lr, 3, c, outer=nesterov()),
        ),
        (
            "delayed",
            0.05,
            (FOUR_BITS, TOP),
            lambda lr, c: delayed(lr, jaxsp.error_feedback_average(c)),
        ),
        ("qsgda", 0.05, (RAND,), methods.qsgda),
        ("ef21", 0.05, (compressors.sign(),), methods.ef21_sgda),
        ("diana", 0.05, (RAND,), methods.diana_sgda),
        (
            "qoda_layers",
            1.0,
            (TWO_AND_EIGHT,),
            lambda lr, c: in_two(methods.qoda(lr, c)),
        ),
    ]
    for route in ("gather", "sharded")
    # Those that differ in what they compute and not in what they send have one each.
    if (name, route) not in ONE_ROUTE
]

ALL = METHODS + TRANSFORMS + COMPRESSED_METHODS + COMPRESSED_TRANSFORMS


class Game(NamedTuple):
    """A smooth monotone game, not affine, that differs from worker to worker."""

    H: np.ndarray  # [n, d, d]
    h: np.ndarray  # [n, d]

    def stacked(self, Z, *_):
        """F for the reference: one row a worker."""
        return np.einsum("mij,mj->mi", self.H, Z) + 0.3 * np.tanh(Z) + self.h

    @staticmethod
    def operator(z, H, h):
        """F_m for one worker."""
        return H @ z + 0.3 * jnp.tanh(z) + h


def make_game(n, d, seed=0):
    """Monotone, with a skew part of norm about 1 and workers that disagree."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d, d)) / np.sqrt(d)
    H = (A - A.transpose(0, 2, 1)) / 2 + 0.2 * np.eye(d)
    return Game(H, rng.normal(size=(n, d)))


def graphs(n):
    """The graphs on which trajectories are compared."""
    W = reference.random_doubly_stochastic(n, 3)
    return {
        "ring": topology.ring(n),
        "star": topology.star(n),
        "erdos_renyi": topology.erdos_renyi(n, 0.5, seed=1),
        "asymmetric": topology.from_matrix(W),
    }


def trajectory(workers, tx, game, z0, steps, many_rounds=True):
    """All iterates of all workers, `[steps + 1, n, d]`, and the last states.

    `many_rounds`: whether an update may have many rounds of gossip; what has few is
    compiled sooner without.
    """

    def one_worker(z, H, h):
        def F(z):
            return game.operator(z, H, h)

        def server(z):  # of worker 0, which all know
            return game.operator(z, game.H[0], game.h[0])

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(
                F(z),
                state,
                z,
                operator_fn=F,
                full_operator_fn=F,
                dual_operator_fn=F,
                server_operator_fn=server,
            )
            z = optax.apply_updates(z, updates)
            return (z, state), z

        (_, state), path = jax.lax.scan(step, (z, tx.init(z)), length=steps)
        return jnp.concatenate([z[None], path]), state

    # The older emitter that tests choose on JAX 0.10 (conftest.py) takes minutes where
    # many rounds of gossip are fused, as it writes out every round's sums again.
    older = jax.__version__.startswith("0.10.")
    newer = {"xla_cpu_use_fusion_emitters": True}
    options = newer if older and many_rounds else None
    run = jax.jit(workers.map(one_worker), compiler_options=options)
    path, state = run(z0, game.H, game.h)
    return workers.fetch(path).swapaxes(0, 1), state


def ends(workers, tx, problem, steps):
    """Where all workers of a problem end, from z = 1, and their states."""

    def run(data):
        def F(z):
            return problem.operator(z, data)

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            return (optax.apply_updates(z, updates), state), None

        z = jax.tree.map(jnp.ones_like, problem.z_star)
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[0]

    return jax.jit(workers.map(run))(problem.data)


def traffic(state):
    """What a state has counted, or nothing."""
    try:
        return jaxsp.metrics.bits_sent(state)
    except ValueError:
        return ()
