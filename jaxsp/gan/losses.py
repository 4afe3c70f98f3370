r"""Losses of the two players, to be given to `jaxsp.game`.

Every loss is `f(x, y, batch, key)` with the generator's parameters $x$, the
discriminator's parameters $y$, a batch of real samples (images as floats in [-1, 1])
and a typed random key. As many latents are drawn as the batch has samples. **Both
players draw the same latents from the same key**: under one `jit` the samples and their
logits are then computed once for both, and the two losses are those of one game at one
sample. Below, $b$ are the real samples, $g = G(z)$ the generated ones, $D$ the logits,
$\sigma$ the logistic function and $\mathrm{E}$ the mean over the batch.

Beside them stand the same losses as functions of generated samples, for whoever holds
samples and not their generator.

Where the pair of networks has classes, a batch is a pair (samples, labels), and so may
generated samples be. `acgan` needs the labels; the other losses leave them alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsp._arguments import check_nonnegative
from jaxsp.gan import models
from jaxsp.gan.models.gan import check_gan

__all__ = ["Losses", "acgan", "hinge", "non_saturating", "relativistic", "wasserstein"]

Loss = Callable[..., jax.Array]


class Losses(NamedTuple):
    """The loss of either player, each `f(x, y, batch, key) -> scalar`.

    Attributes:
      generator: minimized by the generator, over x.
      discriminator: minimized by the discriminator, over y.
      generator_on: the generator's loss of generated samples, `f(y, fakes)`; its
        gradient with respect to them, through the generator, is the generator's. None
        where it is of real samples too.
      discriminator_on: the discriminator's loss of real and generated samples,
        `f(y, batch, fakes, key)`.
      reads: what turns outputs of the discriminator into what people read, such as
        `jax.nn.sigmoid` of logits into probabilities; None where there is no such.
    """

    generator: Loss
    discriminator: Loss
    generator_on: Loss | None = None
    discriminator_on: Loss | None = None
    reads: Callable[[jax.Array], jax.Array] | None = None


def _losses(gan, generator, discriminator, penalty, class_weight=None) -> Losses:
    """All four losses, from what each player makes of logits.

    `penalty(y, real, fake, key)` is of samples; None for none. Where `class_weight` is
    not None, both players also pay so many times the cross-entropy of the classes.
    """
    check_gan(gan)

    def samples_of(batch, name):
        """The samples of a batch, which may have labels where the pair has classes."""
        if not isinstance(batch, tuple):
            return batch
        if not gan.num_classes:
            raise ValueError(
                f"{name} must be samples alone, got a tuple: the pair of networks has "
                "no classes. Build it with num_classes, or leave labels out."
            )
        return batch[0]

    def judged(y, batch, name):
        """Samples, their logits, and what their classes cost."""
        samples = samples_of(batch, name)
        if class_weight is None:
            return samples, models.discriminate(gan, y, samples), 0.0
        if samples is batch:
            raise ValueError(
                f"{name} must be a pair (samples, labels) for acgan, got samples alone."
            )
        said: Any = models.discriminate_and_classify(gan, y, samples)
        logits, classes = said
        entropy = optax.softmax_cross_entropy_with_integer_labels(classes, batch[1])
        return samples, logits, class_weight * jnp.mean(entropy)

    def fakes_of(x, batch, key) -> Any:
        latents = models.latents(gan, key, samples_of(batch, "batch").shape[0])
        samples = models.generate(gan, x, latents)
        return (samples, models.labels_of(gan, latents)) if gan.num_classes else samples

    def generator_on(y, fakes):
        _, fake, entropy = judged(y, fakes, "fakes")
        return jnp.mean(generator(fake)) + entropy

    def discriminator_on(y, batch, fakes, key):
        generated, fake, fake_entropy = judged(y, fakes, "fakes")
        samples, real, real_entropy = judged(y, batch, "batch")
        loss = jnp.mean(discriminator(real, fake)) + real_entropy + fake_entropy
        return loss + penalty(y, samples, generated, key) if penalty else loss

    def generator_loss(x, y, batch, key):
        latent_key, _ = jax.random.split(key)
        return generator_on(y, fakes_of(x, batch, latent_key))

    def discriminator_loss(x, y, batch, key):
        latent_key, penalty_key = jax.random.split(key)
        return discriminator_on(y, batch, fakes_of(x, batch, latent_key), penalty_key)

    return Losses(generator_loss, discriminator_loss, generator_on, discriminator_on)


def _slopes(gan, y, samples: jax.Array) -> jax.Array:
    r"""$\nabla D$ at each sample, [n, ...]: a logit depends on its own sample alone."""
    return jax.grad(lambda s: models.discriminate(gan, y, s).sum())(samples)


def _steepness(gan, y, samples) -> jax.Array:
    r"""$\frac12 \mathrm{E} |\nabla D|^2$ at samples."""
    return 0.5 * jnp.sum(_slopes(gan, y, samples) ** 2) / samples.shape[0]


def _r1(gan, weight):
    """The penalty R1, or None where it weighs nothing."""
    check_nonnegative("r1", weight)

    def penalty(y, real, *_):
        return weight * _steepness(gan, y, real)

    return penalty if weight else None


def _logistic(gan, r1, class_weight=None):
    def discriminator(real, fake):
        return jax.nn.softplus(-real) + jax.nn.softplus(fake)

    def generator(fake):
        return jax.nn.softplus(-fake)

    found = _losses(gan, generator, discriminator, _r1(gan, r1), class_weight)
    return found._replace(reads=jax.nn.sigmoid)  # log-odds of being real


def non_saturating(gan: models.Gan, *, r1: float = 0.0) -> Losses:
    r"""The non-saturating logistic loss, with an optional gradient penalty R1.

    $$\begin{aligned}
    f_x &= \mathrm{E}[-\log \sigma(D(g))] = \mathrm{E}\, \mathrm{softplus}(-D(g)), \\
    f_y &= \mathrm{E}[-\log \sigma(D(b))] + \mathrm{E}[-\log(1 - \sigma(D(g)))]
        + \tfrac{r_1}{2} \mathrm{E} |\nabla D(b)|^2 \\
        &= \mathrm{E}\, \mathrm{softplus}(-D(b)) + \mathrm{E}\, \mathrm{softplus}(D(g))
        + \tfrac{r_1}{2} \mathrm{E} |\nabla D(b)|^2.
    \end{aligned}$$

    Without a penalty simultaneous gradient steps need not converge even close to the
    solution; with R1 they do (Mescheder et al.).

    Args:
      gan: the pair of networks.
      r1: weight $r_1$ of the penalty at the real samples; 0 leaves it out.

    Returns:
      The losses of generator and discriminator.

    Raises:
      ValueError: if a weight is negative or not finite.

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
    return _logistic(gan, r1)


def acgan(gan: models.Gan, *, class_weight: float = 1.0, r1: float = 0.0) -> Losses:
    r"""The losses of a conditional pair whose discriminator names the class (ACGAN).

    $$\begin{aligned}
    f_x &= \mathrm{E}\, \mathrm{softplus}(-D(g)) + w\, \mathrm{E} H(c, g), \\
    f_y &= \mathrm{E}\, \mathrm{softplus}(-D(b)) + \mathrm{E}\, \mathrm{softplus}(D(g))
        + \tfrac{r_1}{2} \mathrm{E} |\nabla D(b)|^2
        + w \big(\mathrm{E} H(l, b) + \mathrm{E} H(c, g)\big)
    \end{aligned}$$

    with the classes $c$ of generated samples, the labels $l$ of real ones, and the
    cross-entropy $H$ of the class logits. It is `non_saturating`, and both players want
    the class to be told.

    Args, returns and raises: as `non_saturating`, and
      class_weight: weight $w$ of the cross-entropies.

    Raises:
      ValueError: if the pair has no classes; when called, if a batch or the generated
        samples are no pair (samples, labels), with labels whole numbers [n].

    References:
      Odena, Olah, Shlens, *Conditional Image Synthesis with Auxiliary Classifier
      GANs*, 2017, arXiv 1610.09585.
    """
    check_gan(gan)
    check_nonnegative("class_weight", class_weight)
    if not gan.num_classes:
        raise ValueError(
            "gan must have classes for acgan, num_classes > 0; this pair of networks "
            "has none. Build it with num_classes, or use non_saturating."
        )
    return _logistic(gan, r1, class_weight)


def hinge(gan: models.Gan, *, r1: float = 0.0) -> Losses:
    r"""The hinge loss, with an optional gradient penalty R1.

    $$f_x = -\mathrm{E} D(g), \qquad
    f_y = \mathrm{E} \max(0, 1 - D(b)) + \mathrm{E} \max(0, 1 + D(g))
        + \tfrac{r_1}{2} \mathrm{E} |\nabla D(b)|^2.$$

    Args, returns and raises: as `non_saturating`.

    References:
      Lim, Ye, *Geometric GAN*, 2017, arXiv 1705.02894.
      Miyato, Kataoka, Koyama, Yoshida, *Spectral Normalization for Generative
      Adversarial Networks*, 2018, arXiv 1802.05957.
    """

    def discriminator(real, fake):
        return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)

    return _losses(gan, lambda fake: -fake, discriminator, _r1(gan, r1))


def wasserstein(gan: models.Gan, *, gradient_penalty: float = 10.0) -> Losses:
    r"""The Wasserstein loss with gradient penalty (WGAN-GP).

    $$f_x = -\mathrm{E} D(g), \qquad
    f_y = \mathrm{E} D(g) - \mathrm{E} D(b) + \lambda \mathrm{E} (|\nabla D(s)| - 1)^2,
    \qquad s = u b + (1 - u) g$$

    with $u$ uniform in [0, 1], one a sample; the norm is over all of a sample. With
    $\lambda = 0$ the game is zero-sum.

    Args, returns and raises: as `non_saturating`, but for r1
      gradient_penalty: weight $\lambda$ of the penalty; 0 leaves it out.

    References:
      Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, *Improved Training of
      Wasserstein GANs*, 2017, arXiv 1704.00028.
    """
    check_nonnegative("gradient_penalty", gradient_penalty)

    def penalty(y, real, fake, key):
        n = real.shape[0]
        u = jax.random.uniform(key, (n,) + (1,) * (real.ndim - 1), real.dtype)
        slopes = _slopes(gan, y, u * real + (1 - u) * fake)
        # The norm has no derivative at 0; there the safe one has derivative 0.
        norm = optax.safe_norm(slopes.reshape(n, -1), 1e-12, axis=1)
        return gradient_penalty * jnp.mean((norm - 1) ** 2)

    penalized = penalty if gradient_penalty else None
    return _losses(gan, lambda fake: -fake, lambda real, fake: fake - real, penalized)


def relativistic(gan: models.Gan, *, gamma: float = 1.0) -> Losses:
    r"""The relativistic logistic loss of pairs, with the penalties R1 and R2.

    $$\begin{aligned}
    f_x &= \mathrm{E}\, \mathrm{softplus}(D(b) - D(g)), \\
    f_y &= \mathrm{E}\, \mathrm{softplus}(D(g) - D(b))
        + \tfrac{\gamma}{2} \big(\mathrm{E} |\nabla D(b)|^2
        + \mathrm{E} |\nabla D(g)|^2\big)
    \end{aligned}$$

    Each generated sample is compared with a real one, and only the difference of their
    logits counts: a generator is judged beside the data everywhere, also at modes that
    it drops. Without penalties it need not converge, nor with R1 alone, at the real
    samples; R2 is the same at the generated ones. Both are differentiated through.

    Both losses need real samples, so that they are none of generated samples alone:
    there is no `generator_on`, and `md_gan` cannot be trained by it.

    Args, returns and raises: as `non_saturating`, but for r1
      gamma: weight $\gamma$ of both penalties; 0 leaves them out.

    Raises:
      ValueError: when called, if there are not as many generated samples as real ones.

    References:
      Jolicoeur-Martineau, *The relativistic discriminator: a key element missing from
      standard GAN*, 2018, arXiv 1807.00734.
      Huang, Gokaslan, Kuleshov, Tompkin, *The GAN is dead; long live the GAN! A Modern
      GAN Baseline*, 2025, arXiv 2501.05441.
    """
    check_nonnegative("gamma", gamma)

    def ahead(better, worse):
        if better.shape != worse.shape:
            raise ValueError(
                "fakes must be as many as the samples of the batch for relativistic, "
                f"got logits of shapes {better.shape} and {worse.shape}."
            )
        return jax.nn.softplus(worse - better)

    def penalty(y, real, fake, _):
        return gamma * (_steepness(gan, y, real) + _steepness(gan, y, fake))

    penalized = penalty if gamma else None
    found = _losses(gan, jnp.negative, ahead, penalized)
    # The generator's is the discriminator's with real and generated in turned places.
    turned = _losses(gan, jnp.negative, lambda real, fake: ahead(fake, real), None)
    return found._replace(generator=turned.discriminator, generator_on=None)
