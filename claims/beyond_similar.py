"""What the likeness of workers is worth: experiments of `beyond.yaml`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import Measured, Panel, best, double
from jax import flatten_util, lax
from sklearn import datasets

import jaxsp
from jaxsp import compressors, methods, problems, theory

__all__ = ["diabetes", "similarity"]

_AXIS = "workers"
_Y = r"$|z - z^*| / |z^0 - z^*|$"
_ACCURACY = 1e-6


class Game(NamedTuple):
    """A problem whose workers differ by a known amount.

    Attributes:
      problem: with its solution and constants.
      workers: M.
      size: how many numbers a point is.
      delta: a Lipschitz constant of every $F_m - F$, at the solution.
    """

    problem: problems.Problem
    workers: int
    size: int
    delta: float


# ------------------------------------------------------------------ like workers


def _like(workers, dim, share, seed) -> Game:
    """Bilinear parts of norm 1 and of norm `share` for what is a worker's own."""
    rng, mu = np.random.default_rng(seed), 0.01
    A, own = rng.normal(size=(dim, dim)), rng.normal(size=(workers, dim, dim))
    own -= own.mean(0)
    own *= share / np.linalg.norm(own, 2, axis=(1, 2)).max()
    coupling = A / np.linalg.norm(A, 2) + own
    p, q = rng.normal(size=(2, workers, dim))
    mean, one = coupling.mean(0), mu * np.eye(dim)
    z = np.linalg.solve(
        np.block([[one, mean], [-mean.T, one]]), np.r_[-p.mean(0), -q.mean(0)]
    )
    like = problems.quadratic(workers, dim, L=1.0, mu=mu, seed=seed)
    data = like.data._replace(
        coupling=jnp.asarray(coupling), p=jnp.asarray(p), q=jnp.asarray(q)
    )
    star = jaxsp.MinMax(jnp.asarray(z[:dim]), jnp.asarray(z[dim:]))
    L = float(np.hypot(np.linalg.norm(mean, 2), mu))
    found = like._replace(data=data, z_star=star, L=L)
    return Game(found, workers, 2 * dim, share)


def _diabetes(workers, seed) -> Game:
    """Robust regression on scikit-learn's diabetes data, dealt out at random."""
    X, y = map(np.asarray, datasets.load_diabetes(return_X_y=True))
    X, y = X / X.std(0), (y - y.mean()) / y.std() + 1.0
    each = len(X) // workers
    order = np.random.default_rng(seed).permutation(len(X))[: each * workers]
    problem = problems.robust_regression(workers, each, X.shape[1], seed=seed)
    features = X[order].reshape(workers, each, -1)
    samples = type(problem.data)(
        jnp.asarray(features), jnp.asarray(y[order].reshape(workers, each))
    )
    problem = problem._replace(data=samples)
    zero = jax.tree.map(jnp.zeros_like, problem.z_star)
    flat, unravel = flatten_util.ravel_pytree(zero)

    def operator(z, data):
        return flatten_util.ravel_pytree(problem.operator(unravel(z), data))[0]

    def mean(z):
        return flatten_util.ravel_pytree(problem.mean_operator(unravel(z)))[0]

    step = 0.02
    star = jax.jit(
        lambda z: lax.fori_loop(
            0, 50_000, lambda _, z: z - step * mean(z - step * mean(z)), z
        )
    )(flat)
    of_all = np.asarray(
        jax.vmap(jax.jacobian(operator), in_axes=(None, 0))(star, samples)
    )
    J = of_all.mean(0)
    delta = np.linalg.norm(of_all - J, 2, axis=(1, 2)).max()
    found = problem._replace(
        z_star=unravel(star),
        L=float(np.linalg.norm(J, 2)),
        mu=float(np.linalg.eigvalsh((J + J.T) / 2)[0]),
    )
    return Game(found, workers, flat.size, float(delta))


class Entry(NamedTuple):
    """A method of one rate, with what it sends.

    Attributes:
      make: of the rate.
      rates: to try.
      steps: how many iterations.
      message: numbers that a worker sends up in an iteration, without snapshots.
      rounds: how often it sends in an iteration; a snapshot goes with a message.
    """

    make: Callable[[Any], Any]
    rates: np.ndarray
    steps: int
    message: float
    rounds: float = 1


def _entries(game: Game, seed: int, steps: int) -> dict[str, Entry]:
    """The methods, each with several steps around that of the theory."""
    L, mu, d = game.problem.L, game.problem.mu, game.size
    M, key = game.workers, jax.random.key(seed)

    def channel(codec=None):
        return jaxsp.channel(_AXIS, codec, key=key, route=codec and "gather")

    perm, kept = channel(compressors.perm_k()), -(-d // M)
    bits = compressors.quantize(4)
    coded = bits.bits(jnp.zeros(d)) / 32  # as so many numbers
    factors = np.array([0.5, 1.0, 2.0, 4.0])
    like = theory.optimistic_masha(L, mu, game.delta, workers=M)
    masha1 = theory.masha1(L, mu, 1.0, workers=M, refresh=min(0.5, 1 / M))
    pillars = theory.three_pillars(L, mu, game.delta, workers=M)
    local, skip = 8, 1 / 8
    slow = mu / L**2 * factors  # descent turns away from the solution where games turn

    def three(H, gamma):
        eta = 1 / (2 * (L + game.delta + 1 / gamma))
        return methods.three_pillars(gamma, perm, 1 / M, H, eta)

    def local_extragradient(rate):
        tracked = jaxsp.transforms.drift_correction(2 * local, _AXIS)
        inside = optax.chain(tracked, optax.sgd(rate))
        return optax.chain(jaxsp.extragradient(inside), jaxsp.sync(local, _AXIS))

    found = {
        "extragradient": Entry(
            lambda rate: methods.extra_step(rate, _AXIS),
            np.array([0.5, 0.7, 0.9]) / L,
            steps,
            2 * d,
            2,
        ),
        "compressed extragradient": Entry(
            lambda rate: methods.compressed_extragradient(rate, perm),
            np.array([0.1, 0.5]) / L,
            steps,
            2 * kept,
            2,
        ),
        "MASHA1": Entry(
            lambda rate: methods.masha1(rate, perm, masha1.refresh),
            factors * masha1.learning_rate,
            16 * steps,
            kept,
        ),
        "Optimistic MASHA": Entry(
            lambda rate: methods.optimistic_masha(
                rate, perm, like.refresh, like.momentum
            ),
            np.array([0.5, 1.0, 1.4]) * like.learning_rate,
            16 * steps,
            kept,
        ),
        "local extragradient, tracked": Entry(
            local_extragradient,
            np.array([0.1, 0.3, 0.5, 0.7]) / L,
            8 * steps,
            2 * d / local,
            2 / local,
        ),
        "FedGDA-GT": Entry(
            lambda rate: methods.fedgda_gt(rate, local, _AXIS),
            slow,
            8 * steps,
            2 * d / local,
            2 / local,
        ),
        "ProxSkip-VIP": Entry(
            lambda rate: methods.proxskip_vip(rate, channel(), skip),
            slow,
            8 * steps,
            d * skip,
            skip,
        ),
        "QODA, 4 bits": Entry(
            lambda rate: methods.qoda(rate, channel(bits)),
            np.array([0.5, 1.0, 2.0]),
            2 * steps,
            coded + 1,
        ),
    }
    for times in (1, 2):
        H = min(times * pillars.local_steps, 64)
        found[f"Three Pillars, {times} H"] = Entry(
            functools.partial(three, H),
            factors * pillars.learning_rate,
            2 * steps,
            kept,
        )
    return found


def _run(game: Game, entry: Entry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, numbers sent up and bits counted, [rates, steps]."""
    problem, server = game.problem, game.problem.operators[0]
    workers = jaxsp.Workers(game.workers, jax.devices()[:1])
    zero = jax.tree.map(jnp.zeros_like, problem.z_star)
    scale = float(optax.tree.norm(problem.z_star))

    def run(rate, data):
        method = entry.make(rate)

        def field(z):
            return problem.operator(z, data)

        def step(carry, _):
            z, state, sent = carry
            # A whole operator where a snapshot is new.
            sent += entry.message + game.size * getattr(state, "stale", False)
            updates, state = method.update(
                field(z), state, z, operator_fn=field, server_operator_fn=server
            )
            z = optax.apply_updates(z, updates)
            bits = sum(
                c.up[0] * 2.0**32 + c.up[1] for c in jaxsp.comm.find_traffic(state)
            )
            gap = optax.tree.norm(optax.tree.sub(z, problem.z_star))
            gap = lax.pmax(
                gap, _AXIS
            )  # between averages points differ: of the farthest
            return (z, state, sent), (gap / scale, sent, bits)

        start = zero, method.init(zero), jnp.zeros(())
        return lax.scan(step, start, length=entry.steps)[1]

    mapped = jax.vmap(workers.map(run, in_axes=(None, 0)), in_axes=(0, None))
    found = jax.jit(mapped)(jnp.asarray(entry.rates), problem.data)
    gaps, sent, bits = (np.asarray(v[:, 0]) for v in found)
    return gaps, sent, bits


_UNITS = {
    "floats": "numbers sent up by a worker",
    "bits": "bits counted, without a server",
    "rounds": "rounds",
}

_FAMILIES = {
    "differences": ("MASHA1", "Optimistic MASHA"),
    "Three Pillars": ("Three Pillars, 1 H", "Three Pillars, 2 H"),
    "local steps": ("local extragradient, tracked", "FedGDA-GT", "ProxSkip-VIP"),
}


def _compare(game: Game, seed: int, steps: int, title: str):
    """Numbers up, bits and rounds to the accuracy, with a panel of each."""
    values, lines = {}, {unit: {} for unit in _UNITS}
    for name, entry in _entries(game, seed, steps).items():
        gaps, *spent = _run(game, entry)
        hit = gaps <= _ACCURACY
        first = np.where(hit.any(1), hit.argmax(1), -1)
        costs = np.where(first >= 0, spent[0][range(len(first)), first], np.inf)
        chosen = int(np.argmin(costs)) if np.isfinite(costs).any() else best(gaps, 100)
        thin = slice(None, None, max(1, entry.steps // 200))
        at, rounds = first[chosen], entry.rounds * np.arange(1.0, entry.steps + 1)
        costs = [numbers[chosen] for numbers in spent] + [rounds]
        for unit, cost in zip(_UNITS, costs, strict=True):
            values[f"{name} {unit}"] = float(cost[at]) if at >= 0 else np.inf
            lines[unit][name] = cost[thin], np.clip(gaps[chosen, thin], 1e-8, 1e3)
    for family, names in _FAMILIES.items():
        for unit in _UNITS:
            cost = min(values[f"{name} {unit}"] for name in names)
            values[f"gain of {family} in {unit}"] = (
                values[f"extragradient {unit}"] / cost
            )
    panels = [
        Panel(title, label, _Y, lines[unit], {"to 1e-6": _ACCURACY}, "xy")
        for unit, label in _UNITS.items()
    ]
    return values, panels


def _named(prefix, values):
    return {f"{prefix}: {name}": value for name, value in values.items()}


@double
def similarity(seed: int, full: bool) -> Measured:
    """Workers alike to a hundredth, to a tenth, and not at all."""
    dim, steps = (50, 2_400) if full else (20, 1_600)
    values, panels = {}, []
    for workers in (25, 40) if full else (25,):
        for name, share in (("similar", 0.01), ("moderate", 0.1), ("unlike", 1.0)):
            game = _like(workers, dim, share, seed)
            title = f"{name}, M = {workers}, δ = {share:g} L"
            found, drawn = _compare(game, seed, steps, title)
            values |= _named(f"{name} {workers}", found)
            panels += drawn
    for like in ("similar", "unlike", ""):  # the lowest, over instances
        for family in _FAMILIES:
            for unit in _UNITS:
                gain = f"gain of {family} in {unit}"
                values[f"{like or 'all'}, {gain}"] = min(
                    v
                    for k, v in values.items()
                    if k.startswith(like) and k.endswith(f": {gain}")
                )
    return Measured(values, panels)


@double
def diabetes(seed: int, full: bool) -> Measured:
    """Robust regression on real data, dealt out at random."""
    values, panels = {}, []
    for workers in (5, 25, 40) if full else (25,):
        game = _diabetes(workers, seed)
        title = (
            f"diabetes, M = {workers}, L/μ = {game.problem.L / game.problem.mu:.0f}, "
            f"δ = {game.delta / game.problem.L:.2f} L"
        )
        found, drawn = _compare(game, seed, 2_000 if full else 1_000, title)
        values |= _named(str(workers), found) | {
            f"{workers}: δ / L": game.delta / game.problem.L
        }
        panels += drawn
    return Measured(values, panels)
