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
from reference import mix, rate


def exactly(*call):
    """The compressor that compresses nothing, of a worker or of the server."""
    return call[-1]


def up(Q, k, V):
    """The messages of all workers: row m becomes Q(m, k, v_m)."""
    return np.stack([Q(m, k, v) for m, v in enumerate(V)])


# The compressed mean, by two routes.


def blocks(v, M):
    """v padded with zeros and cut into M blocks of ⌈d/M⌉: server j owns block j."""
    size = -(-v.size // M)
    return np.pad(v, (0, M * size - v.size)).reshape(M, size)


def gathered_means(Vs, Q, Qs=None, feedback=False):
    """mean_m Q(v_m), once for each V of Vs [calls, M, d]; then Qs of it.

    With `feedback` both residuals stay where they arise, zero at the start:
      c_m = Q(v_m + e_m);  e_m ← v_m + e_m - c_m
      out = Qs(mean c + e);  e ← mean c + e - out
    """
    Qs, E, e, means = Qs or exactly, np.zeros_like(Vs[0]), 0.0, []
    for k, V in enumerate(Vs):
        C = up(Q, k, V + E)
        out = Qs(k, C.mean(axis=0) + e)
        if feedback:
            E, e = V + E - C, C.mean(axis=0) + e - out
        means.append(out)
    return np.stack(means)


def sharded_means(Vs, Q, Qs=None, feedback=False):
    """The same, worker j being the server of block j.

    Every block is a message of its own, Q(m, k, v, j) from worker m to server j and
    Qs(k, v, j) from server j to all, and is compressed with its zero padding.
    """
    Qs = Qs or (lambda k, v, j: v)
    M, d = Vs[0].shape
    E = np.zeros((M, *blocks(Vs[0][0], M).shape))  # [worker, block, ⌈d/M⌉]
    e, means = np.zeros(E.shape[1:]), []
    for k, V in enumerate(Vs):
        out, new_E, new_e = np.zeros_like(e), np.zeros_like(E), np.zeros_like(e)
        for j in range(M):
            received = np.zeros_like(e[j])
            for m in range(M):
                p = blocks(V[m], M)[j] + E[m, j]
                c = Q(m, k, p, j)
                new_E[m, j] = p - c
                received += c / M
            out[j] = Qs(k, received + e[j], j)
            new_e[j] = received + e[j] - out[j]
        if feedback:
            E, e = new_E, new_e
        means.append(out.ravel()[:d])
    return np.stack(means)


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


# DQGAN.


def dqgan(w0, F, Q, lr, steps, Qs=None, one_step=False, server_extrapolates=True):
    """W½_m = w - (η F_m^prev + e_m + e);  w ← w - Qs(mean Q(η F_m(W½_m) + e_m) + e).

    e_m: what Q left of worker m's push; e: what Qs left of the server's, 0 without Qs.
    Start: F^prev = 0 and no residual, so W½ = w. The half point of iteration k takes
    η_k, as in `dposg`; residuals are in units of a step and are not rescaled.
    `server_extrapolates`: whether e stands in W½; only then is the mean half point that
    of uncompressed optimistic descent (without Qs there is no e, and it always is).
    `one_step`: no residual in W½ (classical error feedback): diverges.

    Returns the half points [steps + 1, M, d], which are the params, and w.
    """
    Qs, w = Qs or exactly, np.array(w0, float)
    E = G = e = 0.0
    points = []
    for k in range(steps + 1):
        left = 0.0 if one_step else E + (e if server_extrapolates else 0.0)
        half = w - (rate(lr, k) * G + left)
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


# MASHA: params are z; the snapshot w and all F_m(w) are in the state, w = z at first.
# F is called at the start, at z½, and at a new snapshot: the "previous" point, the one
# before the step whose coin says so, or the "current" one after it.


def masha1(z0, F, Q, coins, lr, refresh, Qs=None, prox=None, snapshot="previous"):
    """Unbiased compression of the difference to the snapshot, τ = 1 - refresh.

      z̄ = τz + (1 - τ)w;   z½ = prox(z̄ - γ F(w))
      z ← prox(z̄ - γ (F(w) + Qs(mean Q(F_m(z½) - F_m(w)))))

    F(w) is the exact mean; `prox(v, γ)`, the identity if None. Returns z and w.
    """
    Qs, prox, z = Qs or exactly, prox or (lambda v, gamma: v), np.array(z0, float)
    w, at_snapshot, points = z, F(z), [(z, z)]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        center = (1 - refresh) * z + refresh * w
        half = prox(center - gamma * at_snapshot.mean(axis=0), gamma)
        g = Qs(k, up(Q, k, F(half) - at_snapshot).mean(axis=0))
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
    feedback=True,
    blend=True,
    snapshot="previous",
):
    """Contractive compression with error feedback at workers and server.

      z̄ = τz + (1 - τ)w;   z½ = z̄ - γ F(w)
      c_m = C(γ F_m(z½) - γ F_m(w) + e_m);   e_m ← γ F_m(z½) - γ F_m(w) + e_m - c_m
      c = Cs(mean c_m + e);                  e ← mean c_m + e - c
      z ← z̄ - γ F(w) - c

    Residuals start at zero and outlive a refresh. The negative examples: no
    `feedback` (residuals stay zero), no `blend` (z̄ = z). Returns z and w.
    """
    Cs, z = Cs or exactly, np.array(z0, float)
    w, at_snapshot, E, e, points = z, F(z), 0.0, 0.0, [(z, z)]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        center = (1 - refresh) * z + refresh * w if blend else z
        half = center - gamma * at_snapshot.mean(axis=0)
        P = gamma * F(half) - gamma * at_snapshot + E
        sent = up(C, k, P)
        p = sent.mean(axis=0) + e
        c = Cs(k, p)
        if feedback:
            E, e = P - sent, p - c
        old, z = z, center - gamma * at_snapshot.mean(axis=0) - c
        if coin:
            w = old if snapshot == "previous" else z
            at_snapshot = F(w)
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def at_batches(terms, batches):
    """k, z -> (M, d): worker m's mean of its terms batches[k][m], at z.

    `terms(z)` is (M, r, d), the r terms of every worker.
    """
    return lambda k, z: np.stack(
        [T[list(batches[k][m])].mean(axis=0) for m, T in enumerate(terms(z))]
    )


def vr_masha1(z0, terms, batches, Q, coins, lr, refresh, Qs=None, snapshot="previous"):
    """MASHA1 whose differences are taken on batches[k][m], the same at z½ and at w.

    F_m is the mean of terms(z)[m]; F(w) is the full mean. No prox. Returns z and w.
    """
    Qs, z, sampled = Qs or exactly, np.array(z0, float), at_batches(terms, batches)
    w, full, points = z, terms(z).mean(axis=(0, 1)), [(z, z)]
    for k, coin in enumerate(coins):
        center = (1 - refresh) * z + refresh * w
        half = center - rate(lr, k) * full
        g = Qs(k, up(Q, k, sampled(k, half) - sampled(k, w)).mean(axis=0))
        old, z = z, center - rate(lr, k) * (full + g)
        if coin:
            w = old if snapshot == "previous" else z
            full = terms(w).mean(axis=(0, 1))
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def vr_masha2(z0, terms, batches, C, coins, lr, refresh, Cs=None, snapshot="previous"):
    """MASHA2 with the differences of `vr_masha1`. Returns z and w."""
    Cs, z, sampled = Cs or exactly, np.array(z0, float), at_batches(terms, batches)
    w, full, E, e, points = z, terms(z).mean(axis=(0, 1)), 0.0, 0.0, [(z, z)]
    for k, coin in enumerate(coins):
        gamma = rate(lr, k)
        center = (1 - refresh) * z + refresh * w
        half = center - gamma * full
        P = gamma * (sampled(k, half) - sampled(k, w)) + E
        sent = up(C, k, P)
        p = sent.mean(axis=0) + e
        c = Cs(k, p)
        E, e = P - sent, p - c
        old, z = z, center - gamma * full - c
        if coin:
            w = old if snapshot == "previous" else z
            full = terms(w).mean(axis=(0, 1))
        points.append((z, w))
    return tuple(np.stack(p) for p in zip(*points, strict=True))


def pp_masha1(z0, F, Q, participants, coins, lr, refresh, Qs=None, snapshot="previous"):
    """MASHA1 with g = Qs((1/b) Σ_{m in participants[k]} Q(F_m(z½) - F_m(w))).

    A worker drawn twice sends one message, which counts twice. F(w) is the mean over
    all M workers, who all take part in a refresh. No prox. Returns z and w.
    """
    Qs, z = Qs or exactly, np.array(z0, float)
    w, at_snapshot, points = z, F(z), [(z, z)]
    for k, coin in enumerate(coins):
        drawn = list(participants[k])
        center = (1 - refresh) * z + refresh * w
        half = center - rate(lr, k) * at_snapshot.mean(axis=0)
        sent = up(Q, k, F(half) - at_snapshot)
        g = Qs(k, sent[drawn].mean(axis=0))
        old, z = z, center - rate(lr, k) * (at_snapshot.mean(axis=0) + g)
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


def scaled_sign(*call):
    """(|v|_1/d) sign(v)."""
    return abs(call[-1]).mean() * np.sign(call[-1])


def max_scaled(bits):
    """Q(m, call, v): v rounded to 2^bits - 1 even levels on [-max|v|, max|v|]."""

    def Q(*call):
        v, levels = call[-1], 2 ** (bits - 1) - 1
        scale = max(abs(v).max(), 1e-300) / levels
        return np.round(v / scale) * scale

    return Q


def rand_k(k, rng):
    """Q(m, call, v): k coordinates at random, times d/k; fresh at every call."""

    def Q(*call):
        v = call[-1]
        keep = rng.permutation(v.size) < k
        return np.where(keep, v * (v.size / k), 0.0)

    return Q


def perm_k(M, seed):
    """Q(m, call, v): block m of the permutation of this call, times M (M divides d)."""

    def Q(m, call, v):
        order = np.random.default_rng((seed, call)).permutation(v.size)
        keep = np.isin(np.arange(v.size), np.split(order, M)[m])
        return np.where(keep, v * M, 0.0)

    return Q


def natural(rng):
    """Q(m, call, v): |v| to one of the two nearest powers of 2, unbiased; q = 9/8."""

    def Q(*call):
        v = call[-1]
        fraction, exponent = np.frexp(v)  # |fraction| in [1/2, 1)
        up_ = rng.random(v.size) < 2 * abs(fraction) - 1
        return np.sign(v) * np.ldexp(np.where(up_, 1.0, 0.5), exponent)

    return Q


def dithering(levels, rng):
    """Q(m, call, v): |v_i|/|v| to a multiple of 1/levels, unbiased."""

    def Q(*call):
        v = call[-1]
        norm = np.linalg.norm(v)
        if norm == 0:
            return v
        return (
            norm
            * np.sign(v)
            * np.floor(levels * abs(v) / norm + rng.random(v.size))
            / levels
        )

    return Q


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


def gaussian_coupling(M, d, ratio, seed):
    """`near_bilinear` with B_m Gaussian, 0.3 of it each worker's own; max L_m = 1.

    Small singular values: extragradient and MASHA move along them at rates γμ and γμ/2.
    """
    rng, h = np.random.default_rng(seed), d // 2
    B = rng.standard_normal((h, h)) + 0.3 * rng.standard_normal((M, h, h))
    B *= np.sqrt(1 - ratio**2) / np.linalg.norm(B, 2, axis=(1, 2)).max()
    A = np.zeros((M, d, d)) + ratio * np.eye(d)
    A[:, :h, h:], A[:, h:, :h] = B, -np.transpose(B, (0, 2, 1))
    return affine(A, rng.standard_normal((M, d)))


def same_linear_part(M, d, ratio, seed):
    """`near_bilinear` with the matrix of worker 0 for all; linear terms of their own.

    `ratio` 0 is bilinear.
    """
    A = near_bilinear(1, d, ratio, seed)[2][0]
    return affine(A, np.random.default_rng((seed, 1)).standard_normal((M, d)))
