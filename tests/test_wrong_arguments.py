"""Every public function refuses wrong arguments by name, in one line, before any work.

`ROWS` has one right call of each. In it each argument is replaced, one at a time, by
every value of `VALUES` that its kind does not allow, and by pairs of them at random.
What is legal though strange (a schedule, a huge number) is named by the kinds.
"""

import contextlib
import importlib
import inspect
import itertools
import math
import re
import signal
from typing import Any

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsp
from jaxsp import MinMax, compressors, topology
from jaxsp.gan import losses, md_gan, models

ROOMS = [
    "",
    "aggregators",
    "comm.channels",
    "compressors",
    "gan.data.partition",
    "gan.fl_gan",
    "gan.losses",
    "gan.md_gan",
    "gan.models",
    "gan.step",
    "methods",
    "metrics",
    "problems",
    "projections",
    "theory",
    "topology",
    "transforms",
]
# What the library calls itself, inside a step, with what has been checked before.
INNER = {"gan.step.to_batch", "gan.step.moving_average", "gan.step.bits"}
INNER |= {"gan.step.fetch_losses"}
INNER |= {f"comm.channels.{f}" for f in ("check_contractive", "check_unbiased")}
INNER |= {f"comm.channels.{f}" for f in ("check_key", "check_mean", "as_channel")}
INNER |= {"gan.step.draw_keys", "comm.channels.Route"}

KEY = jax.random.key(0)
VALUES = {
    "none": None,
    "text": "text",
    "negative": -1,
    "zero": 0,
    "nan": math.nan,
    "infinite": math.inf,
    "huge": 10**30,
    "beyond": 10**400,
    "half": 2.5,
    "true": True,
    "complex": 1j,
    "vector": np.zeros(3),
    "matrix": np.full((3, 3), math.nan),
    "integers": jnp.arange(3),
    "uncalled": optax.adam,
    "list": [1.5, "a"],
    "dict": {"a": object()},
    "object": object(),
    "keys": jax.random.split(KEY),
    "raw": np.zeros(2, np.uint32),
}
NUMBERS = "half huge"
# What is legal of the values above, where an argument is of that kind; beside it None,
# where that is the default.
KINDS = {
    "axis": "text",
    "channel": "text",
    "count": "",
    "count from 0": "zero",
    "decay": "zero",
    "devices": "",
    "dtype": "",
    "flag": "true",
    "fraction": "",  # above 0 and at most 1
    "function": "uncalled",
    "name": "text",
    "nonnegative": f"zero {NUMBERS}",
    "one of": "",  # some words
    "one of or none": "none",
    "positive": NUMBERS,
    "rate": f"{NUMBERS} uncalled",
    "schedule or count": "uncalled",
    "seed": "zero huge beyond",
    "instance": "",  # of a class of the library, or a transformation
    "one to": NUMBERS,  # at least 1
    "rows": "integers",
    "tree": "none zero negative nan infinite half complex vector matrix integers raw",
    "floats": "none nan infinite half vector matrix",
    "stack": "vector",  # of real numbers
    "rows of floats": "none vector matrix",
    "vectors": "none vector integers raw",
    "axes": "none zero",
    "index": "zero",
    "keys or rows": "keys raw none",
    "tree or keys": "none zero negative nan infinite half true complex vector matrix "
    "integers raw keys",
    "bound": "zero negative half infinite",
    "integers": "integers raw",
    "kernel": "vector matrix",
    "anything": " ".join(VALUES),
}
AXIS, KEY = "workers", jax.random.key(0)
SGD, RING = optax.sgd(0.1), topology.ring(4)
WORKERS = jaxsp.Workers(2, jax.devices()[:1])
GAN = models.mlp((2,), 3, latent_size=5, width=4, depth=1)
LOSSES, PAYOFF = losses.acgan(GAN), jnp.eye(2)
POINT = MinMax(jnp.ones(2), jnp.ones(2))
X, Y = models.init(GAN, KEY)
LABELS, PARTS = np.arange(6) % 3, [np.arange(3), np.arange(3, 6)]
ALIVE = np.ones(2, bool)
UNBIASED = jaxsp.channel(AXIS, compressors.rand_k(0.5), key=KEY)
UNMADE = jaxsp.channel(AXIS, key=KEY)
CONTRACTIVE = jaxsp.channel(AXIS, compressors.top_k(0.5), key=KEY)
SIGN = compressors.sign()
DUAL = jaxsp.transforms.AcceleratedDualSteps(
    *jaxsp.theory.optimal_time_varying(1.0, 0.5, 2.0)[1:]
)
REFRESH = jaxsp.transforms.Refresh(0.5, KEY)


# What flax or optax made, and refuses itself where it does not fit.
PARAMS = ("anything", X), ("anything", Y)
BATCH, KEYS = (jnp.ones((2, 2)), jnp.zeros(2, int)), jax.random.split(KEY, 1)
MNIST = {"sample_shape": ("instance", (28, 28, 1))}


def loss(*_):
    """Stands for any function."""
    return jnp.zeros(())


# Arguments by name, as kind and right value, wherever a row of `OTHERS` says no other.
ARGUMENTS = {
    "step": ("count from 0", 3),
    "L": ("positive", 2.0),
    "W": ("instance", np.eye(2)),
    "acceleration": ("one of or none", None),
    "aggregate": ("instance", None),
    "adjacency": ("instance", np.eye(2)),
    "alive": ("instance", ALIVE),
    "alpha": ("positive", 1.0),
    "array": ("anything", np.zeros((6, 2))),
    "axis_name": ("axis", AXIS),
    "b": ("count from 0", 1),
    "b1": ("decay", 0.5),
    "b2": ("decay", 0.5),
    "batch_share": ("fraction", 0.5),
    "batch_size": ("count", 2),
    "batches_k": ("count", 1),
    "beta": ("positive", 5.0),
    "bits": ("count", 4),
    "bound": ("nonnegative", 1.0),
    "channel": ("channel", AXIS),
    "chi": ("nonnegative", None),
    "class_weight": ("nonnegative", 1.0),
    "cols": ("count", 3),
    "columns": ("count", 2),
    "combine": ("instance", SGD),
    "compressor": ("instance", SIGN),
    "counts": ("instance", np.ones((2, 3), int)),
    "delta": ("one to", 1.5),
    "delta_server": ("one to", 1.5),
    "depth": ("count", 1),
    "devices": ("devices", jax.devices()[:1]),
    "diameter": ("nonnegative", 2.0),
    "differences": ("one of", "full"),
    "dim": ("count", 3),
    "disc_steps": ("count", 1),
    "discriminator_optimizer": ("instance", SGD),
    "distance": ("count", 2),
    "down": ("instance", None),
    "dtype": ("dtype", np.dtype("float32")),
    "ema_decay": ("decay", 0.9),
    "ends": ("instance", ([0], [1])),
    "dual_learning_rate": ("rate", 0.1),
    "eps": ("nonnegative", 1e-8),
    "epsilon": ("fraction", 0.5),
    "every": ("count", 2),
    "exchange": ("instance", SGD),
    "exchanges": ("count from 0", 2),
    "f": ("function", loss),
    "feedback": ("positive", 0.5),
    "fraction": ("fraction", 0.5),
    "gan": ("instance", GAN),
    "generator_optimizer": ("instance", SGD),
    "gamma": ("nonnegative", 1.0),
    "gradient_penalty": ("nonnegative", 1.0),
    "graph": ("instance", networkx.path_graph(3)),
    "has_aux": ("flag", False),
    "heterogeneity": ("nonnegative", 0.1),
    "inner": ("instance", SGD),
    "iterations": ("count", 2),
    "kernel": ("kernel", jnp.ones((2, 2))),
    "key": ("instance", KEY),
    "labels": ("integers", LABELS),
    "lam": ("positive", 0.1),
    "latent_size": ("count", 5),
    "latents": ("instance", jnp.ones((2, 5))),
    "learning_rate": ("rate", 0.1),
    "levels": ("count", 4),
    "local": ("instance", jaxsp.transforms.LocalSteps(2, 0.1)),
    "local_learning_rate": ("rate", 0.1),
    "local_steps": ("count", 2),
    "look_ahead": ("positive", 2.0),
    "losses": ("instance", LOSSES),
    "lower": ("bound", 0.0),
    "max_consecutive_errors": ("count", 3),
    "members": ("instance", (RING, RING)),
    "method": ("instance", SGD),
    "min_size": ("count", 1),
    "momentum": ("nonnegative", 1.0),
    "moments": ("one of", "stay"),
    "n": ("count", 4),
    "name": ("name", "a name"),
    "noise": ("nonnegative", 0.1),
    "nonzero": ("count from 0", 1),
    "norm": ("flag", True),
    "num_classes": ("count from 0", 3),
    "operator": ("function", loss),
    "optimizer": ("instance", SGD),
    "outer": ("instance", SGD),
    "order": ("one of", "adapt_then_combine"),
    "p": ("fraction", 1.0),
    "participants": ("count", 1),
    "parts": ("instance", PARTS),
    "payoff": ("instance", PAYOFF),
    "pool": ("count", 3),
    "probability": ("fraction", 0.5),
    "project": ("function", loss),
    "prox": ("function", loss),
    "q": ("one to", 1.5),
    "q_server": ("one to", 1.5),
    "r1": ("nonnegative", 1.0),
    "radius": ("nonnegative", 1.0),
    "random": ("flag", False),
    "rank": ("count", 2),
    "refresh": ("fraction", 0.5),
    "rounds": ("count", 2),
    "route": ("one of", None),
    "rows": ("count", 2),
    "same_sample": ("flag", False),
    "sample_shape": ("instance", (8, 8, 1)),
    "samples": ("count", 4),
    "seed": ("seed", 0),
    "sigma": ("nonnegative", 1.0),
    "size": ("count", 4),
    "snapshot": ("one of", "previous"),
    "stacked": ("rows of floats", jnp.ones((2, 3))),
    "step_size": ("fraction", 0.5),
    "steps_per_call": ("count", 1),
    "support": ("count", 2),
    "swap_every": ("count", 2),
    "sync_every": ("schedule or count", 2),
    "text": ("name", "iid"),
    "topology": ("instance", RING),
    "total": ("positive", 1.0),
    "tree": ("floats", POINT),
    "unbiased": ("instance", compressors.natural()),
    "up": ("instance", None),
    "upper": ("bound", math.inf),
    "weights": ("instance", [1.0, 2.0]),
    "width": ("count", 8),
    "workers": ("count", 2),
    "x": ("instance", SGD),
    "y": ("instance", SGD),
    "y_steps": ("count", 2),
    "before": ("instance", ALIVE),
    "count": ("count", 4),
    "features": ("count", 2),
    "mu": ("positive", 0.5),
    "linear": ("nonnegative", 1.0),
    "share": ("fraction", 0.3),
    "spectral": ("flag", False),
    "z": ("instance", POINT),
    "z_star": ("instance", POINT),
}
# What is of another kind, or has another right value, in some functions.
OTHERS: dict[str, dict[str, Any]] = {
    **{
        f"Workers.{method}": {"tree": ("keys or rows", jnp.ones((2, 3)))}
        for method in ("replicate", "shard", "shard_local", "fetch", "fetch_mean")
    },
    "Workers.map": {"fn": ("function", loss), "in_axes": ("axes", 0)},
    "Workers.permute": {
        "tree": ("keys or rows", jnp.ones((2, 3))),
        "rows": ("integers", [1, 0]),
    },
    "Workers.replicate": {"tree": ("tree or keys", jnp.ones(3))},
    "StepSize.times": {"factor": ("positive", 2.0)},
    "MDGan.program": {"workers": ("instance", WORKERS)},
    "Compressor.for_worker": {"index": ("index", 1), "count": ("count", 4)},
    "aggregators.Aggregator": {
        "name": ("name", "mine"),
        "combine": ("function", loss),
        "coordinatewise": ("flag", False),
    },
    "aggregators.centered_clipping": {"radius": ("positive", 1.0)},
    "aggregators.geometric_median": {"eps": ("positive", 1e-6)},
    "compressors.allocate_bits": {
        "gradients": ("stack", {"w": jnp.ones((2, 3))}),
        "bits": ("positive", 4.0),
        "choices": ("instance", (2, 4, 8)),
    },
    "compressors.Compressor": {
        "name": ("name", "mine"),
        "compress": ("function", loss),
        "decompress": ("function", loss),
        "q": ("function", loss),
        "delta": ("function", loss),
        "per_leaf": ("flag", False),
        "shared_key": ("flag", False),
        "worker": ("function", None),
        "warm": ("function", None),
        "total": ("function", None),
        "layers": ("instance", None),
    },
    "gan.data.partition.parse": {},
    "gan.data.partition.plot": {"path": ("name", "plot.png")},
    "gan.data.partition.table": {"parts": ("instance", [np.arange(2)])},
    "game": {"losses": ("function", loss)},
    "gan.data.partition.stack": {"rows": ("count", 3)},
    "gan.fl_gan.fl_gan": {"sync_every": ("count", 2)},
    "gan.md_gan.MDGan": {
        "alive": ("function", None),
        "server_device": ("instance", None),
    },
    "gan.md_gan.derangement": {"rng": ("instance", np.random.default_rng(0))},
    "gan.models.Gan": {
        "generator": ("instance", GAN.generator),
        "discriminator": ("instance", GAN.discriminator),
        "sample_shape": ("instance", (2,)),
    },
    "gan.md_gan.messages": {"discriminator_optimizer": ("instance", SGD)},
    "gan.md_gan.server_generate": {"x": PARAMS[0], "keys": ("anything", KEYS)},
    "gan.md_gan.server_update": {
        "x": PARAMS[0],
        "opt_state": ("anything", SGD.init(X)),
        "latents": ("anything", jnp.ones((1, 2, 5))),
        "feedback": ("anything", jnp.ones((2, 2, 2))),
        "g_index": ("anything", np.zeros(2, int)),
        "alive": ("anything", ALIVE),
    },
    "gan.md_gan.swap": {
        "tree": ("anything", jnp.ones((2, 3))),
        "permutation": ("anything", np.array([1, 0])),
    },
    "gan.md_gan.worker_step": {
        "y": PARAMS[1],
        "opt_state": ("anything", SGD.init(Y)),
        "batch": ("anything", BATCH),
        "fakes": ("anything", (BATCH, BATCH)),
    },
    "gan.models.classify": {"y": PARAMS[1], "samples": ("instance", BATCH[0])},
    "gan.models.discriminate": {"y": PARAMS[1], "samples": ("instance", BATCH[0])},
    "gan.models.discriminate_and_classify": {
        "y": PARAMS[1],
        "samples": ("instance", BATCH[0]),
    },
    "gan.models.generate": {"x": PARAMS[0]},
    "gan.models.latents": {"n": ("count from 0", 2), "labels": ("integers", None)},
    "gan.models.mlp": {"sample_shape": ("instance", (2,))},
    "gan.models.md_gan_cnn": MNIST,
    "gan.models.md_gan_mlp": MNIST,
    "gan.models.sample": {
        "x": PARAMS[0],
        "n": ("count from 0", 2),
        "labels": ("integers", None),
    },
    "gan.models.parse": {"text": ("instance", "mlp:4")},
    "gan.step.init_state": {"workers": ("instance", WORKERS)},
    "gan.step.make_step": {"workers": ("instance", WORKERS)},
    "gan.step.program": {"workers": ("instance", WORKERS)},
    "methods.compressed_extragradient": {"channel": ("channel", CONTRACTIVE)},
    "methods.eval_params": {"state": ("anything", ()), "params": ("anything", POINT)},
    "methods.extra_step_local_sgd": {"sync_every": ("schedule or count", 2)},
    "methods.cp_oadam_gq": {"channel": ("channel", UNBIASED)},
    "methods.diana_sgda": {"channel": ("channel", UNBIASED)},
    "methods.qoda": {"channel": ("channel", UNBIASED)},
    "transforms.optimistic_dual_averaging": {"channel": ("channel", UNBIASED)},
    "methods.proxskip_vip": {"channel": ("instance", UNMADE)},
    "transforms.prox_skip": {"channel": ("instance", UNMADE)},
    "methods.masha1": {"channel": ("instance", UNBIASED)},
    "methods.masha2": {"channel": ("instance", CONTRACTIVE)},
    "methods.pearl_sgd": {"sync_every": ("count", 2)},
    "methods.pp_masha1": {"channel": ("instance", UNBIASED)},
    "methods.rand_dp_oadam": {"topology": ("instance", topology.random_ring(4))},
    "methods.optimistic_masha": {"channel": ("instance", UNBIASED)},
    "methods.three_pillars": {"channel": ("instance", UNBIASED)},
    "methods.vr_optimal_decentralized": {"refresh": ("instance", REFRESH)},
    "methods.vr_masha1": {"channel": ("instance", UNBIASED)},
    "methods.vr_masha2": {"channel": ("instance", CONTRACTIVE)},
    "metrics.residual": {"z": ("tree", POINT)},
    "metrics.bits_sent": {"state": ("instance", jaxsp.comm.no_traffic())},
    "problems.calls_lower_bound": {"epsilon": ("positive", 0.5)},
    "problems.definite_bilinear": {"mu": ("nonnegative", 0.5)},
    "problems.distance_lower_bound": {"z_star": ("vectors", POINT)},
    "projections.simplex": {"tree": ("rows of floats", POINT)},
    "projections.l1_ball": {"radius": ("positive", 1.0)},
    **{f"theory.{f}": {"mu": ("decay", 0.5)} for f in jaxsp.theory.__all__},
    "theory.optimistic_masha": {
        "mu": ("decay", 0.5),
        "delta": ("nonnegative", 0.5),
    },
    "theory.optimal_decentralized": {"mu": ("decay", 0.5), "chi": ("one to", 4.0)},
    "theory.optimal_time_varying": {"mu": ("decay", 0.5), "chi": ("one to", 4.0)},
    "theory.three_pillars": {"mu": ("decay", 0.5), "delta": ("nonnegative", 0.5)},
    "topology.Topology": {
        "self_weights": ("instance", RING.self_weights),
        "permutations": ("instance", RING.permutations),
        "weights": ("instance", RING.weights),
    },
    "transforms.average": {"channel": ("channel", UNBIASED)},
    **{
        f"transforms.{f}": {"refresh": ("instance", REFRESH)}
        for f in (
            "optimistic_snapshot",
            "server_steps",
            "snapshot_extragradient",
        )
    },
    **{
        path: {"steps": ("instance", DUAL)}
        for path in (
            "methods.optimal_time_varying",
            "transforms.accelerated_dual_gossip",
        )
    },
    "transforms.primal_dual_gossip": {
        "refresh": ("instance", REFRESH),
        "steps": ("instance", jaxsp.transforms.PrimalDualSteps(0.1, 1.0, 0.5)),
    },
    "transforms.sync": {"every": ("schedule or count", 2)},
}


def public():
    """Every public function, and every public class that checks what it is given."""
    for room in ROOMS:
        module = importlib.import_module(f"jaxsp.{room}".rstrip("."))
        for name in module.__all__:
            found, path = getattr(module, name), f"{room}.{name}".lstrip(".")
            record = inspect.isclass(found) and (
                issubclass(found, tuple | nn.Module) or found in RECORDS
            )
            if callable(found) and not record and path not in INNER | {"game"}:
                yield path, found
    yield "game", game_of_two


RECORDS = (jaxsp.comm.Channel,)


def game_of_two(losses, has_aux=False):
    """`game` by names alone."""
    return jaxsp.game(loss, losses, has_aux=has_aux)


PATHS = {f: path for path, f in public()}  # each once
FUNCTIONS: dict[str, Any] = {path: f for f, path in PATHS.items()}


def right(path):
    """Names, kinds and right values of the arguments, and which may be None."""
    for p in inspect.signature(FUNCTIONS[path]).parameters.values():
        if p.kind is p.VAR_KEYWORD:  # flax's own
            continue
        kind, value = OTHERS.get(path, {}).get(p.name) or ARGUMENTS[p.name]
        yield p.name, kind, value, p.default is None


FUNCTIONS |= {
    f"Workers.{method}": getattr(WORKERS, method)
    for method in ("map", "replicate", "shard", "shard_local", "fetch", "fetch_mean")
}
FUNCTIONS["Workers.permute"] = WORKERS.permute
FUNCTIONS["StepSize.times"] = jaxsp.theory.extra_step(2.0, 0.5).times
FUNCTIONS["MDGan.program"] = md_gan.MDGan(SGD, SGD).program
FUNCTIONS["Compressor.for_worker"] = compressors.perm_k().for_worker


@contextlib.contextmanager
def within(seconds):
    """What takes longer hangs."""

    def hangs(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def refused(path, arguments, names):
    """What is wrong about the way in which a call is refused, or nothing."""
    try:
        with within(20):
            FUNCTIONS[path](**arguments)
    except ValueError as error:
        text = str(error)
        if "\n" in text or not any(re.search(rf"\b{name}\b", text) for name in names):
            return f"is not named in one line: {text}"
        return None
    except BaseException as error:
        return f"ends in {type(error).__name__}: {error}"
    return "is taken"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_wrong_arguments_are_refused_by_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {name: value for name, _, value, _ in right(path)}
    FUNCTIONS[path](**arguments)
    wrong, choices = [], []
    for name, kind, _, optional in right(path):
        legal = KINDS[kind].split() + ["none"] * optional
        choices += [(name, label) for label in VALUES if label not in legal]
    # One at a time, and pairs of which one is named.
    pairs = np.random.default_rng(0).permutation(len(choices))[:10]
    tries = [(choice,) for choice in choices]
    if path != "metrics.distance":  # two numbers are as far apart as two trees
        tries += [(choices[i], choices[j]) for i, j in itertools.pairwise(pairs)]
    for some in tries:
        given = {name: VALUES[label] for name, label in some}
        if found := refused(path, arguments | given, given):
            wrong.append(f"{some} {found}"[:300])
    assert not wrong, "\n".join(wrong)


def test_every_argument_has_a_kind():
    """A new function, or argument, needs a row."""
    for path in FUNCTIONS:
        for name, kind, *_ in right(path):
            assert set(KINDS[kind].split()) <= set(VALUES), (path, name)
