r"""The layers and initializations that the networks are made of.

They are those of flax, with functions of their own for the convolution itself: each is
one matrix product of rearranged pixels. It equals `lax.conv_general_dilated`, and stays
one batched product when `vmap` gives every worker its own kernel, where a convolution
becomes a grouped one, which is slow on CPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxsp._arguments import check_count, check_flag
from jaxsp.gan.models.arguments import check_dtype
from jaxsp.gan.models.spectral import spectral_normalize


def param_dtype(dtype):
    """Parameters are kept in float32 at least, whatever the computation runs in."""
    return np.promote_types(dtype, np.float32)


def he(gain: float = 1.0):
    """He's normal initialization, for ReLU layers; `gain` divides the fan-in."""
    return nn.initializers.variance_scaling(2.0 * gain, "fan_in", "normal")


def output(h: jax.Array, sample_shape: tuple[int, ...], dtype) -> jax.Array:
    """Images in [-1, 1], points anywhere; in the type of the parameters."""
    h = h.reshape(h.shape[0], *sample_shape).astype(param_dtype(dtype))
    return jnp.tanh(h) if len(sample_shape) == 3 else h


def layer_norm(h: jax.Array, dtype) -> jax.Array:
    """Normalizes over the channels of a pixel."""
    with jax.numpy_dtype_promotion("standard"):  # which flax counts on
        return nn.LayerNorm(dtype=dtype, param_dtype=param_dtype(dtype))(h)


def heads(h: jax.Array, num_classes: int, dtype):
    """Logits [n] of features [n, c], and class logits where there are classes."""
    h = dense(1 + num_classes, dtype, kernel_init=nn.initializers.lecun_normal())(h)
    logits = h[:, 0].astype(param_dtype(dtype))
    return (logits, h[:, 1:].astype(logits.dtype)) if num_classes else logits


# ------------------------------------------------------------------ layers

# All take the number of channels out, the type of the computation, and what else flax's
# layer takes, such as a name.


def dense(features: int, dtype=jnp.float32, *, spectral: bool = False, **options):
    """A dense layer over the last axis: on images, a 1x1 convolution.

    Args:
      features: channels out.
      dtype: type of the computation.
      spectral: whether to divide the kernel by its largest singular value.
      **options: of `nn.Dense`.

    Returns:
      The layer, [..., c] to [..., features].
    """
    features = check_count("features", features)
    return nn.Dense(features, **_options(dtype, spectral) | options)


def conv(features: int, dtype=jnp.float32, *, spectral: bool = False, **options):
    """A 3x3 convolution with zero padding: keeps the size, or divides it by `strides`.

    Args: as of `dense`, and
      spectral: whether to divide the kernel, as a matrix [9 c, features], by its
        largest singular value. The convolution is then Lipschitz with constant 3: a
        pixel is in at most 9 patches.

    Returns:
      The layer, [n, h, w, c] to [n, ceil(h / strides), ceil(w / strides), features].
    """
    options |= {"padding": 1, "conv_general_dilated": _convolve}
    features = check_count("features", features)
    return nn.Conv(features, (3, 3), **_options(dtype, spectral) | options)


def strided_conv(features: int, dtype=jnp.float32, **options):
    """A 4x4 convolution of stride 2 with one pixel of padding: halves the image."""
    options |= {"strides": 2, "padding": 1, "conv_general_dilated": _convolve_4x4}
    features = check_count("features", features)
    return nn.Conv(features, (4, 4), **_options(dtype) | options)


def transposed_conv(features: int, dtype=jnp.float32, **options):
    """The transpose of `strided_conv`: doubles height and width.

    It is the derivative, with respect to its input, of a `strided_conv` with kernel
    [4, 4, features, c]: every pixel in adds a 4x4 patch out, two pixels apart.
    """
    # Each pixel out is reached by 2x2 of the 4x4 taps: a quarter of the fan-in.
    options |= {"kernel_init": he(4.0), "conv_general_dilated": _transpose_4x4}
    options |= {"input_dilation": 2, "padding": 2}
    features = check_count("features", features)
    return nn.Conv(features, (4, 4), **_options(dtype) | options)


def wide_transposed_conv(features: int, dtype=jnp.float32, **options):
    """A 5x5 transposed convolution of stride 2: doubles height and width.

    It is the derivative of `lax.conv_general_dilated(x, kernel, (2, 2), ((1, 2),
    (1, 2)))` with kernel [5, 5, features, c] with respect to x.
    """
    options |= {"kernel_init": he(4.0), "conv_general_dilated": _transpose_5x5}
    options |= {"input_dilation": 2, "padding": ((3, 2), (3, 2))}
    features = check_count("features", features)
    return nn.Conv(features, (5, 5), **_options(dtype) | options)


def _options(dtype, spectral: bool = False) -> dict[str, Any]:
    """What all layers have in common."""
    check_dtype(dtype)
    check_flag("spectral", spectral)
    promote = _normalize_and_promote if spectral else promote_dtype
    return {
        "dtype": dtype,
        "param_dtype": param_dtype(dtype),
        "kernel_init": he(),
        "promote_dtype": promote,
    }


def _normalize_and_promote(x, kernel, bias, *, dtype, **_):
    """Divides the kernel by its norm, while it is still in the parameters' type."""
    return promote_dtype(x, spectral_normalize(kernel), bias, dtype=dtype)


# ------------------------------------------------------------------ convolutions

# In the place of `lax.conv_general_dilated`, called by flax as that is. The transposed
# ones take the kernel [height, width, c, features] flipped in height and width.


def _convolve(x, kernel, strides, padding, **_):
    """Any size and strides: a slice for every tap, side by side, in one product."""
    rows, columns, c, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [
        x[:, i : i + h : strides[0], j : j + w : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    kernel = kernel.reshape(rows * columns * c, features)
    return jnp.concatenate(taps, axis=-1) @ kernel


def _convolve_4x4(x, kernel, strides, padding, **_):
    """4x4, stride 2, padding 1: four neighbouring 2x2 blocks make an output."""
    n, height, width, c = x.shape
    h, w = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    x = x.reshape(n, h + 1, 2, w + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, h + 1, w + 1, 4 * c)
    x = jnp.concatenate(
        [x[:, i : h + i, j : w + j] for i in (0, 1) for j in (0, 1)], axis=-1
    )
    # (block row, row in block, block column, column in block, c, features)
    kernel = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    return x @ kernel.reshape(16 * c, -1)


def _transpose_4x4(x, kernel, strides, padding, **_):
    """4x4, doubling: every pixel makes four 2x2 blocks, added where they meet."""
    n, h, w, c = x.shape
    f = kernel.shape[-1]
    # (c, block row, block column, row in block, column in block, f)
    kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(4, 0, 2, 1, 3, 5)
    x = (x @ kernel.reshape(c, 16 * f)).reshape(n, h, w, 2, 2, 4 * f)
    blocks = [
        jnp.pad(x[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))
        for i in (0, 1)
        for j in (0, 1)
    ]
    x = blocks[0] + blocks[1] + blocks[2] + blocks[3]
    x = x.reshape(n, h + 1, w + 1, 2, 2, f).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h + 2, 2 * w + 2, f)[:, 1:-1, 1:-1]


def _transpose_5x5(x, kernel, strides, padding, **_):
    """5x5, doubling: a pixel makes a 2x2 block together with its eight neighbours.

    One product with the kernel as 3x3 blocks of 2x2 taps, a row and a column of zeros
    added.
    """
    n, h, w, c = x.shape
    f = kernel.shape[-1]
    # Pixel 2 i + a takes tap 1 + a - 2 d of its neighbour i + d, d = -1, 0, 1: in
    # the kernel with a zero tap before, at 2 (1 - d) + a.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(3, 2, 3, 2, c, f)[::-1, :, ::-1]
    # (row d, column d, c, row in block, column in block, f)
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(9 * c, 4 * f)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jnp.concatenate(
        [x[:, i : h + i, j : w + j] for i in range(3) for j in range(3)], axis=-1
    )
    x = (x @ kernel).reshape(n, h, w, 2, 2, f).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, f)
