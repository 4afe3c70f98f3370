"""The experiments of `dqgan.yaml`: quantized optimistic steps with feedback."""

import itertools
from collections.abc import Callable
from typing import Any

import gan_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import Measured, Panel, distances, double, points

import jaxsp
from jaxsp import compressors, methods, problems
from jaxsp.gan.training import TrainingDivergedError

_AXIS = "workers"
_X = "iterations"
_Y = r"$|z - z^*|^2 / |z^0 - z^*|^2$"


def _channel(up, down=None, seed=0, axis=_AXIS):
    return jaxsp.channel(axis, up, down, key=jax.random.key(seed))


def _game(workers, dim, seed):
    """Workers with one linear part and linear terms of their own."""
    problem = problems.bilinear(workers, dim, heterogeneity=1.0, seed=seed)
    A = problem.data.coupling
    A = jnp.broadcast_to(A.mean(0) / jnp.linalg.norm(A.mean(0), 2), A.shape)
    x, y = problem.z_star
    # What is a worker's own in its linear terms; the means of both are 0.
    p = problem.data.p + problem.data.coupling @ y
    q = problem.data.q - problem.data.coupling.transpose(0, 2, 1) @ x
    alike = problem.data._replace(
        coupling=A, p=p - A @ y, q=q + A.transpose(0, 2, 1) @ x
    )
    return problem._replace(data=alike, L=1.0)


# ------------------------------------------------------------------ bilinear games


@double
def identity(seed: int, full: bool) -> Measured:
    """The workers' mean half point against uncompressed optimistic mirror descent."""
    problem, steps, rate = _game(8, 20, seed), 2_000 if full else 300, 0.2
    codecs = {
        "top-k 10 %": compressors.top_k(0.1),
        "sign": compressors.sign(),
        "4 bits": compressors.quantize(4),
        "2 bits": compressors.quantize(2),
    }
    if full:
        codecs |= {"rand-k 10 %": compressors.rand_k(0.1)}
    exact = points(problem, methods.dqgan(rate, _AXIS), steps).mean(0)
    lines, values = {}, {}
    for name, codec in codecs.items():
        method = methods.dqgan(rate, _channel(codec, seed=seed))
        found = points(problem, method, steps)
        gaps = np.abs(found.mean(0) - exact).max(1) / np.abs(exact).max()
        lines[name] = (np.arange(1, steps), np.maximum(gaps[1:], 1e-18))
        values[name] = float(gaps.max())
        values[f"{name}, one worker"] = float(
            np.abs(found - exact).max() / np.abs(exact).max()
        )
    values["farthest"] = max(values[name] for name in codecs)
    values["workers apart"] = min(values[f"{name}, one worker"] for name in codecs)
    panel = Panel("8 workers, affine", _X, "largest relative difference", lines)
    return Measured(values, [panel])


def _one_step(channel):
    """Optimistic descent whose residual stands in the push alone."""
    return lambda rate: optax.chain(
        jaxsp.error_feedback_average(channel), optax.optimistic_gradient_descent(rate)
    )


def _no_feedback(channel):
    return lambda rate: optax.chain(
        jaxsp.average(channel), optax.optimistic_gradient_descent(rate)
    )


@double
def feedback(seed: int, full: bool) -> Measured:
    """Feedback in both steps, in one, and in none."""
    problem, steps = _game(8, 10, seed), 20_000 if full else 4_000
    panels, values = [], {}
    for name, codec in (
        ("top-k 10 %", compressors.top_k(0.1)),
        ("sign", compressors.sign()),
    ):
        channel = _channel(codec, seed=seed)
        made: dict[str, Callable[[Any], Any]] = {
            "two-step feedback": lambda rate, c=channel: methods.dqgan(rate, c),
            "one-step feedback": _one_step(channel),
            "no feedback": _no_feedback(channel),
        }
        lines = {}
        for method, make in made.items():
            curve = distances(problem, make, 0.1, steps, every=10)
            lines[method] = (10 * np.arange(len(curve)), curve)
            values[f"{method}, {name}"] = float(curve[-50:].mean())
        panels.append(Panel(name, _X, _Y, lines))
        values[f"none / two-step, {name}"] = (
            values[f"no feedback, {name}"] / values[f"two-step feedback, {name}"]
        )
    for method, join in (
        ("two-step feedback", max),
        ("one-step feedback", min),
        ("none / two-step", min),
    ):
        values[method] = join(v for k, v in values.items() if k.startswith(method))
    return Measured(values, panels)


@double
def noise(seed: int, full: bool) -> Measured:
    """The floor of stochastic gradients for 1, 4 and 16 workers."""
    counts, steps = (1, 4, 16, 64) if full else (1, 4, 16), 40_000 if full else 20_000
    one = problems.bilinear(1, 5, seed=seed)
    lines, values = {}, {}
    channel = _channel(compressors.quantize(4), seed=seed)
    for count in counts:
        alike = jax.tree.map(lambda v, n=count: jnp.repeat(v, n, 0), one.data)
        curve = distances(
            one._replace(data=alike),
            lambda rate: methods.dqgan(rate, channel),
            0.1,
            steps,
            seed=seed,
            noise=1.0,
            every=50,
        )
        lines[f"M = {count}"] = (50 * np.arange(len(curve)), curve)
        values[f"M = {count}"] = float(curve[len(curve) // 8 :].mean())
    ratios = [a / b for a, b in itertools.pairwise(values.values())]
    values |= {"least ratio": min(ratios), "largest ratio": max(ratios)}
    return Measured(values, [Panel("4 bits, η = 0.1, σ² = 1", _X, _Y, lines)])


# ------------------------------------------------------------------------------ GANs


def _trained(dataset, method, compressor, score, **told):
    """Megabytes that a worker has sent, and scores; none of a run that diverges."""
    try:
        run = gan_runs.by_command(
            dataset=dataset, method=method, compressor=compressor, workers=4, **told
        )
    except TrainingDivergedError:
        return [], []
    steps, scores = run.line(score)
    sent = {r["step"]: r["bits_up"] / 8e6 for r in run.records}
    return [sent[step] for step in steps], scores


def mixtures(seed: int, full: bool) -> Measured:
    """Gaussians on a ring; in the long form on a grid too, and more compressors."""
    steps = 20_000 if full else 2_500
    told = {"steps": steps, "decay_steps": steps, "eval_every": steps // 4}
    made = {"32 bits": ("cp_oadam", "none"), "8 bits": ("dqgan_adam", "quantize:8")}
    made |= {"4 bits": ("dqgan_adam", "quantize:4")}
    made |= {"top-k 5 %": ("dqgan_adam", "top_k:0.05")}
    made |= {"top-k 5 %, no feedback": ("cp_oadam_gq", "top_k:0.05")}
    if full:
        made |= {"2 bits": ("dqgan_adam", "quantize:2")}
        made |= {"4 bits, no feedback": ("cp_oadam_gq", "quantize:4")}
        made |= {"2 bits, no feedback": ("cp_oadam_gq", "quantize:2")}
    panels, values = [], {}
    for shape in ("ring", "grid") if full else ("ring",):
        lines = {
            name: _trained(f"mixture_{shape}", *how, "high_quality", seed=seed, **told)
            for name, how in made.items()
        }
        ends = {name: y[-1] if len(y) else 0.0 for name, (_, y) in lines.items()}
        values |= {f"share, {name}, {shape}": end for name, end in ends.items()}
        for name, end in ends.items():
            values[f"{name} / 32 bits, {shape}"] = end / ends["32 bits"]
        some, none = ends["top-k 5 %"], ends["top-k 5 %, no feedback"]
        values[f"feedback / none, {shape}"] = some / max(none, 1e-4)
        values[f"bytes, {shape}"] = lines["32 bits"][0][-1] / lines["top-k 5 %"][0][-1]
        title = f"{shape} of Gaussians, 4 workers"
        lines = {name: line for name, line in lines.items() if len(line[1])}
        panels.append(
            Panel(title, "MB sent by a worker", "share on a mode", lines, log="x")
        )
    return Measured(values, panels)


def images(seed: int, full: bool) -> Measured:
    """Images, with compression both ways."""
    dataset, told = "digits", {"steps": 1_000, "eval_every": 250}
    made = {"32 bits": ("cp_oadam", "none"), "4 bits": ("dqgan_adam", "quantize:4")}
    if full:
        dataset, told = "mnist", {"steps": 3_000, "eval_every": 500, "batch_size": 20}
        told |= {"model": "mlp:128", "loss": "acgan"}
        made |= {"8 bits": ("dqgan_adam", "quantize:8")}
        made |= {"4 bits, no feedback": ("cp_oadam_gq", "quantize:4")}
    lines, values = {}, {}
    for name, how in made.items():
        sent, scores = _trained(
            dataset, *how, "frechet_distance", down=how[1], seed=seed, **told
        )
        values[name] = scores[-1] if len(scores) else np.inf
        if len(scores):
            lines[name] = sent, scores
    values["4 bits / 32 bits"] = values["4 bits"] / values["32 bits"]
    values["bytes"] = lines["32 bits"][0][-1] / lines["4 bits"][0][-1]
    title = f"{dataset}, 4 workers"
    panel = Panel(title, "MB sent by a worker", "Fréchet distance", lines, log="xy")
    return Measured(values, [panel])
