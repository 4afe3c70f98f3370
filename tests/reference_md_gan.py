"""MD-GAN as a plain float64 NumPy loop: what the library's trajectories must equal.

Written from the paper (Hardy, Le Merrer, Sericola, *MD-GAN: Multi-Discriminator
Generative Adversarial Networks for Distributed Datasets*, 2019), one line of its
algorithm after the other, with every derivative by hand. Both networks have one hidden
layer; the loss is the non-saturating one. The parameters of a network are one vector
(b1, W1, b2, W2), in the order in which `jax.flatten_util.ravel_pytree` flattens those
of `models.mlp(..., depth=1)`.

    for i = 1, 2, ...
        server:   X^(1..k) = G(Z_1..k); worker n gets X_n^g = X^((n mod k) + 1) and
                  X_n^d = X^(((n + 1) mod k) + 1)
        worker n: draws X_n^r; L discriminator steps on (X_n^r, X_n^d);
                  sends F_n = ∂B(X_n^g)/∂x for the x in X_n^g
        server:   Δw = (1/N) Σ_n Σ_{x in X_n^g} F_n ∂x/∂w; one step of Adam
        workers:  every so many iterations the discriminators change places
"""

import numpy as np


def unpack(p, shape):
    """(b1, W1, b2, W2) of a vector, for layers of sizes (inputs, hidden, outputs)."""
    i, h, o = shape
    b1, W1, b2, W2 = np.split(p, np.cumsum([h, i * h, o]))
    return b1, W1.reshape(i, h), b2, W2.reshape(h, o)


def forward(net, p, s):
    """What the network makes of s, [b, inputs]: [b, outputs]."""
    shape, leak = net
    b1, W1, b2, W2 = unpack(p, shape)
    a = s @ W1 + b1
    return np.where(a > 0, a, leak * a) @ W2 + b2


def backward(net, p, s, out_bar):
    """Derivatives with respect to p and to s of Σ out_bar · forward(net, p, s)."""
    shape, leak = net
    b1, W1, _, W2 = unpack(p, shape)
    a = s @ W1 + b1
    h = np.where(a > 0, a, leak * a)
    a_bar = (out_bar @ W2.T) * np.where(a > 0, 1.0, leak)
    parts = a_bar.sum(0), s.T @ a_bar, out_bar.sum(0), h.T @ out_bar
    return np.concatenate([part.ravel() for part in parts]), a_bar @ W1.T


def softplus(t):
    return np.logaddexp(0.0, t)


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


def discriminator_loss(net, theta, real, fake):
    """J_disc = E softplus(−D(real)) + E softplus(D(fake)), and its gradient."""
    on_real, on_fake = forward(net, theta, real), forward(net, theta, fake)
    loss = softplus(-on_real).mean() + softplus(on_fake).mean()
    gradient = backward(net, theta, real, -sigmoid(-on_real) / len(real))[0]
    gradient += backward(net, theta, fake, sigmoid(on_fake) / len(fake))[0]
    return loss, gradient


def error_feedback(net, theta, fake):
    """B = E softplus(−D(fake)), and ∂B/∂x for each x in `fake`."""
    logits = forward(net, theta, fake)
    F = backward(net, theta, fake, -sigmoid(-logits) / len(fake))[1]
    return softplus(-logits).mean(), F


def md_gan(
    nets,
    w,
    theta,
    latents,
    real,
    iterations,
    w_rule,
    theta_rule,
    *,
    k,
    L,
    swaps,
    moments,
    alive,
    joins,
):
    """The loop of the paper.

    Args:
      nets: generator and discriminator, each ((inputs, hidden, outputs), slope of the
        activation below 0).
      w: [|w|], the generator at the start.
      theta: [N, |θ|], the discriminators at the start.
      latents: latents(i, j) -> [b, latent_size], of batch j in iteration i; both count
        from 0.
      real: real(i, n) -> [b, sample_size], what worker n draws in iteration i.
      iterations: how many.
      w_rule: of the server, as in `reference_gan`.
      theta_rule: of the workers, likewise.
      k: distinct batches.
      L: discriminator steps.
      swaps: {i: permutation}: after iteration i place n gets what place permutation[n]
        had.
      moments: of Adam, in a swap: they "travel" with their discriminator, "reset" to
        nothing, or "stay" at their place.
      alive: alive(i) -> [N], who lives during iteration i.
      joins: {i: {newcomer: living}}: before iteration i the newcomer gets a copy of
        the living one's discriminator; its moments are new.

    Returns:
      The generator, [T + 1, |w|], and the discriminators, [T + 1, N, |θ|], from the
      start on; and the losses, [T, N, 2], generator's at the updated discriminator and
      discriminator's before its first step, NaN for whom is dead.
    """
    G, D = nets
    w, theta = np.array(w, float), [np.array(row, float) for row in theta]
    N = len(theta)
    (w_move, state_w), (theta_move, new) = w_rule, theta_rule
    states = [new] * N
    ws, thetas, losses = [w], [np.stack(theta)], []
    for i in range(iterations):
        for newcomer, source in joins.get(i, {}).items():
            theta[newcomer] = theta[source]
            states[newcomer] = new
        living = [n for n in range(N) if alive(i)[n]]
        Z = [latents(i, j) for j in range(k)]
        X = [forward(G, w, z) for z in Z]
        values, gradient = np.full((N, 2), np.nan), np.zeros_like(w)
        for rank, n in enumerate(living):
            # The paper counts workers and batches from 1 and gives worker n = rank + 1
            # the batches (n mod k) + 1 and ((n + 1) mod k) + 1. Batches are alike in
            # distribution, so they may be called by other names: batch j + 1 of the
            # paper is batch (j − 1) mod k here, which leaves rank and rank + 1, mod k.
            g, d = rank % k, (rank + 1) % k
            batch = real(i, n)
            for step in range(L):
                value, direction = discriminator_loss(D, theta[n], batch, X[d])
                if step == 0:
                    values[n, 1] = value
                move, states[n] = theta_move(direction, states[n])
                theta[n] = theta[n] + move
            values[n, 0], F = error_feedback(D, theta[n], X[g])
            # Σ_{x in X_n^g} F ∂x/∂w, worker after worker, as the paper writes it.
            gradient += backward(G, w, Z[g], F)[0]
        move, state_w = w_move(gradient / len(living), state_w)
        w = w + move
        if i in swaps:
            permutation = swaps[i]
            theta = [theta[permutation[n]] for n in range(N)]
            if moments == "travel":
                states = [states[permutation[n]] for n in range(N)]
            elif moments == "reset":
                states = [states[n] if permutation[n] == n else new for n in range(N)]
        ws.append(w)
        thetas.append(np.stack(theta))
        losses.append(values)
    return np.stack(ws), np.stack(thetas), np.stack(losses)
