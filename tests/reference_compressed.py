"""The methods with compressed messages as plain float64 NumPy loops.

Rows and rates as in `reference`. F(z) gives the (M, d) rows F_m(z) of a shared point z
(d,); where workers stand at different points, F(Z) of an (M, d) array has the rows
F_m(z_m). A compressor is a plain function that compresses and decompresses: Q(m, k, v)
the message v of worker m at call k, Qs(k, v) that of the server (None: not compressed),
so a test can feed the draws of the library. `coins[k]` is the coin of iteration k, and
their number is the number of iterations. Unless a docstring says otherwise k is the
iteration and a loop returns the points [steps + 1, d], the start first.
"""

import numpy as np
from reference import adam_step, mix, rate


def exactly(*call):
    """The compressor that compresses nothing, of a worker or of the server."""
    return call[-1]


def up(Q, k, V):
    """The messages of all workers: row m becomes Q(m, k, v_m)."""
    return np.stack([Q(m, k, v) for m, v in enumerate(V)])


def choco(x0, W, Q, gamma, steps, copies=None, moves=None):
    """CHOCO gossip: x̂_m ← x̂_m + Q(x_m - x̂_m);  x ← x + γ (W - I) x̂.

    `copies`: x̂ at the start, zero if None. `moves` [steps, M, d]: added to x before
    the exchange, as a gradient step is. Returns the points x [steps + 1, M, d].
    """
    X = np.array(x0, float)
    hat = np.zeros_like(X) if copies is None else np.array(copies, float)
    points = [X]
    for k in range(steps):
        X = X if moves is None else X + moves[k]
        hat = hat + up(Q, k, X - hat)
        X = X + gamma * (mix(hat, W, 1) - hat)
        points.append(X)
    return np.stack(points)


# Local steps: the changes since the last average travel.


def local_steps(z0, local, every, steps, Q=exactly, Qs=exactly, outer=None):
    """Z ← local(k, Z); every `every` iterations all go on from one point r:

      d_m = z_m - r + e_m;   c_m = Q(d_m);   e_m ← d_m - c_m
      c = Qs(mean c_m + e);  e ← mean c_m + e - c;  r ← r + outer(c);  z_m ← r

    r = z0, the same row for all, at the start; no `outer` is r ← r + c. Returns the
    points [steps + 1, M, d].
    """
    Z = np.array(z0, float)
    r, E, e, points = Z[0], 0.0, 0.0, [Z]
    for k in range(steps):
        Z = local(k, Z)
        if (k + 1) % every == 0:
            change = Z - r + E
            sent = up(Q, k, change)
            wanted = sent.mean(axis=0) + e
            c = Qs(k, wanted)
            E, e = change - sent, wanted - c
            r = r + (c if outer is None else outer(c))
            Z = np.broadcast_to(r, Z.shape)
        points.append(Z)
    return np.stack(points)


def extra_steps(F, lr):
    """Local extragradient: z½ = z - γ F(z);  z ← z - γ F(z½)."""
    return lambda k, Z: Z - rate(lr, k) * F(Z - rate(lr, k) * F(Z))


def extra_adam_steps(F, lr, b1=0.5, b2=0.9, eps=1e-8):
    """Local ExtraAdam: one Adam a worker, two updates an iteration."""
    state = (0.0, 0.0, 0)

    def local(k, Z):
        nonlocal state
        update, state = adam_step(F(Z), state, rate(lr, k), b1, b2, eps)
        update, state = adam_step(F(Z + update), state, rate(lr, k), b1, b2, eps)
        return Z + update

    return local


def nesterov(lr, momentum):
    """The outer step of a mean change c: v ← β v + c;  η (c + β v), v = 0 at first."""
    v = 0.0

    def outer(c):
        nonlocal v
        v = momentum * v + c
        return lr * (c + momentum * v)

    return outer


# DQGAN.


def dqgan(w0, F, Q, lr, steps, Qs=None):
    """W½_m = w - (η F_m^prev + e_m + e);  w ← w - Qs(mean Q(η F_m(W½_m) + e_m) + e).

    e_m: what Q left of worker m's push; e: what Qs left of the server's, 0 without Qs.
    Start: F^prev = 0 and no residual, so W½ = w. The half point of iteration k takes
    η_k, as in `dposg`; residuals are in units of a step and are not rescaled.

    Returns the half points [steps + 1, M, d], which are the params, and w.
    """
    Qs, w = Qs or exactly, np.array(w0, float)
    E = G = e = 0.0
    points = []
    for k in range(steps + 1):
        half = w - (rate(lr, k) * G + E + e)
        points.append((half, w))
        if k < steps:
            G = F(half)
            P = rate(lr, k) * G + E
            C = up(Q, k, P)
            p = C.mean(axis=0) + e
            c = Qs(k, p)
            E, e, w = P - C, p - c, w - c
    halves, ws = zip(*points, strict=True)
    return np.stack([np.broadcast_to(half, G.shape) for half in halves]), np.stack(ws)


def delayed_optimistic(z0, F, lr, steps, look_ahead, Q=exactly, Qs=exactly):
    """Optimistic descent whose mean gradient comes one step late, with feedback:

      Z_k = Y_k - ρ η_k g_{k-1};  G_k = F(Z_k);  Y_{k+1} = Y_k - η_k g_k
      c_m = Q(G_{k-1,m} + e_m);   e_m ← G_{k-1,m} + e_m - c_m
      g_k = Qs(mean c_m + e);     e ← mean c_m + e - g_k

    G_{-1} = g_{-1} = 0 and no residuals. Returns the points Z [steps + 1, M, d].
    """
    Y = np.array(z0, float)
    E, e, g, waiting, points = 0.0, 0.0, 0.0, np.zeros_like(Y), []
    for k in range(steps + 1):
        Z = Y - look_ahead * rate(lr, k) * g
        points.append(Z)
        P = waiting + E
        sent = up(Q, k, P)
        wanted = sent.mean(axis=0) + e
        g = Qs(k, wanted)
        E, e, waiting = P - sent, wanted - g, F(Z)
        Y = Y - rate(lr, k) * g
    return np.stack(points)


# MASHA: params are z; the snapshot w and all F_m(w) are in the state, w = z at first.
# F is called at the start, at z½, and at a new snapshot: the "previous" point, the one
# before the step whose coin says so, or the "current" one after it. All return z and w.


def masha1(
    z0,
    F,
    Q,
    coins,
    lr,
    refresh,
    Qs=None,
    prox=None,
    snapshot="previous",
    participants=None,
    sampled=None,
):
    """Unbiased compression of the difference to the snapshot, τ = 1 - refresh.

      z̄ = τz + (1 - τ)w;   z½ = prox(z̄ - γ F(w))
      z ← prox(z̄ - γ (F(w) + Qs(mean Q(F_m(z½) - F_m(w)))))

    F(w) is the exact mean; `prox(v, γ)`, the identity if None. PP-MASHA1: the mean is
    over `participants[k]`, in which a worker drawn twice counts twice. VR-MASHA1: the
    differences are of `sampled(k, z)`, the same batch at z½ and at w.
    """
    Qs, prox, z = Qs or exactly, prox or (lambda v, gamma: v), np.array(z0, float)
    w, at_snapshot, points = z, F(z), [(z, z)]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        center = (1 - refresh) * z + refresh * w
        half = prox(center - gamma * at_snapshot.mean(axis=0), gamma)
        if sampled is None:
            sent = up(Q, k, F(half) - at_snapshot)
        else:
            sent = up(Q, k, sampled(k, half) - sampled(k, w))
        drawn = slice(None) if participants is None else list(participants[k])
        g = Qs(k, sent[drawn].mean(axis=0))
        old, z = z, prox(center - gamma * (at_snapshot.mean(axis=0) + g), gamma)
        if coin:
            w = old if snapshot == "previous" else z
            at_snapshot = F(w)
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def masha2(
    z0,
    F,
    C,
    coins,
    lr,
    refresh,
    Cs=None,
    blend=True,
    snapshot="previous",
    sampled=None,
):
    """Contractive compression with error feedback at workers and server.

      z̄ = τz + (1 - τ)w;   z½ = z̄ - γ F(w)
      c_m = C(γ F_m(z½) - γ F_m(w) + e_m);   e_m ← γ F_m(z½) - γ F_m(w) + e_m - c_m
      c = Cs(mean c_m + e);                  e ← mean c_m + e - c
      z ← z̄ - γ F(w) - c

    Residuals start at zero and outlive a refresh. The negative example: no `blend`
    (z̄ = z). VR-MASHA2: `sampled` as in `masha1`.
    """
    Cs, z = Cs or exactly, np.array(z0, float)
    w, at_snapshot, E, e, points = z, F(z), 0.0, 0.0, [(z, z)]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        center = (1 - refresh) * z + refresh * w if blend else z
        half = center - gamma * at_snapshot.mean(axis=0)
        if sampled is None:
            P = gamma * F(half) - gamma * at_snapshot + E
        else:
            P = gamma * (sampled(k, half) - sampled(k, w)) + E
        sent = up(C, k, P)
        p = sent.mean(axis=0) + e
        c = Cs(k, p)
        E, e = P - sent, p - c
        old, z = z, center - gamma * at_snapshot.mean(axis=0) - c
        if coin:
            w = old if snapshot == "previous" else z
            at_snapshot = F(w)
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


# Baselines. Two exchanges an iteration are the compressor's calls 2k and 2k + 1.


def ceg(z0, F, Q, lr, steps, Qs=None):
    """z½ = z - γ g(z);  z ← z - γ g(z½),  g = Qs(mean Q(F_m)): stalls."""
    Qs, z = Qs or exactly, np.array(z0, float)
    points = [z]
    for k in range(steps):
        half = z - rate(lr, k) * Qs(2 * k, up(Q, 2 * k, F(z)).mean(axis=0))
        g = Qs(2 * k + 1, up(Q, 2 * k + 1, F(half)).mean(axis=0))
        z = z - rate(lr, k) * g
        points.append(z)
    return np.stack(points)


def eg_ef(z0, F, C, lr, steps, Cs=None):
    """`ceg` with error feedback: c = C(F_m + e_m), e_m ← F_m + e_m - c, the server too.

    One residual through both exchanges, in units of the operator (before γ).
    """
    Cs, z = Cs or exactly, np.array(z0, float)
    E, e, points = 0.0, 0.0, [z]
    for k in range(steps):
        at = z
        for call in (2 * k, 2 * k + 1):
            P = F(at) + E
            sent = up(C, call, P)
            p = sent.mean(axis=0) + e
            c = Cs(call, p)
            E, e, at = P - sent, p - c, z - rate(lr, k) * c
        z = at
        points.append(z)
    return np.stack(points)


def qsgda(z0, F, Q, lr, steps):
    """z ← z - γ mean Q(F_m(z))."""
    z = np.array(z0, float)
    points = [z]
    for k in range(steps):
        z = z - rate(lr, k) * up(Q, k, F(z)).mean(axis=0)
        points.append(z)
    return np.stack(points)


def diana_sgda(z0, F, Q, lr, alpha, steps):
    """c_m = Q(F_m(z) - h_m);  z ← z - γ mean(h_m + c_m);  h_m ← h_m + α c_m.

    h = 0 at the start; α = 1/q.
    """
    z = np.array(z0, float)
    H, points = 0.0, [z]
    for k in range(steps):
        C = up(Q, k, F(z) - H)
        z = z - rate(lr, k) * (H + C).mean(axis=0)
        H = H + alpha * C
        points.append(z)
    return np.stack(points)


def ef21_sgda(z0, F, C, lr, steps):
    """g_m ← g_m + C(F_m(z) - g_m);  z ← z - γ mean g_m.  g = 0 at the start."""
    z = np.array(z0, float)
    G, points = 0.0, [z]
    for k in range(steps):
        G = G + up(C, k, F(z) - G)
        z = z - rate(lr, k) * G.mean(axis=0)
        points.append(z)
    return np.stack(points)


# Uncompressed extragradient and optimistic descent of the mean operator.


def extragradient(z0, F, lr, steps):
    """z½ = z - γ F(z);  z ← z - γ F(z½)."""
    return ceg(z0, F, exactly, lr, steps)


def optimistic(z0, F, lr, steps):
    """w½ = w - η F^prev;  w ← w - η F(w½): the half points, F^prev = 0 at the start."""
    w = np.array(z0, float)
    G, points = np.zeros_like(w), []
    for k in range(steps + 1):
        half = w - rate(lr, k) * G
        points.append(half)
        G = F(half).mean(axis=0)
        w = w - rate(lr, k) * G
    return np.stack(points)


# Compressors, as functions of a generator or of nothing.


def top_k(k):
    """Q(m, call, v): the k largest |v_i|, the first of equals."""

    def Q(*call):
        v = call[-1]
        keep = np.argsort(-abs(v), kind="stable")[:k]
        return np.where(np.isin(np.arange(v.size), keep), v, 0.0)

    return Q


def rand_k(k, rng):
    """Q(m, call, v): k coordinates at random, times d/k; fresh at every call."""

    def Q(*call):
        v = call[-1]
        keep = rng.permutation(v.size) < k
        return np.where(keep, v * (v.size / k), 0.0)

    return Q


def scaled_sign(*call):
    """(|v|_1/d) sign(v)."""
    return abs(call[-1]).mean() * np.sign(call[-1])


# Games on which a wrong method shows; `F` takes a point (d,) or a point a worker.


def affine(A, b):
    """F_m(z) = A_m z + b_m, A [M, d, d] or one A [d, d] for all, and z*: F(z*) = 0."""
    M = len(b)
    A = np.broadcast_to(A, (M, *np.shape(A)[-2:]))

    def F(z):
        return np.einsum("mij,mj->mi", A, np.broadcast_to(z, b.shape)) + b

    return F, np.linalg.solve(A.mean(axis=0), -b.mean(axis=0)), A


def near_bilinear(M, d, ratio, seed):
    """λ(|x|² - |y|²)/2 + xᵀB_m y + linear, B_m and the linear terms of every worker.

    L_m = 1 and μ = λ = `ratio` exactly; x and y have d/2 coordinates.
    Returns F, z* and the matrices A_m.
    """
    rng, h = np.random.default_rng(seed), d // 2
    A = np.zeros((M, d, d))
    common = np.linalg.qr(rng.standard_normal((h, h)))[0]
    for m in range(M):
        B = common + 0.5 * np.linalg.qr(rng.standard_normal((h, h)))[0]
        B *= np.sqrt(1 - ratio**2) / np.linalg.norm(B, 2)  # |λ + iσ| = 1
        A[m, :h, h:], A[m, h:, :h] = B, -B.T
        A[m] += ratio * np.eye(d)
    return affine(A, rng.standard_normal((M, d)))
