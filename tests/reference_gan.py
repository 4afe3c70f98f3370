"""Federated averaging and alternating players as plain float64 NumPy loops.

Rows and points as in `reference`, but worker by worker, because not all take part: a
local step is `local(m, z, memory) -> (z, memory)`, what worker m makes of its own point
z (d,) and of what it remembers. A rule is a pair of `move(G, memory) -> (update,
memory)` and the memory to start from.
"""

import numpy as np
from reference import adam_step


def descent(lr):
    """-η G."""
    return (lambda G, memory: (-lr * G, memory)), None


def adam(lr, b1=0.5, b2=0.9, eps=1e-8):
    """Adam with moments of one worker's one player."""
    return (lambda G, memory: adam_step(G, memory, lr, b1, b2, eps)), (0.0, 0.0, 0)


def alternating_step(x, y, memory, x_move, y_move, F_x, F_y, y_steps):
    """y ← y + y_move(F_y(x, y)), `y_steps` times; then x ← x + x_move(F_x(x, y)).

    F_y(x, y, i) is the field of step i = 0, 1, ..., which may be of another sample.
    """
    x_memory, y_memory = memory
    for i in range(y_steps):
        move, y_memory = y_move(F_y(x, y, i), y_memory)
        y = y + move
    move, x_memory = x_move(F_x(x, y), x_memory)
    return x + move, y, (x_memory, y_memory)


def federated_average(server, local, memory, chosen, sizes, every, steps):
    """Rounds of local steps from the server's point, then their weighted mean.

    In round t the workers `chosen[t]` take `every` local steps from the server's point,
    which becomes Σ_{m in chosen} n_m z_m / Σ_{m in chosen} n_m, n_m = `sizes[m]`. Every
    worker begins with `memory` and keeps its own; those not chosen wait where the round
    began. Returns the points of all workers after each step, [steps + 1, n, d].
    """
    n = len(sizes)
    Z = np.tile(np.array(server, float), (n, 1))
    memories, points = [memory] * n, [Z]
    for k in range(steps):
        Z, present = Z.copy(), chosen[k // every]
        for m in present:
            Z[m], memories[m] = local(m, Z[m], memories[m])
        if (k + 1) % every == 0:
            total = sum(sizes[m] for m in present)
            Z[:] = sum(sizes[m] * Z[m] for m in present) / total
        points.append(Z)
    return np.stack(points)


def fl_gan(server, players, x_rule, y_rule, F, disc_steps, chosen, sizes, every, steps):
    """Federated averaging of local steps in which the discriminator goes first.

    `players` is the size of x, the first entries of a point; F(m, x, y) the fields of
    both players on worker m.
    """
    (x_move, x_memory), (y_move, y_memory) = x_rule, y_rule

    def local(m, z, memory):
        x, y, memory = alternating_step(
            z[:players],
            z[players:],
            memory,
            x_move,
            y_move,
            lambda x, y: F(m, x, y)[0],
            lambda x, y, i: F(m, x, y)[1],
            disc_steps,
        )
        return np.concatenate([x, y]), memory

    memory = x_memory, y_memory
    return federated_average(server, local, memory, chosen, sizes, every, steps)
