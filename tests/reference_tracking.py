"""Decentralized methods without heterogeneity bias as plain float64 NumPy loops.

Conventions as in `reference`: F maps stacked (n, d) points to the rows F_m(z_m), a
learning rate is a number or a function of k, and a loop returns stacked points
[steps + 1, n, d], the start first. `mixing(V)` is W V for a doubly stochastic W.
"""

import numpy as np
from reference import rate


def gossip_matrix(W):
    """G = (I - W)/λ_max(I - W) of a symmetric W: kernel 1, and 0 ≤ G ≤ I."""
    laplacian = np.eye(len(W)) - W
    return laplacian / np.linalg.eigvalsh(laplacian)[-1]


def optimal_decentralized(
    z0,
    F,
    G,
    lr,
    dual_lr,
    beta,
    momentum,
    steps,
    blend=0.0,
    coins=None,
    sampled=None,
    prox=None,
):
    """Optimal decentralized VI over a fixed graph: one exchange an iteration.

      δ = F(z^k) + α (F(z^k) - F(z^{k-1}))
      z^{k+1} = prox(z^k + γ (w^k - z^k) - η (δ - y^k - α (y^k - y^{k-1})), η)
      y^{k+1} = y^k - θ G (z^{k+1} - β (F(z^{k+1}) - y^k))
      w^{k+1} = z^k if coin k else w^k

    η = lr, θ = dual_lr, α = momentum, γ = blend. Finite sums: `sampled(c, Z)` is the
    mean over minibatch c (rows: each worker's own indices), fresh in both lines:

      δ = F_S(z^k) - F_S(w^{k-1}) + α (F_S(z^k) - F_S(z^{k-1})) + F(w^{k-1}), c = 2k
      F(z^{k+1}) in the line of y: F_S(z^{k+1}) - F_S(w^k) + F(w^k),      c = 2k + 1

    One coin for all workers. Start: z^{-1} = w^{-1} = w^0 = z^0 and y^{-1} = y^0 = 0:
    the sum of the rows of y stays zero. Returns z and y.
    """
    prox = prox or (lambda V, eta: V)
    z = np.array(z0, float)
    w = old_w = old_z = z
    y = old_y = np.zeros_like(z)
    points = [(z, y)]
    for k in range(steps):
        eta = rate(lr, k)
        if sampled is None:
            delta = F(z) + momentum * (F(z) - F(old_z))
        else:
            at, at_w, at_old = (sampled(2 * k, V) for V in (z, old_w, old_z))
            delta = at - at_w + momentum * (at - at_old) + F(old_w)
        delta = delta - y - momentum * (y - old_y)
        old_z, z = z, prox(z + blend * (w - z) - eta * delta, eta)
        if sampled is None:
            now = F(z)
        else:
            now = sampled(2 * k + 1, z) - sampled(2 * k + 1, w) + F(w)
        old_y, y = y, y - rate(dual_lr, k) * G @ (z - beta * (now - y))
        old_w, w = w, old_z if coins is not None and coins[k] else w
        points.append((z, y))
    return tuple(np.stack(p) for p in zip(*points, strict=True))
