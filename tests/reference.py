"""The methods as plain float64 NumPy loops: what the library's trajectories must equal.

Row m of an (n, d) array Z is the point of worker m. F maps Z to the stacked values
F_m(z_m), a descent field: every player moves along -F. A learning rate is a number or a
function of the iteration k = 0, 1, ... A loop returns its points stacked along a new
leading axis, [steps + 1, n, d], the start first: entry k is where the first gradient of
iteration k is taken.
"""

import numpy as np


def average(V):
    """Every row becomes (1/n) Σ_m v_m."""
    return np.broadcast_to(V.mean(axis=0), V.shape).copy()


def rate(lr, k):
    """η_k, of a number or a schedule."""
    return lr(k) if callable(lr) else lr


# Mixing matrices and gossip.


def random_doubly_stochastic(n, seed):
    """Dense W = Σ_r w_r P_r, w ≥ 0, Σ_r w_r = 1; asymmetric for n ≥ 4."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(2 * n)).reshape(2, n)
    W = np.zeros((n, n))
    for w in weights:  # n permutations that together reach every entry
        rows, columns = rng.permutation(n), rng.permutation(n)
        for r in range(n):
            W[rows, np.roll(columns, r)] += w[r]
    return W


def spectrum(W):
    """The eigenvalues of W other than its (simple) eigenvalue 1."""
    values = np.linalg.eigvalsh(W) if np.allclose(W, W.T) else np.linalg.eigvals(W)
    return np.delete(values, np.argmin(abs(values - 1)))


def lambda2(W):
    """The largest |eigenvalue| other than 1."""
    return np.max(abs(spectrum(W)), initial=0.0)


def mix(V, W, rounds, acceleration=None):
    """P(W) V for a polynomial P of degree `rounds` with P(1) = 1."""
    if acceleration == "fastmix":
        return fastmix(V, W, rounds)
    if acceleration == "chebyshev":
        return chebyshev(V, W, rounds)
    return np.linalg.matrix_power(W, rounds) @ V


def fastmix(V, W, rounds):
    """V^{h+1} = (1 + η) W V^h - η V^{h-1},  V^{-1} = V^0 = V."""
    root = np.sqrt(1 - lambda2(W) ** 2)
    eta = (1 - root) / (1 + root)
    previous = V
    for _ in range(rounds):
        V, previous = (1 + eta) * W @ V - eta * previous, V
    return V


def interval(W):
    """Centre and half-width of [λ_min, λ_2], or of [-λ2, λ2] if W is asymmetric."""
    if not np.allclose(W, W.T):
        return 0.0, lambda2(W)
    low, high = min(spectrum(W), default=0.0), max(spectrum(W), default=0.0)
    return (low + high) / 2, (high - low) / 2


def chebyshev(V, W, rounds):
    """T_H((W - c)/a) / T_H((1 - c)/a) V: the least max |P| on [c - a, c + a].

    No recurrence: with T_H(x) = cosh(H arccosh x) for complex x, P is evaluated at
    the eigenvalues of W.
    """
    c, a = interval(W)
    if a < 1e-8:  # T_H(x)/2^{H-1} -> x^H
        return np.linalg.matrix_power((W - c * np.eye(len(W))) / (1 - c), rounds) @ V
    values, Q = np.linalg.eigh(W) if np.allclose(W, W.T) else np.linalg.eig(W)
    u, u1 = np.arccosh((values - c) / a + 0j), np.arccosh((1 - c) / a)
    p = np.exp(rounds * (u - u1))  # cosh(Hu)/cosh(Hu1), without overflow
    p = p * (1 + np.exp(-2 * rounds * u)) / (1 + np.exp(-2 * rounds * u1))
    p[np.argmin(abs(values - 1))] = 1  # the mean is kept to rounding
    return (Q @ (p[:, None] * np.linalg.solve(Q, V + 0j))).real


# Extra-step methods.


def extra_step(z0, F, lr, steps):
    """Z½ = Z - γ mean F(Z);  Z ← Z - γ mean F(Z½)."""
    Z = np.array(z0, float)
    points = [Z]
    for k in range(steps):
        half = Z - rate(lr, k) * average(F(Z))
        Z = Z - rate(lr, k) * average(F(half))
        points.append(Z)
    return np.stack(points)


def decentralized_extra_step(z0, F, W, rounds, acceleration, lr, steps):
    """Z½ = Mix(Z - γ F(Z));  Z ← Mix(Z - γ F(Z½)): the iterates are gossiped."""
    Z = np.array(z0, float)
    points = [Z]
    for k in range(steps):
        half = mix(Z - rate(lr, k) * F(Z), W, rounds, acceleration)
        Z = mix(Z - rate(lr, k) * F(half), W, rounds, acceleration)
        points.append(Z)
    return np.stack(points)


def extra_step_local_sgd(z0, F, lr, sync_every, steps):
    """Z½ = Z - γ F(Z);  Z ← Z - γ F(Z½);  every `sync_every` steps Z ← mean Z."""
    Z = np.array(z0, float)
    points = [Z]
    for k in range(steps):
        half = Z - rate(lr, k) * F(Z)
        Z = Z - rate(lr, k) * F(half)
        if (k + 1) % sync_every == 0:
            Z = average(Z)  # the full point only
        points.append(Z)
    return np.stack(points)


def adam_step(G, state, lr, b1, b2, eps):
    """Adam: the update -η m̂_t / (√v̂_t + ε), and the new (m, v, t)."""
    m, v, t = state
    m, v, t = b1 * m + (1 - b1) * G, b2 * v + (1 - b2) * G**2, t + 1
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    return -lr * m_hat / (np.sqrt(v_hat) + eps), (m, v, t)


def extra_adam(z0, F, lr, steps, b1=0.5, b2=0.9, eps=1e-8, sync_every=None):
    """Z½ = Z + Adam(F(Z));  Z ← Z + Adam(F(Z½)): one Adam, two updates an iteration.

    One global method: F = lambda Z: average(F(Z)). With `sync_every` the points, not
    the moments, are averaged.
    """
    Z = np.array(z0, float)
    points, state = [Z], (0.0, 0.0, 0)
    for k in range(steps):
        update, state = adam_step(F(Z), state, rate(lr, k), b1, b2, eps)
        half = Z + update
        update, state = adam_step(F(half), state, rate(lr, k), b1, b2, eps)
        Z = Z + update
        Z = average(Z) if sync_every and (k + 1) % sync_every == 0 else Z
        points.append(Z)
    return np.stack(points)


# Past-gradient methods.


def dposg(z0, F, W, rounds, lr, steps, combine_first=False):
    """Z_k = Y_k - η_k G_{k-1};  G_k = F(Z_k);  X_{k+1} = Y_k - η_k G_k;  Y = W^t X.

    With `combine_first` Y_{k+1} = X_{k+1} = W^t Y_k - η_k G_k. Starts at X_0 = Y_0 =
    z0, G_{-1} = 0. Returns the points Z, X and Y: a gradient is taken at Z, and Y is
    the mixed point to report.
    """
    X = Y = np.array(z0, float)
    G, points = np.zeros_like(Y), []
    for k in range(steps + 1):
        Z = Y - rate(lr, k) * G
        points.append((Z, X, Y))
        if k < steps:  # exactly one oracle call per iteration
            G = F(Z)
            if combine_first:
                X = Y = mix(Y, W, rounds) - rate(lr, k) * G
            else:
                X = Y - rate(lr, k) * G
                Y = mix(X, W, rounds)
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def ogda(z0, F, lr, steps):
    """z_{k+1} = z_k - (η_k + η_{k+1}) G_k + η_k G_{k-1},  G_{-1} = 0.

    The familiar z - 2η G + η G_prev where η is constant.
    """
    z = np.array(z0, float)
    points, previous = [z], np.zeros_like(z)
    for k in range(steps):
        G = F(z)
        z = z - (rate(lr, k) + rate(lr, k + 1)) * G + rate(lr, k) * previous
        points.append(z)
        previous = G
    return np.stack(points)


def oadam_loop(z0, F, lr, mixings, b1, b2, eps):
    """Z ← W_t Z - 2 a_t m_t/(√v_t + ε) + a_t m_{t-1}/(√v_{t-1} + ε).

    a_t = η √(1 - b2^t)/(1 - b1^t), t = 1, 2, ...; m_0 = v_0 = 0, so the first old
    term is 0. ε is outside the bias correction, unlike Adam's. `mixings`: V -> W_t V.
    """
    Z = np.array(z0, float)
    points, m, v = [Z], np.zeros_like(Z), np.zeros_like(Z)
    for t, mixing in enumerate(mixings, start=1):
        G, old = F(Z), m / (np.sqrt(v) + eps)
        m, v = b1 * m + (1 - b1) * G, b2 * v + (1 - b2) * G**2
        a = rate(lr, t - 1) * np.sqrt(1 - b2**t) / (1 - b1**t)
        Z = mixing(Z) - 2 * a * m / (np.sqrt(v) + eps) + a * old
        points.append(Z)
    return np.stack(points)


def oadam(z0, F, lr, steps, b1=0.5, b2=0.9, eps=1e-8):
    """OAdam at one point, or at every worker alone."""
    return oadam_loop(z0, F, lr, [lambda Z: Z] * steps, b1, b2, eps)


def cp_oadam(z0, F, lr, steps, b1=0.5, b2=0.9, eps=1e-8):
    """CP-OAdam: OAdam with the mean gradient."""
    return oadam(z0, lambda Z: average(F(Z)), lr, steps, b1, b2, eps)


def dp_oadam(z0, F, W, rounds, lr, steps, b1=0.5, b2=0.9, eps=1e-8):
    """DP-OAdam: W_t = W^rounds; the moments stay with their worker."""
    mixings = [lambda Z: mix(Z, W, rounds)] * steps
    return oadam_loop(z0, F, lr, mixings, b1, b2, eps)


def rand_dp_oadam(z0, F, matrices, lr, b1=0.5, b2=0.9, eps=1e-8):
    """Rand-DP-OAdam: one mixing matrix an iteration, as many iterations as given."""
    mixings = [lambda Z, W=W: W @ Z for W in matrices]
    return oadam_loop(z0, F, lr, mixings, b1, b2, eps)
