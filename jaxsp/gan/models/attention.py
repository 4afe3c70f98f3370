"""Self-attention over the pixels of an image."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp.gan.models.layers import dense, param_dtype


class SelfAttention(nn.Module):
    r"""Adds to every pixel what it looks for anywhere in the image.

    $$y_i = x_i + \gamma O \sum_j \beta_{ij} v_j, \qquad
    \beta_i = \mathrm{softmax}_j(q_i \cdot k_j)$$

    over pixels $i$ of the image and $j$ of the image pooled 2x2 by its maximum. Queries
    $q$ and keys $k$ have an eighth of the channels, values $v$ half of them; all are
    linear in $x$. $\gamma$ is a parameter and starts at 0: the layer starts as the
    identity. The softmax runs in the type of the parameters.

    Args:
      spectral: whether to normalize the four kernels by their spectral norm.
      dtype: type of the computation.

    References:
      Zhang, Goodfellow, Metaxas, Odena, *Self-Attention Generative Adversarial
      Networks*, 2019, arXiv 1805.08318.
    """

    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to the same shape; h and w at least 2."""
        n, h, w, c = x.shape
        dtype = param_dtype(self.dtype)

        def project(features, name):
            return dense(features, self.dtype, spectral=self.spectral, name=name)

        q = project(max(c // 8, 1), "query")(x).reshape(n, h * w, -1)
        k = _pool(project(max(c // 8, 1), "key")(x))
        v = _pool(project(max(c // 2, 1), "value")(x))
        weights = jax.nn.softmax((q @ k.swapaxes(1, 2)).astype(dtype), axis=-1)
        seen = project(c, "out")(weights.astype(self.dtype) @ v)
        gamma = self.param("gamma", nn.initializers.zeros, (), dtype)
        return x + gamma.astype(self.dtype) * seen.reshape(x.shape)


def _pool(x):
    """Maxima of 2x2 blocks, as a list of pixels; an odd last row or column is left."""
    n, h, w, c = x.shape
    blocks = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return blocks.max(axis=(2, 4)).reshape(n, -1, c)
