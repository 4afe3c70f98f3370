"""jaxsp beside PyTorch's DDP, in the same two processes, one core each.

`peers.py` starts it by `jaxsp.launch`. Every process has one worker of jaxsp and one
replica of DDP, both talk by gloo, and they take turns. Both train the MLP GAN with
simultaneous steps of plain SGD on the mean gradient, which travels

* as it is;
* not at all, which shows what the gradient takes;
* in half precision: DDP's `fp16_compress_hook`; compared after three iterations;
* as factors of rank 2, with a warm start and feedback: DDP's `powerSGD_hook`, which
  takes the factors of the mean, where jaxsp takes the mean of the factors. On the same
  data in both processes these are one rule, and must agree to 1e-6; on different data,
  as timed, the losses that both have reached must.

A process has jaxsp's seconds and CPU and DDP's; the figures are means over processes.
"""

import json
import os
import pathlib
import sys
import time
from functools import partial
from typing import Any

import in_torch
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import in_turns
from games import Game, gan_game
from in_jax import Side, in_a_loop
from jax.flatten_util import ravel_pytree
from peers import Row, check, clock, difference, on_one_core, summary

import jaxsp
from jaxsp.transforms import error_feedback_average

__all__ = ["RANK_OF_FACTORS", "method"]

APART = "each apart"
RANK_OF_FACTORS = 2
BEFORE = 3  # iterations of DDP before PowerSGD has factors: two plain ones, and one
FEW = 3  # iterations in half precision
LEVEL = 0.05  # of the loss, by which rules that are not the same may differ


def method(name: str, rate: float, axis_name: Any) -> optax.GradientTransformation:
    """The rule of a hook of DDP, in jaxsp."""
    mean = jaxsp.average(axis_name)
    if name == APART:
        return optax.sgd(rate)
    if name == "fp16 hook":

        def cast(dtype):
            return optax.stateless(
                lambda u, p: jax.tree.map(lambda u, p: u.astype(dtype or p.dtype), u, p)
            )

        return optax.chain(cast(jnp.float16), mean, cast(None), optax.sgd(rate))
    if name == "PowerSGD hook":
        factors = jaxsp.channel(
            axis_name,
            jaxsp.compressors.low_rank(RANK_OF_FACTORS),
            key=jax.random.key(0),
        )

        def rest(tree):
            return jax.tree.map(lambda x: not x, are_compressed(tree))

        return optax.chain(
            optax.masked(error_feedback_average(factors), are_compressed),
            optax.masked(mean, rest),
            optax.sgd(rate),
        )
    return optax.chain(mean, optax.sgd(rate))


def are_compressed(tree):
    """What DDP's hook compresses: matrices that become half as large at least."""

    def one(x):
        return x.ndim == 2 and 2 * RANK_OF_FACTORS * sum(x.shape) < x.size

    return jax.tree.map(one, tree)


class Ddp:
    """A replica of the GAN in DDP, with one of its hooks."""

    def __init__(self, name: str, game: Game, data: Any, dtype: Any):
        torch, self.distributed = in_torch.need("torch", "torch.distributed")
        hooks = "torch.distributed.algorithms.ddp_comm_hooks"
        default, power, nn = in_torch.need(
            f"{hooks}.default_hooks", f"{hooks}.powerSGD_hook", "torch.nn.parallel"
        )
        leaves = [
            torch.nn.Parameter(v) for v in in_torch.tensors(torch, game.start, dtype)
        ]

        class Losses(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.leaves = torch.nn.ParameterList(leaves)

            def forward(self, images, latents):
                return sum(
                    in_torch.gan_losses(torch, list(self.leaves), images, latents, True)
                )

        self.leaves, self.done = leaves, 0
        images, latents = in_torch.tensors(torch, data, dtype)
        self.data = images.flatten(2), latents
        self.model = Losses()
        if name != APART:
            # In one bucket: of several the hook of PowerSGD can wait for ever.
            self.model = nn.DistributedDataParallel(self.model, bucket_cap_mb=25)
        self.optimizer = torch.optim.SGD(leaves, lr=game.rate)
        self.order: dict[int, list[int]] = {}  # the leaves of each bucket
        if name == "fp16 hook":
            self.model.register_comm_hook(None, default.fp16_compress_hook)
        if name == "PowerSGD hook":
            state = power.PowerSGDState(None, RANK_OF_FACTORS, start_powerSGD_iter=2)
            number = {leaf.data_ptr(): i for i, leaf in enumerate(leaves)}

            def hook(state, bucket):
                parameters = bucket.parameters()
                self.order[bucket.index()] = [number[p.data_ptr()] for p in parameters]
                return power.powerSGD_hook(state, bucket)

            self.power = state
            self.model.register_comm_hook(state, hook)

    def run(self, count):
        images, latents = self.data
        for i in range(self.done, self.done + count):
            self.optimizer.zero_grad()
            self.model(images[i % len(images)], latents[i % len(images)]).backward()
            self.optimizer.step()
        self.done += count

    def point(self):
        return np.concatenate([x.ravel() for x in self.arrays()])

    def arrays(self):
        return [leaf.detach().numpy().copy() for leaf in self.leaves]

    def memory(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """PowerSGD's residuals and right factors, by the number of the leaf."""
        residuals, factors = {}, {}
        leaves = self.arrays()
        for bucket, order in self.order.items():
            left, start = self.power.error_dict[bucket].numpy(), 0
            for i in order:
                part = left[start : start + leaves[i].size]
                residuals[i] = part.reshape(leaves[i].shape).copy()
                start += part.size
            chosen = [i for i in order if are_compressed(leaves[i])]
            shapes = [leaves[i].shape for i in chosen]
            left, start = self.power.q_memory_dict[bucket].numpy(), 0
            for i in sorted(chosen, key=lambda i: shapes.index(leaves[i].shape)):
                m = leaves[i].shape[1]
                part = left[start : start + m * RANK_OF_FACTORS]
                factors[i] = part.reshape(m, -1).copy()
                start += part.size
        return residuals, factors


def continued(tx: Any, ddp: Ddp, game: Game, dtype: Any, workers: Any) -> Side:
    """The side of jaxsp from where DDP with PowerSGD is."""
    residuals, factors = ddp.memory()
    start = jax.tree.unflatten(jax.tree.structure(game.start), ddp.arrays())

    def seed(state, z, g):
        inner = state[0].inner_state
        structure = jax.tree.structure(inner.residual)
        chosen = sorted(factors)
        left = [jnp.asarray(residuals[i], dtype) for i in chosen]
        previous = [
            payload._replace(right=jnp.asarray(factors[i], dtype))
            for payload, i in zip(inner.previous, chosen, strict=True)
        ]
        inner = inner._replace(
            residual=jax.tree.unflatten(structure, left), previous=previous
        )
        return state[0]._replace(inner_state=inner), *state[1:]

    # The iteration only chooses the batch.
    data = jax.tree.map(lambda x: np.roll(x, -ddp.done, 1), game.data)
    moved = game._replace(start=start, data=data)
    return in_a_loop(tx, moved, dtype, workers, seed)


def agree(row: Row, game: Game, workers: Any) -> float:
    """Check a row in float64; returns how far both sides are from each other."""
    name = f"{row.game}, DDP's {row.method}"
    rule = row.method.partition(",")[0]
    tx = method(rule, game.rate, workers.axis_name)
    if rule != "PowerSGD hook":
        pair = row.ours(np.float64), row.theirs(np.float64)
        # Rounding to halves soon makes jumps of what differs in the last place.
        steps = FEW if rule == "fp16 hook" else row.steps
        return check(name, difference(*pair, steps))
    data = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), game.data)
    same = game._replace(data=data)
    theirs = Ddp(rule, same, jax.tree.map(lambda x: x[0], data), np.float64)
    theirs.run(BEFORE)
    ours = continued(tx, theirs, same, np.float64, workers)
    far = check(name, difference(ours, Side(theirs.run, theirs.point), row.steps))

    def level(side):
        side.run(10 * row.steps)
        _, unravel = ravel_pytree(game.start)
        loss: Any = game.loss
        return float(loss(unravel(side.point().astype(np.float32)), game.data))

    levels = [level(side(np.float64)) for side in (row.ours, row.theirs)]
    check(f"{name}, losses {levels}", abs(levels[0] / levels[1] - 1), LEVEL)
    return far


def measure(row: Row, game: Game, workers: Any, task: dict[str, Any]) -> dict[str, Any]:
    """As `peers.measure`, in all processes alike."""
    (distributed,) = in_torch.need("torch.distributed")
    with jax.enable_x64(True):
        far = agree(row, game, workers)
    sides = {"ours": row.ours(np.float32), "theirs": row.theirs(np.float32)}
    counts = []
    for side in sides.values():
        jax.block_until_ready(side.run(row.steps))
        start = time.perf_counter()
        jax.block_until_ready(side.run(row.steps))
        took = (time.perf_counter() - start) / row.steps
        counts.append(max(1, round(task["seconds"] / took)))
    distributed.broadcast_object_list(counts, src=0)
    counts = dict(zip(sides, counts, strict=True))
    calls = {name: partial(side.run, counts[name]) for name, side in sides.items()}
    mine = in_turns(calls, task["repeats"], clock=clock)
    everybody: list[Any] = [None] * jax.process_count()
    distributed.all_gather_object(everybody, mine)
    seconds = {
        name: np.mean([found[name] for found in everybody], axis=0) / counts[name]
        for name in sides
    }
    return summary(row, far, seconds)


def main(task: dict[str, Any]):
    jaxsp.distributed.initialize()
    torch, distributed = in_torch.need("torch", "torch.distributed")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{task['directory']}/meet",
        rank=jax.process_index(),
        world_size=jax.process_count(),
    )
    workers = jaxsp.Workers(jax.process_count())
    game = gan_game(jax.process_count())
    mine = jax.tree.map(lambda x: x[jax.process_index()], game.data)
    found = []
    for rule in (APART, "all-reduce", "fp16 hook", "PowerSGD hook"):
        tx = method(rule, game.rate, workers.axis_name)
        for each, text in ((False, rule), (True, f"{rule}, a call each")):

            def theirs(dtype, rule=rule):
                replica = Ddp(rule, game, mine, dtype)
                return Side(replica.run, replica.point)

            ours = partial(in_a_loop, tx, game, workers=workers, each=each)
            goal = None if each or rule == APART else 1.0
            row = Row(game.name, text, "DDP", ours, theirs, goal=goal)
            found.append(measure(row, game, workers, task))
    if jax.process_index() == 0:
        pathlib.Path(task["directory"], "rows.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    rank = int(os.environ["JAXSP_PROCESS_ID"])
    with on_one_core(rank), jaxsp.distributed.ending_together():
        main(json.loads(sys.argv[1]))
