"""The Inception network of the FID, with weights from a local file.

The graph is the public InceptionV3 of 2015-12-05 that the Fréchet inception distance
is defined with, from its input of 299 x 299 pixels to the 2048 means of its last layer
(`pool3`); batch normalization is folded into the convolutions. Two things set it apart
from the network of the article: average pools do not count the padding, and the last
block has a maximum pool where the one before it has an average pool.

The weights are no part of this package. They are converted once from a public file, in
jaxsp's repository:

    python tools/convert_inception.py SOURCE DEST.npz

The .npz holds `NAME.w`, the kernel [height, width, in, out], float16 or float32, and
`NAME.b`, the bias [out], float32, of 94 convolutions, named as in the original graph
with dots for slashes, and the checksum of all of them, `sha256`.
"""

import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxsp._arguments import check_count
from jaxsp.gan import data
from jaxsp.gan.scores import cache
from jaxsp.gan.scores.batches import apply_to_images

__all__ = ["Inception", "features", "kernel_shapes", "load"]

_log = logging.getLogger(__name__)

_HOW = (
    "Download a public file and convert it with tools/convert_inception.py of jaxsp's "
    "repository; its --help says where the file is."
)
# Checksums of arrays that are known to be right though their file does not hold one.
_KNOWN = {"af0dd7be6db72db3dd5b6d270cf3e36e9bd0702233c06e97e2622f9cfd1e1bf5"}
_SIZE = 299
# Kernel and bias of a convolution, by its name and the shape of its kernel.
_Weights = Callable[[str, tuple[int, ...]], tuple[jax.Array, jax.Array]]

# The network, block by block. A line is a branch: steps joined by ">", each applied to
# the result of the one before; "a & b" applies both to it. What the last steps of all
# lines give is concatenated. A convolution is its name, height x width x channels of
# the kernel; it is followed by a ReLU. Pools are 3 x 3. "/s" is a stride of s without
# padding; without it the stride is 1 and the padding keeps the size.
_STEM = """
conv 3x3x32/2 > conv_1 3x3x32/1 > conv_2 3x3x64 > maximum/2 > conv_3 1x1x80/1 \
> conv_4 3x3x192/1 > maximum/2
"""
_A = """
conv 1x1x64
tower.conv 1x1x48 > tower.conv_1 5x5x64
tower_1.conv 1x1x64 > tower_1.conv_1 3x3x96 > tower_1.conv_2 3x3x96
average > tower_2.conv 1x1x{0}
"""
_B = """
conv 3x3x384/2
tower.conv 1x1x64 > tower.conv_1 3x3x96 > tower.conv_2 3x3x96/2
maximum/2
"""
_C = """
conv 1x1x192
tower.conv 1x1x{0} > tower.conv_1 1x7x{0} > tower.conv_2 7x1x192
tower_1.conv 1x1x{0} > tower_1.conv_1 7x1x{0} > tower_1.conv_2 1x7x{0} \
> tower_1.conv_3 7x1x{0} > tower_1.conv_4 1x7x192
average > tower_2.conv 1x1x192
"""
_D = """
tower.conv 1x1x192 > tower.conv_1 3x3x320/2
tower_1.conv 1x1x192 > tower_1.conv_1 1x7x192 > tower_1.conv_2 7x1x192 \
> tower_1.conv_3 3x3x192/2
maximum/2
"""
_E = """
conv 1x1x320
tower_conv 1x1x384 > tower_mixed_conv 1x3x384 & tower_mixed_conv_1 3x1x384
tower_1_conv 1x1x448 > tower_1_conv_1 3x3x384 \
> tower_1_mixed_conv 1x3x384 & tower_1_mixed_conv_1 3x1x384
{0} > tower_2_conv 1x1x192
"""
_BLOCKS = {"": _STEM, "mixed.": _A.format(32)}
_REST = [_A.format(64), _A.format(64), _B]
_REST += [*(_C.format(width) for width in (128, 160, 160, 192)), _D]
_REST += [_E.format("average"), _E.format("maximum")]
_BLOCKS |= {f"mixed_{i}.": block for i, block in enumerate(_REST, 1)}


class Inception(NamedTuple):
    """The network's weights.

    Attributes:
      params: `NAME.w` and `NAME.b` of every convolution.
      digest: checksum of the arrays in the file that they were read from.
    """

    params: dict[str, jax.Array]
    digest: str = ""


def _network(weights: _Weights, h: jax.Array) -> jax.Array:
    """The last block's output, of images that have the network's size and range."""
    for prefix, block in _BLOCKS.items():
        ends = []
        for branch in block.strip().splitlines():
            sides = [h]
            for step in branch.split(">"):
                texts = step.split("&")
                sides = [_step(weights, prefix, t.strip(), sides[0]) for t in texts]
            ends += sides
        h = jnp.concatenate(ends, -1)
    return h


def _step(weights: _Weights, prefix: str, text: str, h: jax.Array) -> jax.Array:
    """One step of the table: a convolution with its ReLU, or a pool."""
    text, _, stride = text.partition("/")
    strides, padding = (int(stride or 1),) * 2, "VALID" if stride else "SAME"
    name, _, size = text.partition(" ")
    if name == "maximum":
        return nn.max_pool(h, (3, 3), strides, padding)
    if name == "average":
        pooled = nn.avg_pool(h, (3, 3), strides, padding, count_include_pad=False)
        return pooled.astype(h.dtype)
    height, width, out = map(int, size.split("x"))
    kernel, bias = weights(prefix + name, (height, width, h.shape[-1], out))
    axes = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(
        h, kernel, strides, padding, dimension_numbers=axes, precision="highest"
    )
    return jax.nn.relu(h + bias)


def kernel_shapes() -> dict[str, tuple[int, ...]]:
    """The shape [height, width, in, out] of every kernel, in the order of the table."""
    shapes = {}

    def weights(name, shape):
        shapes[name] = shape
        return jnp.zeros(shape), jnp.zeros(shape[-1])

    images = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), jnp.float32)
    jax.eval_shape(functools.partial(_network, weights), images)
    return shapes


@jax.jit
def _pool3(params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Features of images that have the network's size and range."""
    h = images.astype(params["conv.w"].dtype)
    h = _network(lambda name, shape: (params[f"{name}.w"], params[f"{name}.b"]), h)
    return h.astype(jnp.float32).mean((1, 2))


@functools.partial(jax.jit, static_argnames="preprocessing")
def _resize(images: jax.Array, preprocessing: str) -> jax.Array:
    """Images of levels 0 to 255 as the network takes them."""
    torch = preprocessing == "pytorch"

    def weights(size):  # of every pixel in every pixel of the result
        at = np.arange(_SIZE)
        at = (at + 0.5) * size / _SIZE - 0.5 if torch else at * size / _SIZE
        away = np.abs(at.clip(0, size - 1)[:, None] - np.arange(size))
        return np.maximum(1 - away, 0).astype(np.float32)

    rows, columns = map(weights, images.shape[1:3])
    images = images.astype(jnp.float32)
    h = jnp.einsum("nhwc,ih,jw->nijc", images, rows, columns, precision="highest")
    return h / 127.5 - 1 if torch else (h - 128) / 128


def load(path: str | os.PathLike, dtype: Any = jnp.float32) -> Inception:
    """Reads and checks the weights.

    Args:
      path: an .npz that `tools/convert_inception.py` has written.
      dtype: in which to compute. Kernels that the file holds in float16 cost a relative
        2e-3 of the features.

    Returns:
      The network.

    Raises:
      FileNotFoundError: if there is no such file; says where to get it.
      ValueError: if it is not such a file, or not as it was written.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no Inception weights. {_HOW}")
    try:
        arrays = cache.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not an .npz of Inception weights, or is damaged ({error}). "
            f"{_HOW}"
        ) from error
    stated = str(arrays.pop("sha256", ""))
    wanted = {}
    for name, shape in kernel_shapes().items():
        wanted |= {f"{name}.w": shape, f"{name}.b": shape[-1:]}
    for name in sorted(wanted.keys() ^ arrays.keys()):
        there = "lacks" if name in wanted else "holds besides"
        raise ValueError(f"{path} {there} {name}: not the Inception weights. {_HOW}")
    for name, shape in wanted.items():
        array = arrays[name]
        floating = array.dtype in (np.float16, np.float32)
        if array.shape != shape or not floating or not np.isfinite(array).all():
            raise ValueError(
                f"{path}: {name} must be finite, float16 or float32, of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}."
            )
    found = cache.digest(arrays)
    if stated and stated != found:
        raise ValueError(
            f"{path} is damaged: its arrays have the checksum {found}, and it says "
            f"{stated}."
        )
    if not stated and found not in _KNOWN:
        _log.warning("%s holds no checksum: its weights cannot be verified.", path)
    params = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    return Inception(params, found)


def features(
    inception: Inception,
    images,
    batch_size: int = 50,
    progress: bool = False,
    preprocessing: Literal["pytorch", "tensorflow"] = "pytorch",
) -> np.ndarray:
    r"""Inception features of images: what the FID compares.

    Images are first brought to 8 bits, so that samples score as the files that would
    be written of them, and grey ones are repeated to three channels. The two public
    ways to enlarge an image of side $s$ to 299 x 299 are both bilinear, without
    smoothing before a reduction. Pixel $i$ is read at $x_i$, and level $v$ becomes $u$:

    - "pytorch": $x_i = (i + \frac12) \frac s{299} - \frac12$, $u = \frac v{127.5} - 1$
      (pytorch-fid).
    - "tensorflow": $x_i = i \frac s{299}$, $u = \frac{v - 128}{128}$ (the first FID, in
      TensorFlow 1, torch-fidelity, StyleGAN2-ADA).

    Features of the two differ by a fifth on 32 x 32 images: compare features, and FIDs
    with published ones, of one kind only.

    Args:
      inception: from `load`.
      images: [n, height, width, 1 or 3], uint8, or float in [-1, 1].
      batch_size: images at a time. Fewer images make one smaller batch.
      progress: whether to show a progress bar.
      preprocessing: which of the two ways.

    Returns:
      Features [n, 2048], float32.

    Raises:
      ValueError: if images or options are not of these kinds.

    References:
      Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*,
      2015, arXiv 1512.00567.
      Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local
      Nash Equilibrium*, 2017, arXiv 1706.08500.
      Parmar, Zhang, Zhu, *On Aliased Resizing and Surprising Subtleties in GAN
      Evaluation*, 2021, arXiv 2104.11222.
    """
    if preprocessing not in ("pytorch", "tensorflow"):
        raise ValueError(
            f'preprocessing must be "pytorch" or "tensorflow", got {preprocessing!r}.'
        )
    check_count("batch_size", batch_size)
    shape = np.shape(images)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(
            "images must be of shape [n, height, width, channels] with 1 or 3 channels "
            f"and n >= 1, got {shape}."
        )

    def network(batch):
        return _pool3(inception.params, _resize(_levels(batch), preprocessing))

    title = "Inception features"
    return apply_to_images(network, images, batch_size, title, progress)


def _levels(images: np.ndarray) -> np.ndarray:
    """Images as uint8 in three channels."""
    if images.dtype != np.uint8:
        images = np.asarray(data.to_uint8(images))
    return np.broadcast_to(images, (*images.shape[:3], 3))
