"""Pictures of a run."""

import numpy as np
import PIL.Image
import pytest

from jaxsp.gan.training import plots


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((32, 32), 3)])
def test_image_grid_shows_every_pixel_as_a_square(tmp_path, shape, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape, channels), np.uint8)
    as_floats = images / 127.5 - 1
    for samples in (images, as_floats):
        plots.plot_samples(samples, tmp_path / "a.png")
        picture = np.asarray(PIL.Image.open(tmp_path / "a.png").convert("RGB"))
        zoom, gap, margin = 64 // shape[0], 2, 10
        side = 64 + gap
        assert picture.shape == (2 * side - gap + 20, 3 * side - gap + 20, 3)
        for i, image in enumerate(images):
            row, column = divmod(i, 3)
            top, left = margin + row * side, margin + column * side
            shown = picture[top : top + 64, left : left + 64]
            for offset in (0, zoom - 1):
                np.testing.assert_array_equal(
                    shown[offset::zoom, offset::zoom],
                    np.broadcast_to(image, (*shape, 3)),
                )


def test_points_are_drawn_over_the_data(tmp_path):
    rng = np.random.default_rng(0)
    data, points = rng.normal(size=(200, 2)), rng.normal(size=(100, 2))
    plots.plot_samples(points, tmp_path / "with.png", reference=data, title="a")
    plots.plot_samples(points, tmp_path / "without.png")
    with_data, without = (
        np.asarray(PIL.Image.open(tmp_path / name).convert("RGB"), int)
        for name in ("with.png", "without.png")
    )

    def blue(picture):
        return (picture[..., 2] - picture[..., 0] > 60).mean()

    def grey(picture):
        inner = picture[120:480, 120:480]
        flat = np.ptp(inner, axis=-1) < 8
        return (flat & (inner[..., 0] > 100) & (inner[..., 0] < 250)).mean()

    assert blue(with_data) > 0.003
    assert blue(without) > 0.003
    assert grey(with_data) > 10 * grey(without)


def test_samples_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got shape \(3, 5\)"):
        plots.plot_samples(np.zeros((3, 5)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_have_a_panel_for_every_score(tmp_path):
    records = [
        {
            "step": step,
            "seconds": 0.1 * step,
            "loss_generator": None if step == 0 else 1.0,
            "loss_discriminator": None if step == 0 else 0.5,
            "bits_up": 10**9 * step,
            "bits_down": None,
            "consensus_distance": 0.1 * step,
            **({"frechet_distance": 100.0 / (1 + step)} if step % 10 == 0 else {}),
        }
        for step in range(0, 50, 5)
    ]
    plots.plot_curves(records, tmp_path / "four.png", title="a")
    plots.plot_curves(
        [{**r, "modes_covered": 3} for r in records], tmp_path / "five.png"
    )
    plots.plot_curves(records[:1], tmp_path / "start.png")
    sizes = {}
    for name in ("four", "five", "start"):
        picture = PIL.Image.open(tmp_path / f"{name}.png").convert("RGB")
        sizes[name] = picture.size
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    assert sizes["four"] == sizes["five"]  # two rows of three panels
    middle = np.s_[345:, 460:880, :3]  # the second panel of the second row
    four, five = (
        np.asarray(PIL.Image.open(tmp_path / f"{name}.png"))[middle]
        for name in ("four", "five")
    )
    assert (four < 255).sum() == 0
    assert (five < 255).sum() > 500
