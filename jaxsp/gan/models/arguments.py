"""What the builders refuse."""

from jaxsp._arguments import check_count
from jaxsp.gan.models.layers import halvings

_KINDS = {1: "(size,)", 3: "(height, width, channels)"}


def check(sample_shape, ranks, **sizes) -> tuple[int, ...]:
    """Refuses shapes and sizes that are no positive integers."""
    shape = tuple(sample_shape)
    if len(shape) not in ranks or any(int(s) != s or s < 1 for s in shape):
        raise ValueError(
            f"sample_shape must be {' or '.join(_KINDS[rank] for rank in ranks)}, in "
            f"positive integers, got {shape}."
        )
    for name, size in sizes.items():
        check_count(name, size)
    return tuple(map(int, shape))


def check_image(sample_shape, width) -> tuple[int, ...]:
    """Refuses, besides, images that cannot be halved."""
    shape = check(sample_shape, (3,), width=width)
    if halvings(shape) == 0:
        raise ValueError(
            "sample_shape must have an even height and width of at least 8 to be "
            f"halved, got {shape}. Pad the images, or use mlp(sample_shape)."
        )
    return shape
