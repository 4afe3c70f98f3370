"""The error of bits chosen layer by layer against the same bits for all layers.

    python benchmarks/layer_bits.py [--seeds 5] [--steps 0 100]

Four workers' gradients of a GAN (digits, fully connected networks of 184,139 numbers in
12 leaves) before training and after so many steps of CP-OAdam, and the expected squared
error of `quantize` on them, relative to their square: `packed` has one scale for the
model, `alike` one for each leaf, the others the bits that `allocate_bits` gives for as
many on average, of 2, 4 and 8 or of all from 2 to 8. They are chosen on one batch, and
the error is that of four others. The last column is by how much, over the seeds, the
error of the same bits for all layers is larger than the error of those of 2 to 8.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import command_line, print_table

import jaxsp
from jaxsp import comm, compressors, methods
from jaxsp.compressors import allocation
from jaxsp.gan import data, losses, models

WORKERS = jaxsp.Workers(4, jax.devices()[:1])
BUDGETS = 3, 4, 6


def gradients(seed, steps):
    """After each number of steps those of five batches, `[workers, ...]`."""
    digits = data.load("digits")
    images, labels = jnp.asarray(digits.train), jnp.asarray(digits.train_labels)
    gan = models.mlp(digits.sample_shape, digits.num_classes)
    both = losses.acgan(gan, r1=1.0)
    operator = jaxsp.game(both.generator, both.discriminator)
    tx = methods.cp_oadam(1e-3, WORKERS.axis_name)

    def field(z, key):
        key = jax.random.fold_in(key, comm.worker_index(WORKERS.axis_name))
        rows = jax.random.randint(key, (16,), 0, len(images))
        batch = data.to_unit(images[rows]), labels[rows]
        return operator(z, batch, jax.random.fold_in(key, 1))

    def step(z, state, key):
        updates, state = tx.update(field(z, key), state, z)
        return optax.apply_updates(z, updates), state

    step = jax.jit(WORKERS.map(step, in_axes=(0, 0, None)))
    fields = jax.jit(WORKERS.map(field, in_axes=(0, None)))
    key = jax.random.key(seed)
    z = WORKERS.replicate(jax.jit(lambda key: models.init(gan, key))(key))
    state = jax.jit(WORKERS.map(tx.init))(z)
    for t in range(max(steps) + 1):
        if t in steps:
            draws = [10**6 + t, *(2 * 10**6 + 10 * t + i for i in range(4))]
            yield t, [fields(z, jax.random.fold_in(key, draw)) for draw in draws]
        z, state = jax.block_until_ready(step(z, state, jax.random.fold_in(key, t)))


def error(gradients, widths):
    """The relative expected squared error, of the packed model for one number."""
    missed = square = 0.0
    for g in gradients:
        vectors = [np.asarray(x, np.float64).reshape(4, -1) for x in jax.tree.leaves(g)]
        if isinstance(widths, int):
            vectors = [np.concatenate(vectors, axis=1)]
        each = [widths] if isinstance(widths, int) else widths
        for v, bits in zip(vectors, each, strict=True):
            missed += allocation.expected_error(v, bits)
            square += float(np.sum(v * v))
    return missed / square


def errors(gradients, bits):
    """Those of the ways in the order of the table."""
    now, *later = gradients
    ways = [bits, [bits] * len(jax.tree.leaves(now))]
    for choices in ((2, 4, 8), range(2, 9)):
        chosen = compressors.allocate_bits(now, bits, choices)
        names = [c.name for c in jax.tree.leaves(chosen)]
        ways.append([int(name[len("quantize(") : -1]) for name in names])
    return [error(later, widths) for widths in ways]


def main(seeds, steps):
    """Measure, and print the table."""
    found = {(t, bits): [] for t in steps for bits in BUDGETS}
    for seed in range(seeds):
        for t, some in gradients(seed, steps):
            for bits in BUDGETS:
                found[t, bits].append(errors(some, bits))
    rows = []
    for at, some in found.items():
        ratios = [alike / chosen for _, alike, _, chosen in some]
        means = [f"{mean:.3g}" for mean in np.mean(some, axis=0)]
        rows.append([*at, *means, f"{min(ratios):.1f} to {max(ratios):.1f}"])
    head = ["steps", "bits", "packed", "alike", "2, 4, 8", "2 to 8", "alike / 2 to 8"]
    print_table(head, rows)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 100])
    flags = parser.parse_args()
    main(flags.seeds, flags.steps)
