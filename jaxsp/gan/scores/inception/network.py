"""The network: its blocks as a table, and features of images."""

import functools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from jaxsp._arguments import check_count
from jaxsp.gan import data
from jaxsp.gan.scores.levels import check_levels

__all__ = ["Inception", "features", "kernel_shapes"]

_SIZE = 299

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
_BLOCKS = {
    "": _STEM,
    "mixed.": _A.format(32),
    "mixed_1.": _A.format(64),
    "mixed_2.": _A.format(64),
    "mixed_3.": _B,
    "mixed_4.": _C.format(128),
    "mixed_5.": _C.format(160),
    "mixed_6.": _C.format(160),
    "mixed_7.": _C.format(192),
    "mixed_8.": _D,
    "mixed_9.": _E.format("average"),
    "mixed_10.": _E.format("maximum"),
}


class Inception(NamedTuple):
    """The network's weights.

    Attributes:
      params: `NAME.w` and `NAME.b` of every convolution.
      digest: checksum of the arrays in the file that they were read from.
    """

    params: dict[str, jax.Array]
    digest: str = ""


class _Step(NamedTuple):
    """One step of a branch: a convolution, or a pool where `kernel` is empty."""

    name: str
    kernel: tuple[int, ...]  # height, width, channels out
    stride: int
    padding: str


def _branches(prefix: str) -> Iterator[list[list[_Step]]]:
    """The branches of a block: lists of steps to be done side by side."""
    for line in _BLOCKS[prefix].strip().splitlines():
        steps = [part.split("&") for part in line.split(">")]
        yield [[_parse(prefix, text.strip()) for text in step] for step in steps]


def _parse(prefix: str, text: str) -> _Step:
    """One step of the table."""
    text, _, stride = text.partition("/")
    name, _, kernel = text.partition(" ")
    numbers = tuple(map(int, kernel.split("x"))) if kernel else ()
    name = prefix + name if kernel else name
    return _Step(name, numbers, int(stride or 1), "VALID" if stride else "SAME")


def kernel_shapes() -> dict[str, tuple[int, ...]]:
    """The shape [height, width, in, out] of every kernel, in the order of the table."""
    shapes, channels = {}, 3
    for prefix in _BLOCKS:
        total = 0
        for branch in _branches(prefix):
            width = channels
            for side_by_side in branch:
                kernels = {s.name: s.kernel for s in side_by_side if s.kernel}
                for name, (*window, out) in kernels.items():
                    shapes[name] = (*window, width, out)
                if kernels:
                    width = sum(kernel[-1] for kernel in kernels.values())
            total += width
        channels = total
    return shapes


def _apply(params: Mapping[str, jax.Array], step: _Step, h: jax.Array) -> jax.Array:
    """One step: a convolution with its ReLU, or a pool."""
    strides = (step.stride, step.stride)
    if step.kernel:
        h = lax.conv_general_dilated(
            h,
            params[f"{step.name}.w"],
            strides,
            step.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(h + params[f"{step.name}.b"])
    window = (1, 3, 3, 1), (1, *strides, 1), step.padding
    if step.name == "maximum":
        return lax.reduce_window(h, -jnp.inf, lax.max, *window)
    count = lax.reduce_window(jnp.ones_like(h[:1, :, :, :1]), 0.0, lax.add, *window)
    return lax.reduce_window(h, 0.0, lax.add, *window) / count


@jax.jit
def _pool3(params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Features of images that have the network's size and range."""
    h = images.astype(params["conv.w"].dtype)
    for prefix in _BLOCKS:
        ends = []
        for branch in _branches(prefix):
            sides = [h]
            for side_by_side in branch:
                sides = [_apply(params, step, sides[0]) for step in side_by_side]
            ends += sides
        h = jnp.concatenate(ends, -1)
    return h.astype(jnp.float32).mean((1, 2))


@functools.partial(jax.jit, static_argnames="preprocessing")
def _resize(images: jax.Array, preprocessing: str) -> jax.Array:
    """Images of levels 0 to 255 as the network takes them."""
    torch = preprocessing == "pytorch"
    h = images.astype(jnp.float32)
    for axis in (2, 1):
        size, at = h.shape[axis], np.arange(_SIZE)
        at = (at + 0.5) * size / _SIZE - 0.5 if torch else at * size / _SIZE
        at = at.clip(0, size - 1)
        low = np.floor(at).astype(np.int32)
        left, right = h.take(low, axis), h.take(np.minimum(low + 1, size - 1), axis)
        part = (at - low).astype(np.float32).reshape(-1, *[1] * (3 - axis))
        h = left + (right - left) * part
    return h / 127.5 - 1 if torch else (h - 128) / 128


def features(
    inception: Inception,
    images,
    batch_size: int = 50,
    progress: bool = False,
    preprocessing: Literal["pytorch", "tensorflow"] = "pytorch",
) -> np.ndarray:
    """Inception features of images: what the FID compares.

    Images are first brought to 8 bits, so that samples score as the files that would
    be written of them, and grey ones are repeated to three channels. The two public
    ways to enlarge an image to 299 x 299 are both bilinear, without smoothing before a
    reduction:

        "pytorch":    pixel centers at half-integers, v / 127.5 − 1 (pytorch-fid)
        "tensorflow": pixel i at i · size / 299, v / 128 − 1 (the first FID, in
                      TensorFlow 1, torch-fidelity, StyleGAN2-ADA)

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
            f'preprocessing must be "pytorch" or "tensorflow"; got {preprocessing!r}.'
        )
    check_count("batch_size", batch_size)
    shape = np.shape(images)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(
            "images must be of shape [n, height, width, channels] with 1 or 3 channels "
            f"and n >= 1; got {shape}."
        )
    found, size = [], min(batch_size, shape[0])
    starts = range(0, shape[0], size)
    for start in tqdm(starts, "Inception features", disable=not progress):
        chunk = _levels(images[start : start + size])
        spare = size - len(chunk)
        chunk = np.pad(chunk, [(0, spare), (0, 0), (0, 0), (0, 0)])  # one compilation
        h = _pool3(inception.params, _resize(chunk, preprocessing))
        found.append(np.asarray(h)[: size - spare])
    return np.concatenate(found)


def _levels(images) -> np.ndarray:
    """Images as uint8 in three channels."""
    images = np.asarray(images)
    check_levels(images)
    if images.dtype != np.uint8:
        images = np.asarray(data.to_uint8(images))
    return np.broadcast_to(images, (*images.shape[:3], 3))
