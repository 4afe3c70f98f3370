"""The methods by name, and what each and each kind of data takes by default."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsp
from jaxsp import compressors, methods
from jaxsp.gan import fl_gan, losses, md_gan, names
from jaxsp.gan.command import BadFlagError, naming
from jaxsp.transforms import alternating, apply_if_all_finite

__all__ = ["ADAM_FORMS", "BUILDERS", "LOSSES", "METHODS", "game", "make"]
__all__ += ["own_flags", "topology_of", "with_defaults"]

# A pair is what images take and what points do. Learning rates of optimistic Adam, of
# Adam of players who take turns (with 2e-3 the discriminators of md_gan win on images),
# of optimistic and of extragradient plain steps, which from 0.02 on diverge on points.
_ADAM, _TURNS, _OPTIMISTIC, _EXTRA = (
    {"learning_rate": rates}
    for rates in ((2e-3, 5e-3), (1e-3, 5e-3), (0.02, 0.005), (0.01, 0.005))
)
_BETAS = {"b1": 0.5, "b2": 0.9}
_ADAM |= _BETAS
_TURNS |= _BETAS | {"disc_steps": 1}
_PLAIN, _CODES, _RANDOM, _LARGEST = (
    {"compressor": name, "down": "none"}
    for name in ("none", "quantize", "rand_k", "top_k")
)
_RING, _REFRESH = {"topology": "ring", "rounds": 1}, {"refresh": None}
_TWICE = {"second_sample": "own"}
_LOCAL = _TWICE | {"sync_every": 10, "sync_epochs": None} | _PLAIN
_LOCAL |= {"outer_learning_rate": None, "outer_momentum": None}
_FEDERATED = {"sync_every": None, "sync_epochs": 1.0, "participation": 1.0}
_SERVER = {"swap_epochs": 1.0, "moments": "stay", "batches_k": "log"}
# The flags that not every method reads, with their defaults.
METHODS: dict[str, dict[str, Any]] = {
    # Whole gradients or parameters, exchanged in every step.
    "extra_step": _EXTRA | _PLAIN | _TWICE,
    "decentralized_extra_step": _EXTRA | _RING | {"rounds": 4} | _TWICE,
    "dposg": _OPTIMISTIC | _RING,
    "cp_oadam": _ADAM | _PLAIN,
    "dp_oadam": _ADAM | _RING,
    "rand_dp_oadam": _ADAM | {"topology": "random_ring"},
    "tracked_dp_oadam": _ADAM | _RING,
    # Steps of their own, averaged once in a while.
    "extra_step_local_sgd": _EXTRA | _LOCAL,
    "local_extra_adam": _ADAM | _LOCAL,
    "fl_gan": _TURNS | _FEDERATED,
    # A generator on a server, a discriminator on every worker.
    "md_gan": _TURNS | _SERVER | {"crash_every": None},
    # One worker with all data, to compare with.
    "standalone": _TURNS,
    # Compressed messages.
    "dqgan": _OPTIMISTIC | _CODES,
    "dqgan_adam": _ADAM | _CODES,
    "cp_oadam_gq": _ADAM | _CODES,
    "masha1": _EXTRA | _RANDOM | _REFRESH,
    "masha2": _EXTRA | _LARGEST | _REFRESH,
    "pp_masha1": _EXTRA | _RANDOM | _REFRESH | {"participation": 0.5},
    "vr_masha1": _EXTRA | _RANDOM | _REFRESH,
    "vr_masha2": _EXTRA | _LARGEST | _REFRESH,
    "compressed_extragradient": _EXTRA | _CODES | _TWICE,
    "error_feedback_extragradient": _EXTRA | _LARGEST | _TWICE,
    "qsgda": _EXTRA | _CODES,
    "diana_sgda": _EXTRA | _CODES,
    "ef21_sgda": _EXTRA | _LARGEST,
}
# What makes steps of Adam in the place of plain ones, which GANs hardly follow.
ADAM_FORMS = {
    "extra_step": "cp_oadam",
    "decentralized_extra_step": "dp_oadam",
    "dposg": "dp_oadam",
    "extra_step_local_sgd": "local_extra_adam",
    "dqgan": "dqgan_adam",
    **dict.fromkeys(("masha1", "masha2", "pp_masha1"), "dqgan_adam"),
    **dict.fromkeys(("vr_masha1", "vr_masha2", "ef21_sgda"), "dqgan_adam"),
    **dict.fromkeys(("qsgda", "diana_sgda"), "cp_oadam_gq"),
    "compressed_extragradient": "cp_oadam_gq",
    "error_feedback_extragradient": "dqgan_adam",
}


def _standalone(generator_optimizer, discriminator_optimizer, disc_steps):
    return alternating(generator_optimizer, discriminator_optimizer, disc_steps)


# Each gets those values of `make` that its parameters name.
BUILDERS: dict[str, Any] = {name: getattr(methods, name, None) for name in METHODS}
BUILDERS |= {"fl_gan": fl_gan.fl_gan, "md_gan": md_gan.MDGan, "standalone": _standalone}
# Each with the name of its penalty's weight, and the default. Without a penalty scores
# of digits get worse after 2,000 steps; with 1 no mode of a mixture gets sharp.
LOSSES: dict[str, tuple[Any, str, tuple[float, float]]] = {
    "non_saturating": (losses.non_saturating, "r1", (1.0, 0.05)),
    "wasserstein": (losses.wasserstein, "gradient_penalty", (10.0, 10.0)),
    "hinge": (losses.hinge, "r1", (0.0, 0.05)),
    "acgan": (losses.acgan, "r1", (1.0, 0.05)),
    "relativistic": (losses.relativistic, "gamma", (1.0, 0.05)),
}


def with_defaults(config: Any) -> Any:
    """The configuration with what follows from its data in the place of None."""
    points = config.dataset.startswith("mixture")
    defaults = {
        "steps": 30_000 if points else 2_000,
        "decay_steps": 30_000 if points else None,
        "batch_size": 64 if points else 16,
        "penalty": LOSSES[config.loss][2][points],
    }
    found = {k: v for k, v in defaults.items() if getattr(config, k) is None}
    return dataclasses.replace(config, **found)


def own_flags(config: Any) -> dict[str, Any]:
    """The flags that a configuration's method reads, with their defaults."""
    points = config.dataset.startswith("mixture")
    own = METHODS[config.method].items()
    return {k: v[points] if isinstance(v, tuple) else v for k, v in own}


def game(config: Any, gan: Any) -> losses.Losses:
    """The losses of both players."""
    make_losses, weight, _ = LOSSES[config.loss]
    return make_losses(gan, **{weight: config.penalty})


def make(config: Any, workers: jaxsp.Workers, sizes: np.ndarray, numbers: int) -> Any:
    """Make the method that a configuration names.

    Args:
      config: what `read` has returned.
      workers: who trains.
      sizes: how many examples each worker holds.
      numbers: how many numbers the parameters of both networks are.

    Returns:
      An optax transformation, or an `md_gan.MDGan`.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    own, build, count = METHODS[config.method], BUILDERS[config.method], workers.count
    rate, turns = _rate(config), config.disc_steps or 1
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def in_steps(epochs):
        steps = epochs * float(np.mean(sizes)) / config.batch_size
        return max(1, round(min(steps, 2**31 - 1)))

    def adam(rate):
        return optax.adam(rate, config.b1, config.b2) if config.b1 is not None else None

    values = dataclasses.asdict(config) | {
        "learning_rate": rate,
        "axis_name": workers.axis_name,
        "key": key,
        "weights": sizes,
        "generator_optimizer": adam(rate),
        # Which counts its own steps.
        "discriminator_optimizer": adam(
            (lambda count: rate(count // turns)) if callable(rate) else rate
        ),
        "server_device": workers.devices[0] if config.dry_run else None,
    }
    if config.sync_epochs is not None:
        values["sync_every"] = in_steps(config.sync_epochs)
    outer = config.outer_learning_rate, config.outer_momentum
    if outer != (None, None):
        values["outer"] = optax.sgd(outer[0] or 1.0, outer[1], nesterov=True)
    if config.swap_epochs and count > 1:
        values["swap_every"] = in_steps(config.swap_epochs)
    if config.crash_every is not None:  # the last worker first
        values["alive"] = lambda step: (
            np.arange(count) < max(1, count - step // config.crash_every)
        )
    if (batches := config.batches_k) is not None:
        k = str(max(1, math.ceil(math.log2(count)))) if batches == "log" else batches
        if not (k.isdecimal() and 1 <= int(k) <= count):
            raise BadFlagError(
                f"--batches_k={k}: write log, or a number from 1 to {count}, as many "
                "as there are workers."
            )
        values["batches_k"] = int(k)
    if config.participation is not None:
        values["participants"] = max(1, round(config.participation * count))
    if config.topology is not None:
        values["topology"] = topology_of(config)
    up, down = map(functools.partial(_compressor, config), ("compressor", "down"))
    values["channel"] = jaxsp.channel(workers.axis_name, up, down, key=key)
    if "refresh" in own and config.refresh is None:
        vector = jax.ShapeDtypeStruct((numbers,), jnp.float32)
        sent = 32 * numbers if up is None else up.for_worker(0, count).bits(vector)
        density = sent / (32 * numbers) * (config.participation or 1.0)
        if config.method.startswith("vr_"):  # or as the gradients at a snapshot do
            density = min(density, config.batch_size / float(np.mean(sizes)))
        values["refresh"] = min(1.0, density)
    takes = inspect.signature(build).parameters
    texts = [n for n in ("topology", "compressor", "down") if n in own]
    texts = " ".join([config.method, *(f"--{n}={getattr(config, n)}" for n in texts)])
    with naming("method", texts, ValueError):
        made = build(**{name: values[name] for name in takes if name in values})
    if config.skip_not_finite is not None:
        most = config.skip_not_finite
        made = apply_if_all_finite(made, most, workers.axis_name)
    return made


def _rate(config):
    """The learning rate, a schedule if it is to change."""
    rate, warm, decay = config.learning_rate, config.warmup_steps, config.decay_steps
    if decay is not None and decay <= (warm or 0):
        raise BadFlagError(
            f"--decay_steps={decay} must be above --warmup_steps={warm}."
        )
    if warm is None and decay is None:
        return rate
    warm, then = warm or 0, optax.constant_schedule(rate)
    if decay is not None:
        then = optax.cosine_decay_schedule(rate, decay - warm)
    first = optax.linear_schedule(rate / max(warm, 1), rate, max(warm - 1, 1))
    return optax.join_schedules([first, then], [warm]) if warm else then


def topology_of(config):
    """The graph of a configuration."""
    texts = f"{config.topology} --workers={config.workers}"
    with naming("topology", texts, ValueError):
        return names.parse_topology(config.topology, config.workers, config.seed)


def _compressor(config, flag):
    """What workers or server send through; None for nothing."""
    with naming(flag, getattr(config, flag), ValueError):
        found = names.parse_compressor(getattr(config, flag) or "none")
    own = METHODS[config.method]
    contractive = own.get("compressor") == "top_k" or "outer_momentum" in own
    return compressors.contractive(found) if found and contractive else found
