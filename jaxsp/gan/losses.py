"""Losses of the two players, to be given to `jaxsp.game`.

Every loss is `f(x, y, batch, key)` with the generator's parameters x, the
discriminator's parameters y, a batch of real samples (images as floats in [-1, 1]) and
a typed random key. As many latents are drawn as the batch has samples. **Both players
draw the same latents from the same key**: under one `jit` the samples G(z) and their
logits are then computed once for both, and the two losses are those of one game at one
sample. D(.) below are logits, σ the logistic function, E the mean over the batch.

Beside them stand the same losses as functions of generated samples, for whoever holds
samples and not their generator. `f(x, y, batch, key)` draws latents, generates, and
calls these.

Where the pair of networks has classes, a batch is a pair (samples, labels), and so may
generated samples be. `acgan` needs the labels; the other losses leave them alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxsp._arguments import check_nonnegative
from jaxsp.gan import models

__all__ = ["Losses", "acgan", "hinge", "non_saturating", "wasserstein"]

Loss = Callable[..., jax.Array]


class Losses(NamedTuple):
    """The loss of either player, each `f(x, y, batch, key) -> scalar`.

    Attributes:
      generator: minimized by the generator, over x.
      discriminator: minimized by the discriminator, over y.
      generator_on: the generator's loss of generated samples, `f(y, fakes)`; its
        gradient with respect to them, through the generator, is the generator's.
      discriminator_on: the discriminator's loss of real and generated samples,
        `f(y, batch, fakes, key)`.
    """

    generator: Loss
    discriminator: Loss
    generator_on: Loss | None = None
    discriminator_on: Loss | None = None


def _gradient(gan: models.Gan, y, samples: jax.Array) -> jax.Array:
    """∇D at each sample, [n, ...]: a logit depends on its own sample alone."""
    return jax.grad(lambda s: models.discriminate(gan, y, s).sum())(samples)


def _r1(gan: models.Gan, y, batch: jax.Array) -> jax.Array:
    """½ E |∇D(batch)|²."""
    gradient = _gradient(gan, y, batch)
    return 0.5 * jnp.sum(gradient**2) / batch.shape[0]


def _samples(gan: models.Gan, batch) -> jax.Array:
    """The samples of a batch, which may have labels where the pair has classes."""
    if not isinstance(batch, tuple):
        return batch
    if not gan.num_classes:
        raise ValueError(
            "batch must be samples alone, and so must fakes: the pair of networks has "
            "no classes; got a tuple. Build it with num_classes, or leave labels out."
        )
    return batch[0]


def _players(gan: models.Gan, generator_on: Loss, discriminator_on: Loss) -> Losses:
    """All four losses from the two of generated samples."""

    def fakes(x, batch, key) -> Any:
        drawn = models.latents(gan, key, _samples(gan, batch).shape[0])
        generated = models.generate(gan, x, drawn)
        if not gan.num_classes:
            return generated
        return generated, models.labels_of(gan, drawn)

    def generator(x, y, batch, key):
        latent_key, _ = jax.random.split(key)
        return generator_on(y, fakes(x, batch, latent_key))

    def discriminator(x, y, batch, key):
        latent_key, penalty_key = jax.random.split(key)
        generated = fakes(x, batch, latent_key)
        return discriminator_on(y, batch, generated, penalty_key)

    return Losses(generator, discriminator, generator_on, discriminator_on)


def _losses(gan: models.Gan, generator, discriminator, penalty) -> Losses:
    """The losses from what each makes of logits and penalty of samples."""

    def generator_on(y, fakes):
        fake = models.discriminate(gan, y, _samples(gan, fakes))
        return jnp.mean(generator(fake))

    def discriminator_on(y, batch, fakes, key):
        batch, generated = _samples(gan, batch), _samples(gan, fakes)
        fake = models.discriminate(gan, y, generated)
        real = models.discriminate(gan, y, batch)
        loss = jnp.mean(discriminator(real, fake))
        return loss + penalty(y, batch, generated, key)

    return _players(gan, generator_on, discriminator_on)


def non_saturating(gan: models.Gan, *, r1: float = 0.0) -> Losses:
    """The non-saturating logistic loss, with an optional gradient penalty R1.

        f_x = E[−log σ(D(G(z)))]                         = E softplus(−D(G(z)))
        f_y = E[−log σ(D(b))] + E[−log(1 − σ(D(G(z))))]  + (r1 / 2) E |∇D(b)|²
            = E softplus(−D(b)) + E softplus(D(G(z)))    + (r1 / 2) E |∇D(b)|²

    Without a penalty simultaneous gradient steps need not converge even close to the
    solution; with R1 they do (Mescheder et al.).

    Args:
      gan: the pair of networks.
      r1: weight of the penalty at the real samples b; 0 leaves it out.

    Returns:
      The losses of generator and discriminator.

    Raises:
      ValueError: if r1 is negative or not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> gan = models.mlp((2,), latent_size=4, width=8)
      >>> z = models.init(gan, jax.random.key(0))
      >>> losses = non_saturating(gan)
      >>> losses.generator(z.x, z.y, jnp.zeros((16, 2)), jax.random.key(1)).shape
      ()

    References:
      Goodfellow et al., *Generative Adversarial Nets*, 2014, arXiv 1406.2661.
      Mescheder, Geiger, Nowozin, *Which Training Methods for GANs do actually
      Converge?*, 2018, arXiv 1801.04406.
    """
    check_nonnegative("r1", r1)
    return _losses(
        gan,
        lambda fake: jax.nn.softplus(-fake),
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
        lambda y, batch, *_: r1 * _r1(gan, y, batch) if r1 else 0.0,
    )


def acgan(gan: models.Gan, *, class_weight: float = 1.0, r1: float = 0.0) -> Losses:
    """The losses of a conditional pair whose discriminator names the class (ACGAN).

        f_x = E softplus(−D(g)) + class_weight · E H(c, g)
        f_y = E softplus(−D(b)) + E softplus(D(g)) + (r1 / 2) E |∇D(b)|²
              + class_weight · (E H(l, b) + E H(c, g))

    with generated samples g = G(z) of classes c, real samples b of labels l, and H the
    cross-entropy of the class logits: `non_saturating`, and both players want the class
    to be told.

    Args:
      gan: the pair of networks, conditional.
      class_weight: weight of the cross-entropies.
      r1: weight of the penalty at the real samples b; 0 leaves it out.

    Returns:
      The losses of generator and discriminator; batches and generated samples are
      pairs (samples, labels), labels whole numbers [n].

    Raises:
      ValueError: if the pair has no classes, or a weight is negative or not finite;
        when called, if there are no labels.

    References:
      Odena, Olah, Shlens, *Conditional Image Synthesis with Auxiliary Classifier
      GANs*, 2017, arXiv 1610.09585.
    """
    check_nonnegative("class_weight", class_weight)
    check_nonnegative("r1", r1)
    if not gan.num_classes:
        raise ValueError(
            "gan must have classes for acgan, num_classes > 0; this pair of networks "
            "has none. Build it with num_classes, or use non_saturating."
        )

    def judged(y, batch, name):
        """Samples, their logits, and the mean cross-entropy of their classes."""
        if not isinstance(batch, tuple):
            raise ValueError(
                f"{name} must be a pair (samples, labels) for acgan; got samples alone."
            )
        samples, labels = batch
        logits, class_logits = cast(
            Any, models.discriminate_and_classify(gan, y, samples)
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(class_logits, labels)
        return samples, logits, class_weight * jnp.mean(entropy)

    def generator_on(y, fakes):
        _, fake, fake_entropy = judged(y, fakes, "fakes")
        return jnp.mean(jax.nn.softplus(-fake)) + fake_entropy

    def discriminator_on(y, batch, fakes, key):
        del key
        _, fake, fake_entropy = judged(y, fakes, "fakes")
        batch, real, real_entropy = judged(y, batch, "batch")
        loss = jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(fake))
        penalty = r1 * _r1(gan, y, batch) if r1 else 0.0
        return loss + real_entropy + fake_entropy + penalty

    return _players(gan, generator_on, discriminator_on)


def hinge(gan: models.Gan, *, r1: float = 0.0) -> Losses:
    """The hinge loss, with an optional gradient penalty R1.

        f_x = −E D(G(z))
        f_y = E max(0, 1 − D(b)) + E max(0, 1 + D(G(z))) + (r1 / 2) E |∇D(b)|²

    Args:
      gan: the pair of networks.
      r1: weight of the penalty at the real samples b; 0 leaves it out.

    Returns:
      The losses of generator and discriminator.

    Raises:
      ValueError: if r1 is negative or not finite.

    References:
      Lim, Ye, *Geometric GAN*, 2017, arXiv 1705.02894.
      Miyato, Kataoka, Koyama, Yoshida, *Spectral Normalization for Generative
      Adversarial Networks*, 2018, arXiv 1802.05957.
    """
    check_nonnegative("r1", r1)
    return _losses(
        gan,
        lambda fake: -fake,
        lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
        lambda y, batch, *_: r1 * _r1(gan, y, batch) if r1 else 0.0,
    )


def wasserstein(gan: models.Gan, *, gradient_penalty: float = 10.0) -> Losses:
    """The Wasserstein loss with gradient penalty (WGAN-GP).

        f_x = −E D(G(z))
        f_y = E D(G(z)) − E D(b) + gradient_penalty · E (|∇D(s)| − 1)²

    with s = u b + (1 − u) G(z), u uniform in [0, 1], one u a sample; the norm is over
    all of a sample. With `gradient_penalty=0` the game is zero-sum.

    Args:
      gan: the pair of networks.
      gradient_penalty: weight of the penalty; 0 leaves it out.

    Returns:
      The losses of generator and discriminator.

    Raises:
      ValueError: if gradient_penalty is negative or not finite.

    References:
      Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, *Improved Training of
      Wasserstein GANs*, 2017, arXiv 1704.00028.
    """
    check_nonnegative("gradient_penalty", gradient_penalty)

    def penalty(y, batch, generated, key):
        if not gradient_penalty:
            return 0.0
        n = batch.shape[0]
        u = jax.random.uniform(key, (n,) + (1,) * (batch.ndim - 1), batch.dtype)
        gradient = _gradient(gan, y, u * batch + (1 - u) * generated)
        # The norm has no derivative at 0; there the safe one has derivative 0.
        norm = optax.safe_norm(gradient.reshape(n, -1), 1e-12, axis=1)
        return gradient_penalty * jnp.mean((norm - 1) ** 2)

    return _losses(gan, lambda fake: -fake, lambda real, fake: fake - real, penalty)
