"""Decentralized methods without heterogeneity bias as plain float64 NumPy loops.

Conventions as in `reference`: F maps stacked (n, d) points to the rows F_m(z_m), a
learning rate is a number or a function of k, and a loop returns stacked points
[steps + 1, n, d], the start first. `mixing(V)` is W V for a doubly stochastic W.
"""

import numpy as np
from reference import mix, rate


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


def optimal_time_varying(z0, F, gossip, lr, constants):
    """Optimal decentralized VI over graphs that change: two vectors an exchange.

      δ = F(z^k) + α (F(z^k) - F(z^{k-1}))
      z^{k+1} = z^k - η_z (δ - ν z^k - y^k - α (y^k - y^{k-1}))
      y_c = τ y^k + (1 - τ) y_f;   x_c = τ x^k + (1 - τ) x_f
      Δ_y = (y_c + x_c)/ν + z^{k+1} + γ (y^k + x^k + ν z^k)
      Δ_x = (y_c + x_c)/ν + β (x^k + F(z^{k+1}))
      y^{k+1} = y^k - η_y Δ_y
      x^{k+1} = x^k - G_k (η_x Δ_x + m);   m ← ρ (η_x Δ_x + m - G_k (η_x Δ_x + m))
      y_f ← y_c + τ (y^{k+1} - y^k);   x_f ← x_c - θ G_k (y_c + x_c)

    `gossip[k]` is G_k = I - W_k, W_k doubly stochastic; their number is the number of
    iterations. `constants` are η_y, η_x, θ, α, τ, ν, γ, β, ρ in this order. Start:
    z^{-1} = z^0, and x, y, m, y_f, x_f are zero. Returns z, x and y.
    """
    eta_y, eta_x, theta, alpha, tau, nu, gamma, beta, rho = constants
    z = old_z = np.array(z0, float)
    y = old_y = y_f = x = x_f = m = np.zeros_like(z)
    points = [(z, x, y)]
    for k, G in enumerate(gossip):
        delta = F(z) + alpha * (F(z) - F(old_z))
        delta = delta - nu * z - y - alpha * (y - old_y)
        old_z, z = z, z - rate(lr, k) * delta
        y_c, x_c = tau * y + (1 - tau) * y_f, tau * x + (1 - tau) * x_f
        pull = (y_c + x_c) / nu
        wanted = eta_x * (pull + beta * (x + F(z))) + m
        old_y, y = y, y - eta_y * (pull + z + gamma * (y + x + nu * old_z))
        x, m = x - G @ wanted, rho * (wanted - G @ wanted)
        y_f, x_f = y_c + tau * (y - old_y), x_c - theta * G @ (y_c + x_c)
        points.append((z, x, y))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


# Gradient tracking: the rows of S follow the mean of F, whose mean they keep exactly.
# All start at S_{-1} = F(Z_{-1}) = 0: the mean of S_k is that of F(Z_k) from k = 0 on.


def track(S, F_new, F_old, mixing, combine_first):
    """S ← W (S + F(Z⁺) - F(Z)), or S ← W S + F(Z⁺) - F(Z) with `combine_first`."""
    if combine_first:
        return mixing(S) + F_new - F_old
    return mixing(S + F_new - F_old)


def move(Z, step, mixing, combine_first):
    """Z ← W (Z - step), or Z ← W Z - step with `combine_first`."""
    return mixing(Z) - step if combine_first else mixing(Z - step)


def tracked_extragradient(z0, F, W, rounds, lr, steps, combine_first=False):
    """Extragradient with gradient tracking; the half step is the worker's own.

      S_k = W (S_{k-1} + F(Z_k) - F(Z_{k-1}))
      Z½ = Z_k - η S_k;   S½ = S_k + F(Z½) - F(Z_k);   Z_{k+1} = W (Z_k - η S½)

    Two oracle calls and two exchanges (S and Z) an iteration. Adapt-then-combine is
    ours: stable to about four times the step. `combine_first` is the published order,
    S_k = W S_{k-1} + F(Z_k) - F(Z_{k-1}), Z_{k+1} = W Z_k - η S½. So S_0 = W F(Z_0),
    or F(Z_0) with `combine_first`.
    """
    Z = np.array(z0, float)
    S = old = np.zeros_like(Z)
    points = [Z]
    for k in range(steps):
        eta, now = rate(lr, k), F(Z)
        S = track(S, now, old, lambda V: mix(V, W, rounds), combine_first)
        old = now
        step = eta * (S + F(Z - eta * S) - now)
        Z = move(Z, step, lambda V: mix(V, W, rounds), combine_first)
        points.append(Z)
    return np.stack(points)


def tracked_optimistic(z0, F, W, rounds, lr, steps, combine_first=False):
    """Optimistic gradient tracking: one oracle call, two exchanges an iteration.

      S_k = W (S_{k-1} + F(Z_k) - F(Z_{k-1}))
      Z_{k+1} = W (Z_k - η_k (2 S_k - S_{k-1}))

    With `combine_first` S_k = W S_{k-1} + F(Z_k) - F(Z_{k-1}) and Z_{k+1} = W Z_k -
    η_k (2 S_k - S_{k-1}). S_{-1} = 0: the first step is 2 η S_0, as in `ogda`.
    """
    Z = np.array(z0, float)
    S = old = np.zeros_like(Z)
    points = [Z]
    for k in range(steps):
        now, before = F(Z), S
        S = track(S, now, old, lambda V: mix(V, W, rounds), combine_first)
        old, step = now, rate(lr, k) * (2 * S - before)
        Z = move(Z, step, lambda V: mix(V, W, rounds), combine_first)
        points.append(Z)
    return np.stack(points)


def tracked_oadam(
    z0, F, W, rounds, lr, steps, b1=0.5, b2=0.9, eps=1e-8, mix_moments=False
):
    """DP-OAdam of tracked gradients: OAdam takes S_k in place of F(Z_k).

      S_k = W (S_{k-1} + F(Z_k) - F(Z_{k-1}))
      m ← b1 m + (1 - b1) S_k;   v ← b2 v + (1 - b2) S_k²
      Z ← W Z - 2 a_t m_t/(√v_t + ε) + a_t m_{t-1}/(√v_{t-1} + ε)

    With `mix_moments` v ← W (b2 v + (1 - b2) S_k²). a_t as in `oadam`. Starts at
    S_{-1} = F(Z_{-1}) = m = v = 0.
    """
    Z = np.array(z0, float)
    points, m, v = [Z], np.zeros_like(Z), np.zeros_like(Z)
    S = before = np.zeros_like(Z)
    for t in range(1, steps + 1):
        now, old = F(Z), m / (np.sqrt(v) + eps)
        S, before = mix(S + now - before, W, rounds), now
        m, v = b1 * m + (1 - b1) * S, b2 * v + (1 - b2) * S**2
        v = mix(v, W, rounds) if mix_moments else v
        a = rate(lr, t - 1) * np.sqrt(1 - b2**t) / (1 - b1**t)
        Z = mix(Z, W, rounds) - 2 * a * m / (np.sqrt(v) + eps) + a * old
        points.append(Z)
    return np.stack(points)
