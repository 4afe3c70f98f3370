"""The cost of a gossip step per worker, from 8 to 1,024 virtual workers on a ring.

    python benchmarks/gossip_scaling.py [--size 10000] [--repeats 15]

Steps run in one compiled loop of `gossip` updates on one device. The counts take turns
in every repeat, so that noise of the machine falls on all alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, in_turns, print_table

import jaxsp

COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


def make_run(count: int, size: int, steps: int):
    """A compiled function that does `steps` gossip updates of `count` workers."""
    workers = jaxsp.Workers(count, devices=jax.devices()[:1])
    ring = jaxsp.topology.ring(count)
    tx = jaxsp.gossip(ring, axis_name=workers.axis_name)

    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jnp.zeros_like(params), state, params)
            return (params + updates, state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    params = jnp.arange(count * size, dtype=jnp.float32).reshape(count, size)
    fn = jax.jit(workers.map(run))
    return lambda: fn(params)


def measure(size: int, repeats: int, counts=COUNTS) -> dict[int, float]:
    """Median nanoseconds per step and worker for each number of workers."""
    # The same amount of work in every timing.
    steps = {n: max(2, 200_000_000 // (n * size * 10)) for n in counts}
    runs = {str(n): make_run(n, size, steps[n]) for n in counts}
    seconds = in_turns(runs, repeats)
    return {n: np.median(seconds[str(n)]) / (steps[n] * n) * 1e9 for n in counts}


def main():
    parser = command_line(__doc__)
    parser.add_argument("--size", type=int, default=10_000, help="numbers a worker")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    found = measure(arguments.size, arguments.repeats)
    print_table(
        ["workers", "ns per step and worker", "next to 8 workers"],
        ([n, f"{ns:,.0f}", f"{ns / found[COUNTS[0]]:.2f}"] for n, ns in found.items()),
    )


if __name__ == "__main__":
    main()
