"""The layers and initializations that the networks are made of.

Every convolution is one matrix product of rearranged pixels. It equals
`lax.conv_general_dilated`, and stays one batched product when `vmap` gives every worker
its own kernel, where a convolution becomes a grouped one, which is slow on CPU.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp.gan.models.spectral import spectral_normalize

__all__ = [
    "Conv",
    "Dense",
    "StridedConv",
    "TransposedConv",
    "WideTransposedConv",
    "dense",
    "halvings",
    "heads",
    "output",
    "param_dtype",
]


def param_dtype(dtype):
    """Parameters are kept in float32 at least, whatever the computation runs in."""
    return jnp.promote_types(dtype, jnp.float32)


def he(gain: float = 1.0):
    """He's normal initialization, for ReLU layers; `gain` divides the fan-in."""
    return nn.initializers.variance_scaling(2.0 * gain, "fan_in", "normal")


class StridedConv(nn.Module):
    """4x4 convolution of stride 2 with one pixel of padding: halves height and width.

    Equals `lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)))` in NHWC and
    HWIO. The padded image is cut into 2x2 blocks; each output is one product of four
    neighbouring blocks with the kernel.

    Args:
        features: Channels out.
        dtype: Type of the computation.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, 2h, 2w, c] to [n, h, w, features]."""
        n, height, width, c = x.shape
        h, w, f = height // 2, width // 2, self.features
        dtype = param_dtype(self.dtype)
        kernel = self.param("kernel", he(), (4, 4, c, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = x.reshape(n, h + 1, 2, w + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, h + 1, w + 1, 4 * c)
        x = jnp.concatenate(
            [x[:, i : h + i, j : w + j] for i in (0, 1) for j in (0, 1)], axis=-1
        )
        # (block row, row in block, block column, column in block, c, f)
        kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5)
        return x @ kernel.reshape(16 * c, f) + bias


class TransposedConv(nn.Module):
    """Transpose of `StridedConv`: doubles height and width.

    Equals the derivative of a `StridedConv` with kernel [4, 4, features, c] with
    respect to its input: every pixel in adds a 4x4 patch out, two pixels apart.

    Args:
        features: Channels out.
        dtype: Type of the computation.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, 2h, 2w, features]."""
        n, h, w, c = x.shape
        f, dtype = self.features, param_dtype(self.dtype)
        # Each pixel out is reached by 2x2 of the 4x4 taps: a quarter of the fan-in.
        kernel = self.param("kernel", he(4.0), (4, 4, c, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
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
        return x.reshape(n, 2 * h + 2, 2 * w + 2, f)[:, 1:-1, 1:-1] + bias


def halvings(sample_shape: tuple[int, ...]) -> int:
    """How often height and width halve: down to a side of 4, 5, 6 or 7, or an odd."""
    height, width, _ = sample_shape
    count = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def dense(features: int, dtype, name: str | None = None, kernel_init=None):
    """A dense layer with the types and the initialization of this module."""
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=kernel_init or he(),
        name=name,
    )


def output(h: jax.Array, sample_shape: tuple[int, ...], dtype) -> jax.Array:
    """Images in [-1, 1], points anywhere; in the type of the parameters."""
    h = h.reshape(h.shape[0], *sample_shape).astype(param_dtype(dtype))
    return jnp.tanh(h) if len(sample_shape) == 3 else h


def heads(h: jax.Array, num_classes: int, dtype):
    """Logits [n] of features [n, c], and class logits where there are classes."""
    init = nn.initializers.lecun_normal()
    h = dense(1 + num_classes, dtype, kernel_init=init)(h)
    logits = h[:, 0].astype(param_dtype(dtype))
    return (logits, h[:, 1:].astype(logits.dtype)) if num_classes else logits


class Dense(nn.Module):
    """Dense layer over the last axis: on images, a 1x1 convolution.

    Args:
        features: Channels out.
        spectral: Whether to divide the kernel by its largest singular value.
        dtype: Type of the computation.
    """

    features: int
    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., c] to [..., features]."""
        shape = (x.shape[-1], self.features)
        kernel, bias = _parameters(self, shape)
        return x.astype(self.dtype) @ kernel + bias


class Conv(nn.Module):
    """Convolution of odd size with zero padding: keeps the size, or divides it.

    Equals `lax.conv_general_dilated(x, kernel, (s, s), ((p, p), (p, p)))` in NHWC and
    HWIO with stride s and p = size // 2. The padded image is sliced once for every tap
    of the kernel; the slices, side by side, make one product with the kernel.

    Args:
        features: Channels out.
        size: Height and width of the kernel, odd.
        stride: Step between outputs.
        spectral: Whether to divide the kernel, as a matrix [taps * c, features], by its
            largest singular value. The convolution is then Lipschitz with constant
            `size`: a pixel is in at most size² patches.
        dtype: Type of the computation.

    Raises:
        ValueError: If size is even, when it is initialized or applied.
    """

    features: int
    size: int = 3
    stride: int = 1
    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, ceil(h / stride), ceil(w / stride), features]."""
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"size must be odd and positive; got {self.size}.")
        _, h, w, c = x.shape
        k, s, p = self.size, self.stride, self.size // 2
        kernel, bias = _parameters(self, (k, k, c, self.features))
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (p, p), (p, p), (0, 0)))
        taps = [x[:, i : i + h : s, j : j + w : s] for i in range(k) for j in range(k)]
        return jnp.concatenate(taps, axis=-1) @ kernel.reshape(k * k * c, -1) + bias


class WideTransposedConv(nn.Module):
    """5x5 transposed convolution of stride 2: doubles height and width.

    Equals the derivative of `lax.conv_general_dilated(x, kernel, (2, 2), ((1, 2),
    (1, 2)))` with kernel [5, 5, features, c] with respect to x. A pixel in makes a 2x2
    block out together with its eight neighbours: one product with the kernel as 3x3
    blocks of 2x2 taps, a row and a column of zeros added.

    Args:
        features: Channels out.
        dtype: Type of the computation.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, 2h, 2w, features]."""
        n, h, w, c = x.shape
        f, dtype = self.features, param_dtype(self.dtype)
        kernel = self.param("kernel", he(4.0), (5, 5, c, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
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
        return x.reshape(n, 2 * h, 2 * w, f) + bias


def _parameters(module, shape):
    """Kernel, normalized where asked for, and bias, in the type of the computation."""
    dtype = param_dtype(module.dtype)
    kernel = module.param("kernel", he(), shape, dtype)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:], dtype)
    if module.spectral:
        kernel = spectral_normalize(kernel)
    return kernel.astype(module.dtype), bias.astype(module.dtype)
