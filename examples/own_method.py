"""A method of one's own: optax's transformations, and jaxsp's between them.

What a chain says from the inside out is what a worker does: its gradient is clipped,
the workers' mean is taken through a channel with 8-bit codes, and each player has an
optimizer of its own; all that is done twice in a step, at the point and at the half
point. A last link averages the parameters once in a while: what rounding and the
codes have let apart comes together again.

    python examples/own_method.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxsp


def my_method(axis_name, key):
    """The method, an optax transformation as any other."""
    rate = optax.exponential_decay(0.1, 100, 0.3)
    eight_bits = jaxsp.compressors.quantize(8)
    return optax.chain(
        jaxsp.extragradient(
            optax.chain(
                optax.clip_by_global_norm(5.0),
                jaxsp.average(jaxsp.channel(axis_name, eight_bits, key=key)),
                optax.partition(
                    {
                        "x": optax.adam(rate, b1=0.0, b2=0.9),
                        "y": optax.sgd(0.3),
                    },
                    jaxsp.MinMax("x", "y"),
                ),
            )
        ),
        jaxsp.sync(50, axis_name),
    )


def main(steps=400, workers=4, size=20):
    """Play a game with it, and print the distance to the solution.

    Args:
      steps: how many steps.
      workers: how many workers.
      size: how many numbers each of the two players has.

    Returns:
      The distance before and after.
    """
    team = jaxsp.Workers(workers)
    problem = jaxsp.problems.quadratic(
        workers, size, L=1.0, mu=0.2, heterogeneity=0.5, seed=1
    )
    tx = my_method(team.axis_name, jax.random.key(0))

    def step(z, state, data):  # what one worker does
        def operator(z):
            return problem.operator(z, data)

        updates, state = tx.update(operator(z), state, z, operator_fn=operator)
        return optax.apply_updates(z, updates), state

    def distance():
        mean = jax.tree.map(lambda leaf: leaf.mean(0), z)
        return float(jaxsp.metrics.distance(mean, problem.z_star))

    z = team.replicate(jax.tree.map(jnp.zeros_like, problem.z_star))
    state = jax.jit(team.map(tx.init))(z)
    step, before = jax.jit(team.map(step)), distance()
    for _ in range(steps):
        z, state = jax.block_until_ready(step(z, state, problem.data))
    sent = jaxsp.metrics.bits_sent(state).up[0] / 8e3
    print(f"distance {before:.3f} -> {distance():.4f}, {sent:.0f} kB sent by a worker")
    return before, distance()


if __name__ == "__main__":
    main()
