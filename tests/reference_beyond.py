"""Compressed and local methods beyond the seeds as plain float64 NumPy loops.

Conventions as in `reference_compressed`: F(z) gives the (M, d) rows F_m(z) of a shared
point z (d,), a compressor is Q(m, k, v) of worker m at call k, `coins[k]` is the coin
of iteration k and their number is the number of iterations. A loop with a shared point
returns points [steps + 1, d], the start first; where workers stand at different points,
F(Z) of (M, d) has the rows F_m(z_m) and the points are [steps + 1, M, d].
"""

import numpy as np
from reference import rate
from reference_compressed import exactly, up


def same(v, gamma=None):
    """The prox, and the projection, that leaves v where it is."""
    return v


def optimistic_masha(z0, F, Q, coins, lr, refresh, momentum, prox=None):
    """Optimistic MASHA: one oracle call and one compressed message an iteration.

      δ_m = F_m(z^k) - F_m(w^{k-1}) + α (F_m(z^k) - F_m(z^{k-1}))
      z^{k+1} = prox(z^k + γ (w^k - z^k) - η (mean Q(δ_m) + F(w^{k-1})), η)
      w^{k+1} = z^k if coin k else w^k

    η = lr, γ = refresh, α = momentum. Start: z^{-1} = w^{-1} = w^0 = z^0, so δ = 0 at
    k = 0. F(w) is the exact mean, known one iteration after w. Returns z and w, entry
    k of which are z^k and w^k.
    """
    prox, z = prox or same, np.array(z0, float)
    w, points = z, [(z, z)]
    before = at_w = at_old_w = F(z)  # F(z^{k-1}), F(w^k), F(w^{k-1})
    for k, coin in enumerate(coins):
        eta, now = rate(lr, k), F(z)
        sent = up(Q, k, now - at_old_w + momentum * (now - before))
        g = sent.mean(axis=0) + at_old_w.mean(axis=0)
        old, z = z, prox(z + refresh * (w - z) - eta * g, eta)
        before, at_old_w = now, at_w
        if coin:
            w, at_w = old, now
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def three_pillars(z0, F, Fs, Q, coins, lr, local_lr, inner, refresh, project=None):
    """Three Pillars: `inner` steps on the server between two compressed messages.

      u = z;  `inner` times  u½ = P(u - η G(u)),  u ← P(u - η G(u½)),  where
        G(u) = F_s(u) - F_s(m) + F(m) + (u - z - τ (m - z))/γ
      z⁺ = P(u + γ mean Q(F_i(m) - F_s(m) - F_i(u) + F_s(u)))
      m⁺ = z (the old one) if the coin says so

    γ = lr, η = local_lr, τ = refresh. `Fs(u)` (d,) is the operator at the server, as
    a rule that of worker 0; worker i draws and sends for itself, the server too: if it
    is one of the workers, its own message is zero. Start: m = z. Returns z and m.
    """
    P, z = project or same, np.array(z0, float)
    m, points = z, [(z, z)]
    at_m = F(m)
    for k, coin in enumerate(coins):
        gamma, eta = rate(lr, k), rate(local_lr, k)
        anchor = z + refresh * (m - z)
        shift = at_m.mean(axis=0) - Fs(m)

        def G(u):
            return Fs(u) + shift + (u - anchor) / gamma  # noqa: B023

        u = z
        for _ in range(inner):
            u = P(u - eta * G(P(u - eta * G(u))))
        sent = up(Q, k, at_m - Fs(m) - F(u) + Fs(u))
        old, z = z, P(u + gamma * sent.mean(axis=0))
        if coin:
            m = old
            at_m = F(m)
        points.append((z, m))
    return tuple(np.stack(p) for p in zip(*points, strict=True))
