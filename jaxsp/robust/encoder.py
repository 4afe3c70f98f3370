r"""An encoder in the manner of ALBERT: one layer's parameters for all layers.

As in the paper, words have embeddings of a size $E$ below the hidden size $H$, from
which one matrix leads up, and all layers are the same one, so that the number of
parameters does not depend on the depth. Layers are post-LN, as there: each half is
$x \leftarrow \mathrm{LN}(x + \mathrm{half}(x))$. What differs: no segments (there is no
second task), no dropout; matrices start at the scale of their fan-in and positions from
sinusoids, without which a small encoder takes no notice of its context for hundreds of
steps; and the layer normalization of the embedding has no scale and
shift of its own, which the matrix behind it has anyway. So an embedded position always
has norm $\sqrt E$, and that is what the size of a perturbation is measured against: the
network cannot escape an adversary by larger embeddings.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp._arguments import check_count

__all__ = ["PRESETS", "Albert", "albert"]

# Table 1 of arXiv 1909.11942, with its vocabulary and lengths (sections 4.1, 4.2); in
# base and large a head has 64 numbers, and the middle of a layer 4 hidden sizes. tiny
# is ours, for two CPU cores.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"embedding_size": 32, "hidden_size": 64, "layers": 2, "heads": 2},
    "base": {"embedding_size": 128, "hidden_size": 768, "layers": 12, "heads": 12},
    "large": {"embedding_size": 128, "hidden_size": 1024, "layers": 24, "heads": 16},
}
PRESETS["tiny"] |= {"vocab_size": 512, "length": 32}
PRESETS["base"] |= {"vocab_size": 30_000, "length": 512}
PRESETS["large"] |= {"vocab_size": 30_000, "length": 512}

_normal = nn.initializers.truncated_normal(0.02)


def _waves(key, shape, dtype=jnp.float32):
    """Sines and cosines as large as `_normal`: neighbours differ from the start."""
    del key
    half = -(-shape[1] // 2)
    angles = jnp.arange(shape[0])[:, None] * 100.0 ** (-jnp.arange(half) / half)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return (0.02 * 2**0.5 * waves[:, : shape[1]]).astype(dtype)


def _dense(size, name=None):
    return nn.Dense(size, name=name)


def _norm(name=None, affine=True):
    return nn.LayerNorm(1e-12, use_scale=affine, use_bias=affine, name=name)


class Layer(nn.Module):
    """Attention and two dense layers, each added and normalized.

    All matrices are two-dimensional, as `jaxsp.compressors.low_rank` wants them.

    Attributes:
      heads: of the attention; they divide the hidden size.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The next hidden states, `[batch, length, hidden]`."""
        *batch, hidden = x.shape
        query, key, value = (
            _dense(hidden, name)(x).reshape(*batch, self.heads, hidden // self.heads)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = _norm("attention_norm")(x + _dense(hidden, "attention_out")(mixed))
        middle = nn.gelu(_dense(4 * hidden, "middle")(x))
        return _norm("output_norm")(x + _dense(hidden, "output")(middle))


class Albert(nn.Module):
    """The encoder with a masked-language-model head.

    Attributes:
      vocab_size: words.
      embedding_size: $E$.
      hidden_size: $H$.
      layers: how often the layer is applied.
      heads: of the attention.
      length: the most positions.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    layers: int
    heads: int
    length: int

    def setup(self):
        """The parts, of which the layer is one."""
        sizes = {"features": self.embedding_size, "embedding_init": _normal}
        self.words = nn.Embed(self.vocab_size, **sizes)
        self.positions = nn.Embed(
            self.length, self.embedding_size, embedding_init=_waves
        )
        self.normalize = _norm(affine=False)
        self.up = _dense(self.hidden_size)
        self.layer = Layer(self.heads)
        self.down = _dense(self.embedding_size)
        self.down_norm = _norm()
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))

    def __call__(
        self,
        tokens: jax.Array,
        predict: jax.Array,
        delta: jax.Array | None = None,
    ) -> jax.Array:
        """The logits of what stands at some positions.

        Args:
          tokens: int32 `[batch, length]`.
          predict: the positions to predict, int32 `[batch, number]`.
          delta: what is added to the embedding, `[batch, length, E]`; None for nothing.

        Returns:
          `[batch, number, vocab_size]`.
        """
        x = self.embed(tokens)
        x = self.up(x if delta is None else x + delta)
        for _ in range(self.layers):
            x = self.layer(x)
        x = jnp.take_along_axis(x, predict[:, :, None], axis=1)
        x = self.down_norm(nn.gelu(self.down(x)))
        return self.words.attend(x) + self.bias

    def embed(self, tokens: jax.Array) -> jax.Array:
        r"""The embedding, `[batch, length, E]`: every position of norm $\sqrt E$."""
        places = self.positions(jnp.arange(tokens.shape[1]))
        return self.normalize(self.words(tokens) + places)

    def nearest(self, points: jax.Array) -> jax.Array:
        """The token whose embedding is nearest to each of `[batch, length, E]`."""

        def at(place):
            x, position = place  # of one position, in all rows
            words = self.normalize(self.words.embedding + position)
            # Embeddings have equal norms: the nearest has the largest product.
            return jnp.argmax(x @ words.T, axis=-1)

        places = self.positions(jnp.arange(points.shape[1]))
        return jax.lax.map(at, (jnp.swapaxes(points, 0, 1), places)).T


def albert(
    preset: str, vocab_size: int | None = None, length: int | None = None
) -> Albert:
    """The encoder of a size that has a name.

    Args:
      preset: "tiny", or "base" or "large" of the paper.
      vocab_size: words; None is the preset's.
      length: the most positions; None is the preset's.

    Returns:
      The module, without parameters.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsp.robust import encoder
      >>> model = encoder.albert("tiny")
      >>> tokens = jnp.zeros((2, 32), jnp.int32)
      >>> params = model.init(jax.random.key(0), tokens, tokens[:, :5])["params"]
      >>> print(model.apply({"params": params}, tokens, tokens[:, :5]).shape)
      (2, 5, 512)

    References:
      Lan, Chen, Goodman, Gimpel, Sharma, Soricut, ALBERT: A Lite BERT for
      Self-supervised Learning of Language Representations, 2020, arXiv 1909.11942.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    given = {"vocab_size": vocab_size, "length": length}
    given = {k: check_count(k, v) for k, v in given.items() if v is not None}
    sizes: Any = PRESETS[preset] | given
    return Albert(**sizes)
