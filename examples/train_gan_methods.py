"""The methods of train_gan.py: what makes each, and which flags it reads."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train_gan_flags
from train_gan_flags import BadFlagError, known

import jaxsp
from jaxsp import compressors, methods
from jaxsp.gan import fl_gan, md_gan
from jaxsp.transforms import alternating, optimistic_adam


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: what makes it, which flags it reads, and their defaults.

    Attributes:
      build: makes the method of a learning rate and of keyword arguments, which get
        what `build` has under their names.
      learning_rate: the default.
      flags: the flags that it reads and not every method does, with their defaults.
      unbiased: whether its compressors must be unbiased.
      same_sample: whether all gradients of a step are of one sample.
    """

    build: Callable[..., Any]
    learning_rate: float
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    unbiased: bool = False
    same_sample: bool = False


def _masha2(rate, channel, refresh):
    return methods.masha2(rate, _contractive(channel), refresh)


def _ef21_sgda(rate, channel):
    return methods.ef21_sgda(rate, _contractive(channel))


def _contractive(channel):
    up, down = (c and compressors.contractive(c) for c in (channel.up, channel.down))
    return dataclasses.replace(channel, up=up, down=down)


def _rand_dp_oadam(rate, topology, rounds, *, key, axis_name):
    gossip = jaxsp.gossip(
        topology, rounds, axis_name=axis_name, order="combine_then_adapt", key=key
    )
    return optax.chain(optimistic_adam(rate, 0.5, 0.9), gossip)


def _adam(rate):
    return optax.adam(rate, b1=0.5, b2=0.9)


def _md_gan(rate, batches_k, disc_steps, swap_every, moments, alive):
    return md_gan.MDGan(
        _adam(rate), _adam(rate), batches_k, disc_steps, swap_every, alive, moments
    )


def _fl_gan(rate, sync_every, disc_steps, participants, weights, *, key, axis_name):
    return fl_gan.fl_gan(
        _adam(rate),
        _adam(rate),
        sync_every,
        disc_steps=disc_steps,
        weights=weights,
        participants=participants,
        key=key,
        axis_name=axis_name,
    )


def _standalone(rate, disc_steps):
    return alternating(_adam(rate), _adam(rate), disc_steps)


# Default learning rates: optimistic Adam, Adam of players who take turns (with 2e-3
# the discriminators of md_gan win), optimistic and extragradient plain steps.
ADAM, TURNS, OPTIMISTIC, EXTRA = 2e-3, 1e-3, 0.02, 0.01
_RING = {"topology": "ring", "rounds": 1}
_LOCAL = {"sync_every": 10, "sync_epochs": None}
_QUANTIZED = {"compressor": "quantize", "bits": 8}
_SERVER = _QUANTIZED | {"down": "none"}
_MASHA = {"compressor": "rand_k:0.1", "bits": 8, "down": "none", "refresh": None}
METHODS = {
    # Whole gradients or parameters, exchanged in every step.
    "extra_step": Method(methods.extra_step, EXTRA),
    "decentralized_extra_step": Method(
        methods.decentralized_extra_step, EXTRA, {"topology": "ring", "rounds": 4}
    ),
    "dposg": Method(methods.dposg, OPTIMISTIC, _RING),
    "cp_oadam": Method(methods.cp_oadam, ADAM),
    "dp_oadam": Method(methods.dp_oadam, ADAM, _RING),
    "rand_dp_oadam": Method(
        _rand_dp_oadam, ADAM, {"topology": "random_ring", "rounds": 1}
    ),
    # Steps of their own, averaged once in a while.
    "extra_step_local_sgd": Method(methods.extra_step_local_sgd, EXTRA, _LOCAL),
    "local_extra_adam": Method(methods.local_extra_adam, ADAM, _LOCAL),
    "fl_gan": Method(
        _fl_gan,
        TURNS,
        {
            "sync_every": None,
            "sync_epochs": 1.0,
            "disc_steps": 1,
            "participation": 1.0,
        },
        same_sample=True,
    ),
    # A generator on a server, a discriminator on every worker.
    "md_gan": Method(
        _md_gan,
        TURNS,
        {
            "batches_k": "log",
            "disc_steps": 1,
            "swap_epochs": 1.0,
            "moments": "stay",
            "crash_every": None,
        },
        same_sample=True,
    ),
    # One worker with all data, to compare with.
    "standalone": Method(_standalone, TURNS, {"disc_steps": 1}, same_sample=True),
    # Compressed messages.
    "dqgan": Method(methods.dqgan, OPTIMISTIC, _SERVER),
    "dqgan_adam": Method(methods.dqgan_adam, ADAM, _SERVER),
    "cp_oadam_gq": Method(methods.cp_oadam_gq, ADAM, _SERVER),
    "masha1": Method(methods.masha1, EXTRA, _MASHA, unbiased=True),
    "masha2": Method(_masha2, EXTRA, _MASHA | {"compressor": "top_k:0.1"}),
    "pp_masha1": Method(
        methods.pp_masha1,
        EXTRA,
        {"compressor": "rand_k:0.1", "bits": 8, "refresh": None, "participation": 0.5},
        unbiased=True,
    ),
    "qsgda": Method(methods.qsgda, EXTRA, _QUANTIZED),
    "diana_sgda": Method(methods.diana_sgda, EXTRA, _QUANTIZED, unbiased=True),
    "ef21_sgda": Method(_ef21_sgda, EXTRA, {"compressor": "top_k:0.1", "bits": 8}),
}


# ------------------------------------------------------------------ reading, making


class Choices(NamedTuple):
    """What the flags of a method say.

    Attributes:
      flags: the flags' values by name, defaults among them.
      values: what they stand for, as far as it does not depend on the data.
    """

    flags: dict[str, Any]
    values: dict[str, Any]


def read(method: str, given: dict[str, Any], workers: int, seed: int) -> Choices:
    """Read the flags of a method.

    Args:
      method: its name.
      given: values of flags by name; None is the default.
      workers: how many workers.
      seed: what a random graph follows from.

    Returns:
      What they say.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    if None not in (given.get("sync_every"), given.get("sync_epochs")):
        raise BadFlagError(
            f"--sync_every={given['sync_every']} and --sync_epochs="
            f"{given['sync_epochs']} say the same: write one of them."
        )
    texts = {
        name: default if given.get(name) is None else given[name]
        for name, default in METHODS[method].flags.items()
    }
    for one, other in (("sync_every", "sync_epochs"), ("sync_epochs", "sync_every")):
        if one in texts and given.get(one) is not None:
            texts[other] = None
    train_gan_flags.check_numbers(texts)
    if given.get("swap_epochs") and "swap_epochs" in texts and workers == 1:
        raise BadFlagError(
            f"--swap_epochs={given['swap_epochs']}: with --workers=1 there is no other "
            "worker to swap with; write --swap_epochs=0, or more workers."
        )
    values = dict(texts)
    if "moments" in texts:
        known("moments", texts["moments"], ("stay", "travel", "reset"))
    if "batches_k" in texts:
        values["batches_k"] = train_gan_flags.read_batches_k(
            texts["batches_k"], workers
        )
    if "topology" in texts:
        graph = train_gan_flags.read_topology(texts["topology"], workers, seed)
        values["topology"] = graph
        if method == "decentralized_extra_step" and len(graph.members) > 1:
            raise BadFlagError(
                f"--topology={texts['topology']} changes from step to step, and "
                f"--method={method} accelerates the exchange over one graph; write "
                "--topology=ring."
            )
    sent = [flag for flag in ("compressor", "down") if flag in texts]
    for flag in sent:
        values[flag] = _compressor(method, flag, texts)
    if sent and given.get("bits") and "quantize" not in [texts[f] for f in sent]:
        print(f"note: --bits has no effect with --compressor={texts['compressor']}")
    return Choices(texts, values)


def _compressor(method, flag, texts):
    """A compressor that fits the method, or None."""
    text = texts[flag]
    if flag == "down" and text == "none":
        return None
    found = train_gan_flags.read_compressor(flag, text, texts["bits"])
    if METHODS[method].unbiased and found.q is None:
        others = [n for n, m in METHODS.items() if flag in m.flags and not m.unbiased]
        raise BadFlagError(
            f"--{flag}={text}: --method={method} needs one that is unbiased; write "
            "rand_k:0.1, natural, dithering:8 or quantize, or choose another method: "
            f"{', '.join(others)}."
        )
    return found


def build(
    method: str,
    learning_rate: float,
    choices: Choices,
    workers: jaxsp.Workers,
    key: jax.Array,
    batch_size: int,
    sizes: np.ndarray,
    numbers: int,
) -> Any:
    """Make a method.

    Args:
      method: its name.
      learning_rate: its step size.
      choices: what its flags say.
      workers: who trains.
      key: what all its draws follow from.
      batch_size: examples per worker and gradient.
      sizes: how many examples each worker holds.
      numbers: how many numbers the parameters of both networks are.

    Returns:
      An optax transformation, or an `md_gan.MDGan`.

    Raises:
      ValueError: if what the flags say does not fit the method.
    """
    said, count = choices.flags, workers.count

    def steps(epochs):
        return max(1, round(epochs * float(np.mean(sizes)) / batch_size))

    values = choices.values | {
        "axis_name": workers.axis_name,
        "channel": jaxsp.channel(
            workers.axis_name,
            choices.values.get("compressor"),
            choices.values.get("down"),
            key=key,
        ),
        "key": key,
        "weights": sizes,
        "alive": None,
    }
    if said.get("sync_epochs") is not None:
        values["sync_every"] = steps(said["sync_epochs"])
    if "swap_epochs" in said:
        never = said["swap_epochs"] == 0 or count == 1
        values["swap_every"] = None if never else steps(said["swap_epochs"])
    if "participation" in said:
        here = max(1, round(said["participation"] * count))
        values["participants"] = here
    if said.get("crash_every") is not None:
        values["alive"] = functools.partial(_alive, count, said["crash_every"])
    if "refresh" in said and said["refresh"] is None:
        vector = jax.ShapeDtypeStruct((numbers,), jnp.float32)
        density = values["compressor"].for_worker(0, count).bits(vector) / (
            32 * numbers
        )
        values["refresh"] = min(1.0, density * said.get("participation", 1.0))
    takes = inspect.signature(METHODS[method].build).parameters
    return METHODS[method].build(
        learning_rate, **{name: v for name, v in values.items() if name in takes}
    )


def _alive(count, crash_every, step):
    """Who is left at a step, of workers of which the last crashes first."""
    return np.arange(count) < max(1, count - step // crash_every)
