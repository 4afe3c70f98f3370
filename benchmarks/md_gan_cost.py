r"""What a worker of MD-GAN computes and keeps, next to a worker of FL-GAN.

    python benchmarks/md_gan_cost.py [--models mlp cnn cifar] [--batches 10 100]

Prints three tables. Nothing is trained: the numbers are the compiler's own, of the
programs that `jaxsp.gan.training` runs, as `jaxsp.gan.training.cost` reads them. With
convolutions a row takes about a minute of processor time.

The setting is that of MD-GAN's experiments: its networks, ACGAN losses, Adam for both,
one discriminator step an iteration, ten workers with equal shares of the data, the
generator's loss on the latents of the discriminator's.

*Operations* of a worker are those of an iteration of one worker's program,
`Workers(1)`. They are what XLA counts after optimization: 2 m n k for a matrix product
and one for each number of anything elementwise. "By hand" counts the matrix products
alone, of which convolutions are made here. With a forward pass of a batch through the
discriminator costing D, D₁ of that in its first layer, and through the generator G and
G₁,

    MD-GAN    8 D − 2 D₁                      server    k (4 G − G₁)
    FL-GAN    8 D − 2 D₁ + 3 G − G₁

A discriminator step goes forward and backward through real and through generated
samples, 6 D, without the gradient of the samples, 2 D₁; the generator's loss goes
forward and back to the samples, 2 D. The generator goes forward and backward, 3 G − G₁:
both losses are of the same generated samples, and the compiler makes them once, which
this count confirms. A server's second program makes the samples again, hence 4 G. The
compiler counts more: Adam and the moving average, 17 to 27 operations a parameter
whatever the batch, some of them more than once because fused loops repeat them, and
activations.

*Memory* is arguments, results and temporaries, less what shares a buffer; "data" is the
worker's share, which both hold. "Theory" is parameters and Adam's two moments, 3 |θ|
and 3 (|w| + |θ|) numbers. A worker of FL-GAN keeps a moving average of its generator
besides, another |w|, which is for the scores and not the method's. Temporaries are
gradients and activations, with a copy of a pixel for every tap of a kernel. When they
share memory is up to the compiler: they differ between its versions.
"""

import math
from typing import Any

import jax
import numpy as np
import optax
from common import command_line, print_table

import jaxsp
from jaxsp.gan import fl_gan, losses, md_gan, models, step
from jaxsp.gan.training import cost

WORKERS = 10


def cases() -> dict[str, tuple[str, models.Gan, int]]:
    """The paper's pairs of networks: name, networks, and examples of a worker."""
    cifar = models.md_gan_cnn((32, 32, 3))
    return {
        "mlp": ("MNIST, MLP", models.md_gan_mlp(), 60_000 // WORKERS),
        "cnn": ("MNIST, CNN", models.md_gan_cnn(), 60_000 // WORKERS),
        "cifar": ("CIFAR-10, CNN", cifar, 50_000 // WORKERS),
    }


def products(fn, *args) -> list[int]:
    """Operations of the matrix products in a function, 2 m n k each, in order."""

    def found(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                shape = equation.invars[0].aval.shape
                k = math.prod(shape[axis] for axis in contracted)
                yield 2 * k * math.prod(equation.outvars[0].aval.shape)
            for inner in equation.params.values():
                if hasattr(inner, "jaxpr"):
                    yield from found(inner.jaxpr)

    return list(found(jax.make_jaxpr(fn)(*args).jaxpr))


def by_hand(gan: models.Gan, batch_size: int, counts) -> dict[str, Any]:
    """The products of an iteration: of both kinds of workers, and of servers by k."""
    z: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
    latents = jax.ShapeDtypeStruct((batch_size, gan.latent_size), np.float32)
    samples = jax.ShapeDtypeStruct((batch_size, *gan.sample_shape), np.float32)
    g = products(lambda x, v: models.generate(gan, x, v), z.x, latents)
    judge = lambda y, s: models.discriminate_and_classify(gan, y, s)  # noqa: E731
    d = products(judge, z.y, samples)
    worker = 8 * sum(d) - 2 * d[0]
    return {
        "md_gan": worker,
        "fl_gan": worker + 3 * sum(g) - g[0],
        "server": {k: k * (4 * sum(g) - g[0]) for k in counts},
    }


def planned(
    method: str, gan: models.Gan, rows: int, batch_size: int, count: int, k: int = 1
) -> cost.Cost:
    """The cost of one iteration of `count` virtual workers; method "md" or "fl"."""
    workers = jaxsp.Workers(count, devices=jax.devices()[:1])
    adam = optax.adam(2e-4, b1=0.5)
    game, options = losses.acgan(gan), {"batch_size": batch_size}
    if method == "md":
        way = md_gan.MDGan(adam, adam, batches_k=k)
        program = way.program(gan, game, workers, **options)
    else:
        rounds = max(rows // batch_size, 1)
        fl = fl_gan.fl_gan(adam, adam, rounds, axis_name=workers.axis_name)
        program = step.program(gan, game, fl, workers, same_sample=True, **options)
    shares = (
        jax.ShapeDtypeStruct((count, rows, *gan.sample_shape), np.uint8),
        jax.ShapeDtypeStruct((count, rows), np.int32),
    )
    return cost.cost(program, shares, np.full(count, rows), steps=1)


def measure(
    gan: models.Gan, rows: int, batch_size: int, count: int = WORKERS
) -> dict[str, Any]:
    """What an iteration costs.

    Args:
      gan: the networks, with classes.
      rows: examples in a worker's share.
      batch_size: b.
      count: N.

    Returns:
      Operations by role, as compiled and by hand. Bytes of a worker, with its data, of
      the data, and of parameters and moments.
    """
    md, fl = (planned(way, gan, rows, batch_size, 1) for way in ("md", "fl"))
    counts = sorted({1, math.ceil(math.log2(count))})
    servers = {k: planned("md", gan, rows, batch_size, count, k) for k in counts}
    costs = {"md_gan": md.costs["worker"], "fl_gan": fl.costs["worker"]}
    held = {"md_gan": md.discriminator, "fl_gan": md.generator + md.discriminator}
    return {
        "generator": md.generator,
        "discriminator": md.discriminator,
        "operations": {name: cost.flops for name, cost in costs.items()},
        "operations_by_hand": by_hand(gan, batch_size, counts),
        "server_operations": {k: p.costs["server"].flops for k, p in servers.items()},
        "memory": {name: cost.memory for name, cost in costs.items()},
        "memory_data": rows * (math.prod(gan.sample_shape) + 4),  # and an int32 label
        "memory_theory": {name: 3 * 4 * numbers for name, numbers in held.items()},
    }


def print_tables(rows: dict[str, dict[str, Any]]) -> None:
    """Print operations and memory of workers, and operations of servers, as Markdown.

    Args:
      rows: for each name of a row what `measure` found.
    """

    def three(found, less=0):
        both = [found[name] - less for name in ("md_gan", "fl_gan")]
        return [*(f"{n / 1e6:,.1f}" for n in both), f"{both[0] / both[1]:.3f}"]

    operations, memory, servers, head = [], [], [], []
    for name, r in rows.items():
        row = [name, f"{r['generator']:,}", f"{r['discriminator']:,}"]
        row += three(r["operations"]) + three(r["operations_by_hand"])
        operations.append(row)
        data = r["memory_data"]
        row = [name, *three(r["memory"], data), f"{data / 1e6:.1f}"]
        memory.append([*row, three(r["memory"])[2], *three(r["memory_theory"])])
        compiled, hand = r["server_operations"], r["operations_by_hand"]["server"]
        head = [f"k = {k}{how}, MFLOP" for k in compiled for how in ("", " by hand")]
        both = (found[k] for k in compiled for found in (compiled, hand))
        servers.append([name, *(f"{number / 1e6:,.1f}" for number in both)])
    first, both = "model, batch", ["MD-GAN {}", "FL-GAN {}", "ratio"]
    named = lambda what: [each.format(what) for each in both]  # noqa: E731
    sizes = ["\\|w\\|", "\\|θ\\|"]
    print_table([first, *sizes, *named("MFLOP"), *named("by hand")], operations)
    print()
    data_head = ["data MB", "ratio with data"]
    print_table([first, *named("MB"), *data_head, *named("theory")], memory)
    print()
    print_table([first, *head], servers)


def main():
    parser = command_line(__doc__)
    known = cases()
    parser.add_argument("--models", nargs="+", choices=known, default=list(known))
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 100])
    arguments = parser.parse_args()
    rows = {}
    for name, gan, share in (known[short] for short in arguments.models):
        for batch_size in arguments.batches:
            rows[f"{name}, {batch_size}"] = measure(gan, share, batch_size)
    print_tables(rows)


if __name__ == "__main__":
    main()
