"""Gossip and means of many virtual workers as a share of the memory's bandwidth.

    python benchmarks/gossip_scaling.py [--numbers 16777216] [--repeats 15]

One mixing, or one mean of all, must read every number once and write it once, as a copy
does. So the share is the time of a compiled copy of the same bytes by the time of a
mixing that takes turns with it, a median over turns; the goal is one half. All workers
together always have the same number of numbers, far more than the caches hold.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, in_turns, print_table

import jaxsp

COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
MEAN = "mean of all"
GRAPHS = {
    "ring": jaxsp.topology.ring,
    "one-peer exponential": jaxsp.topology.one_peer_exponential,
    MEAN: None,
}
GOAL = 0.5


def make_mixing(graph: str, count: int, numbers: int):
    """One mixing of `count` workers: a function of point and state; both."""
    workers = jaxsp.Workers(count, devices=jax.devices()[:1])
    if graph == MEAN:
        tx = jaxsp.average(workers.axis_name)
    else:
        tx = jaxsp.gossip(GRAPHS[graph](count), axis_name=workers.axis_name)

    def mixing(z, state):
        if graph == MEAN:
            return tx.update(z, state)
        updates, state = tx.update(jnp.zeros_like(z), state, z)
        return z + updates, state

    z = jax.random.normal(jax.random.key(0), (count, numbers // count))
    return workers.map(mixing), z, jax.jit(workers.map(tx.init))(z)


def into_memory_at_hand(fn, z, *args):
    """A call of `fn(z, ...)` that writes where the call before has written.

    Fresh memory would cost both sides page faults, which take longer than either.
    """
    compiled = jax.jit(lambda _, *args: fn(*args), donate_argnums=0, keep_unused=True)
    kept = [jnp.zeros_like(z)]

    def call():
        kept[0], *_ = jax.block_until_ready(compiled(kept[0], z, *args))

    return call


def measure(graph: str, count: int, numbers: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a mixing and of a copy, the mixing's GB/s, and the share."""
    mixing, z, state = make_mixing(graph, count, numbers)
    calls = {
        "mixing": into_memory_at_hand(mixing, z, state),
        "copy": into_memory_at_hand(lambda z: (jnp.copy(z),), z),
    }
    seconds = in_turns(calls, repeats, warm_up=2)
    found = {f"{name} ms": 1e3 * np.median(t) for name, t in seconds.items()}
    bandwidth = 2 * z.nbytes / np.median(seconds["mixing"]) / 1e9
    share = np.median(seconds["copy"] / seconds["mixing"])
    return found | {"GB/s": bandwidth, "share": share}


def main():
    parser = command_line(__doc__)
    parser.add_argument("--numbers", type=int, default=2**24, help="of all workers")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{arguments.numbers:,} float32 numbers, goal: a share of {GOAL}\n")

    def row(graph, count):
        found = measure(graph, count, arguments.numbers, arguments.repeats)
        met = "met" if found["share"] >= GOAL else "missed"
        return [graph, count, *(f"{value:.2f}" for value in found.values()), met]

    head = ["graph", "workers", "mixing ms", "copy ms", "GB/s", "share", "goal"]
    print_table(head, (row(graph, count) for graph in GRAPHS for count in COUNTS))


if __name__ == "__main__":
    main()
