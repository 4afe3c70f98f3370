"""What the builders refuse."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp._arguments import check_count, refuse

_KINDS = {1: "(size,)", 3: "(height, width, channels)"}


def check(sample_shape, ranks=(), dtype=jnp.float32, **sizes) -> tuple[int, ...]:
    """Refuses shapes and sizes that are no positive integers."""
    kinds = " or ".join(_KINDS[rank] for rank in ranks) or "a tuple"
    required = f"{kinds}, in positive integers"
    try:
        shape = tuple(check_count("sample_shape", s) for s in sample_shape)
    except (TypeError, ValueError):
        refuse("sample_shape", required, sample_shape)
    if len(shape) not in (ranks or range(1, 10)):
        refuse("sample_shape", required, sample_shape)
    check_dtype(dtype)
    for name, size in sizes.items():
        check_count(name, size)
    return shape


def check_dtype(dtype) -> None:
    """Refuses types that networks are not computed in."""
    try:
        known = dtype is not None and not isinstance(dtype, np.ndarray | jax.Array)
        floating = known and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except (TypeError, ValueError):
        floating = False
    if not floating:
        refuse("dtype", "a floating type, such as jnp.bfloat16", dtype)


def halvings(sample_shape: tuple[int, ...]) -> int:
    """How often height and width halve: down to a side of 4, 5, 6 or 7, or an odd."""
    height, width, _ = check(sample_shape, (3,))
    count = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def check_image(sample_shape, width, dtype) -> tuple[int, ...]:
    """Refuses, besides, images that cannot be halved."""
    shape = check(sample_shape, (3,), dtype, width=width)
    if halvings(shape) == 0:
        raise ValueError(
            "sample_shape must have an even height and width of at least 8 to be "
            f"halved, got {shape}. Pad the images, or use mlp(sample_shape)."
        )
    return shape
