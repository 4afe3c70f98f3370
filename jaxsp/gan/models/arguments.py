"""What the builders refuse."""

from jaxsp.gan.models.layers import halvings

__all__ = ["check", "check_image"]


def check(sample_shape, ranks, **sizes) -> tuple[int, ...]:
    """Refuses shapes and sizes that are no positive whole numbers."""
    shape = tuple(sample_shape)
    if len(shape) not in ranks or any(int(s) != s or s < 1 for s in shape):
        wanted = " or ".join(
            {1: "(size,)", 3: "(height, width, channels)"}[r] for r in ranks
        )
        raise ValueError(
            f"sample_shape must be {wanted}, in positive whole numbers; got {shape}."
        )
    for name, size in sizes.items():
        if size < 1 or int(size) != size:
            raise ValueError(f"{name} must be a positive whole number; got {size}.")
    return tuple(int(s) for s in shape)


def check_image(sample_shape, **sizes) -> tuple[int, ...]:
    """Refuses, besides, images that cannot be halved."""
    shape = check(sample_shape, (3,), **sizes)
    if halvings(shape) == 0:
        raise ValueError(
            "sample_shape must have an even height and width of at least 8 to be "
            f"halved; got {shape}. Pad the images, or use mlp(sample_shape)."
        )
    return shape
