"""Compressed and local methods beyond the seeds as plain float64 NumPy loops.

Conventions as in `reference_compressed`: F(z) gives the (M, d) rows F_m(z) of a shared
point z (d,), a compressor is Q(m, k, v) of worker m at call k, `coins[k]` is the coin
of iteration k and their number is the number of iterations. A loop with a shared point
returns points [steps + 1, d], the start first; where workers stand at different points,
F(Z) of (M, d) has the rows F_m(z_m) and the points are [steps + 1, M, d].
"""

import numpy as np
from reference import average, rate
from reference_compressed import up


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


# Local steps against what the others last said. Rows are workers, points [., M, d].


def local_play(z0, F, owned, lr, sync_every, steps):
    """PEARL-SGD and Decoupled SGDA: each plays its own part, the others' stay as heard.

      z_m ← z_m - η o_m F_m(z_m);   every `sync_every` steps each coordinate becomes,
      on all workers, the mean of its owners'

    `owned` (M, d) of 0 and 1 has the rows o_m: one worker a player is PEARL-SGD, two
    players are Decoupled SGDA, ones everywhere are local descent.
    """
    Z, owned = np.array(z0, float), np.asarray(owned, float)
    points = [Z]
    for k in range(steps):
        Z = Z - rate(lr, k) * owned * F(Z)
        if (k + 1) % sync_every == 0:
            joint = (owned * Z).sum(axis=0) / owned.sum(axis=0)
            Z = np.broadcast_to(joint, Z.shape).copy()
        points.append(Z)
    return np.stack(points)


def proxskip(z0, F, coins, lr, probability, prox=None):
    """ProxSkip-VIP: local steps with control variates, a mean when the coin says so.

      ẑ_m = z_m - γ (F_m(z_m) - h_m)
      z_m ← prox(mean (ẑ_m - (γ/p) h_m), γ/p) if coin k else ẑ_m
      h_m ← h_m + (p/γ) (z_m - ẑ_m)

    h = 0 at the start; h_m goes to F_m(z*).
    """
    prox, Z = prox or same, np.array(z0, float)
    H, points = np.zeros_like(Z), [Z]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        Z = Z - gamma * (F(Z) - H)
        if coin:
            hat, reach = Z, gamma / probability
            Z = average(prox(average(hat - reach * H), reach))
            H = H + (Z - hat) / reach
        points.append(Z)
    return np.stack(points)


def fedgda_gt(z0, F, lr, sync_every, steps):
    """FedGDA-GT: z_m ← z_m - η (F_m(z_m) - F_m(r) + F(r)), r the last mean.

    Every `sync_every` steps r ← mean z_m and all z_m ← r; the mean F(r) takes a second
    exchange, at the start of a round. r = z0, the same row for all, at the start.
    """
    Z, points = np.array(z0, float), []
    points.append(Z)
    for k in range(steps):
        if k % sync_every == 0:
            correction = average(F(Z)) - F(Z)
        Z = Z - rate(lr, k) * (F(Z) + correction)
        if (k + 1) % sync_every == 0:
            Z = average(Z)
        points.append(Z)
    return np.stack(points)


def qoda(z0, F, Q, lr, steps):
    """QODA: optimistic dual averaging, one compressed message, an adaptive rate.

      X½ = X_k - γ_k g_{k-1};   v_m = Q(F_m(X½));   g_k = mean v_m
      γ_{k+1} = lr/√(1 + Σ_{i ≤ k} Σ_m |v_m^i - v_m^{i-1}|²/M²)
      X_{k+1} = X_0 - γ_{k+1} Σ_{i ≤ k} g_i

    v^{-1} = 0 and γ_0 = lr. Returns the half points [steps + 1, d], which are the
    params, and X.
    """
    X = start = np.array(z0, float)
    g, total, spread, sent, points = np.zeros_like(X), 0.0, 0.0, 0.0, []
    for k in range(steps + 1):
        gamma = rate(lr, k) / np.sqrt(1 + spread)
        X = start - gamma * total
        half = X - gamma * g
        points.append((half, X))
        before, sent = sent, up(Q, k, F(half))
        g = sent.mean(axis=0)
        total = total + g
        spread = spread + ((sent - before) ** 2).sum() / len(sent) ** 2
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def lookahead(z0, step, every, alpha, steps):
    """Lookahead-minimax: Z ← step(k, Z);  every `every` steps Z ← s + α (Z - s), s ← Z.

    All players at once; s = z0 at the start. What `step` remembers is not reset.
    """
    Z = slow = np.array(z0, float)
    points = [Z]
    for k in range(steps):
        Z = step(k, Z)
        if (k + 1) % every == 0:
            Z = slow = slow + alpha * (Z - slow)
        points.append(Z)
    return np.stack(points)


# Means that withstand bad workers: (M, d) -> (d,).


def coordinate_median(V):
    """The median of every coordinate; of an even number the mean of the middle two."""
    return np.median(V, axis=0)


def trimmed_mean(V, trim):
    """The mean of every coordinate without its `trim` least and `trim` largest."""
    return np.sort(V, axis=0)[trim : len(V) - trim].mean(axis=0)


def geometric_median(V, iterations, smoothing):
    """Weiszfeld: c ← Σ w_m v_m / Σ w_m,  w_m = 1/max(ν, |v_m - c|).

    From the coordinate median: from the mean a large lie takes tens of iterations.
    """
    c = coordinate_median(V)
    for _ in range(iterations):
        w = 1 / np.maximum(smoothing, np.linalg.norm(V - c, axis=1))
        c = w @ V / w.sum()
    return c


def centered_clipping(V, radius, iterations, center):
    """c ← c + mean_m (v_m - c) min(1, τ/|v_m - c|), from `center`."""
    c = np.array(center, float)
    for _ in range(iterations):
        away = V - c
        norms = np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-300)
        c = c + (away * np.minimum(1, radius / norms)).mean(axis=0)
    return c
