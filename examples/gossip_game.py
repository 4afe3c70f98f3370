"""Eight workers on a ring play one game, of which each knows a part.

Worker m knows a strongly monotone game of its own; all want the solution of the mean
game, and each talks to its two neighbours only. DPOSG takes one gradient a step, the
decentralized extra-step method two, and mixes faster. With a constant step both stop
short of the solution, at a distance that more rounds of gossip make smaller; plain
descent with gossip leaves it.

    python examples/gossip_game.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxsp


def main(steps=1_000, workers=8, size=10, rounds=4):
    """Solve the game with each method, and print how far it comes.

    Args:
      steps: how many steps.
      workers: how many workers on the ring, at least 3.
      size: how many numbers each of the two players has.
      rounds: exchanges with the neighbours in a step.

    Returns:
      For each method the distance of the workers' mean to the solution, and the mean
      distance of the workers to their mean.
    """
    team = jaxsp.Workers(workers)
    ring = jaxsp.topology.ring(workers)
    problem = jaxsp.problems.bilinear(workers, size, heterogeneity=0.5, seed=0)
    axis = team.axis_name
    methods = {
        "gossip and plain descent": optax.chain(
            optax.sgd(0.3), jaxsp.gossip(ring, rounds, axis_name=axis)
        ),
        "DPOSG": jaxsp.methods.dposg(0.3, ring, rounds, axis_name=axis),
        "decentralized extra-step": jaxsp.methods.decentralized_extra_step(
            0.5, ring, rounds, axis_name=axis
        ),
    }
    found = {}
    for name, tx in methods.items():

        def step(z, state, data, tx=tx):  # what one worker does
            def operator(z):
                return problem.operator(z, data)  # (∇x f_m, −∇y f_m) at z

            updates, state = tx.update(operator(z), state, z, operator_fn=operator)
            return optax.apply_updates(z, updates), state

        z = team.replicate(jax.tree.map(jnp.zeros_like, problem.z_star))
        state = jax.jit(team.map(tx.init))(z)
        step = jax.jit(team.map(step))
        print(name)
        for k in range(steps + 1):
            if k % max(1, steps // 4) == 0:
                shown = jaxsp.methods.eval_params(state, z)
                mean = jax.tree.map(lambda leaf: leaf.mean(0), shown)
                distance = float(jaxsp.metrics.distance(mean, problem.z_star))
                consensus = float(jaxsp.metrics.consensus_distance(shown))
                print(f"  step {k:5}: solution {distance:.2e}, workers {consensus:.2e}")
            z, state = jax.block_until_ready(step(z, state, problem.data))
        found[name] = distance, consensus
    return found


if __name__ == "__main__":
    main()
