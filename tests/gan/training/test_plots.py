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


def test_real_images_stand_above_and_columns_have_names(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
    real = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
    texts = []

    def save(figure, path):
        texts.append([text.get_text() for text in figure.texts])

    names = ("cat", "dog", "frog")
    plots.plot_samples(images, tmp_path / "a.png", real, "title", names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        plots.plot_samples(images, tmp_path / "b.png", real, "title", names)
        plots.plot_samples(images, tmp_path / "b.png")
    assert texts == [["title", *names, "real", "generated"], [""]]
    picture = np.asarray(PIL.Image.open(tmp_path / "a.png").convert("L"))
    left, top, side = 28, 20 + 16 + 10, 66
    assert picture.shape == (top + 64 + 8 + 130 + 10, left + 3 * side - 2 + 10)
    for i, image in enumerate([*real, *images]):
        row, column = divmod(i, 3)
        y, x = top + row * side + 6 * (row > 0), left + column * side
        shown = picture[y : y + 64 : 8, x : x + 64 : 8]
        np.testing.assert_array_equal(shown, image[..., 0])
    with pytest.raises(ValueError, match="reference must be 3 images"):
        plots.plot_samples(images, tmp_path / "c.png", real[:2], columns=names)
    with pytest.raises(ValueError, match=r"of shape \(8, 8, 1\)"):
        plots.plot_samples(images, tmp_path / "c.png", real[:, :4])


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


RECORDS = [
    {
        "step": step,
        "seconds": 0.1 * step**2,
        "loss_generator": None if step == 0 else 1.0,
        "loss_discriminator": None if step == 0 else 0.5,
        "bits_up": 10**9 * step,
        "bits_down": None,
        "consensus_distance": 0.1 * step,
        "consensus_relative": 0.01 * step,
        **({"d_real": 0.6, "d_fake": 0.4, "frechet_distance": 9.0} if step < 9 else {}),
    }
    for step in range(0, 20, 4)
]


def drawn(monkeypatch, *arguments):
    """The panels of `plot_curves` by their titles."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.plot_curves(*arguments)
    return {axes.get_title(): axes for axes in figures[0].axes}


def lines(axes):
    """What the legend says, or else what the axis does, of each curve."""
    names = axes.get_legend_handles_labels()[1] or [axes.get_ylabel()]
    curves = [np.array(line.get_data()).tolist() for line in axes.get_lines()]
    return dict(zip(names, curves, strict=True))


def test_curves_have_a_panel_for_every_quantity(monkeypatch):
    records = [{**r, "modes_covered": 3} for r in RECORDS]
    panels = drawn(monkeypatch, records, "a.png", "a", {"modes_covered": 8.0})
    loss, said, distance, modes, traffic, speed, apart = panels.values()
    assert list(lines(loss)) == ["generator", "discriminator"]
    assert [y[0] for _, y in lines(said).values()] == [0.6, 0.4]
    assert said.get_ylabel() == "mean output"
    assert list(lines(distance)) == ["generated"]
    assert lines(modes)["real test data"][1] == [8.0, 8.0]
    assert lines(traffic)["sent"][1] == [500 * s for s in range(0, 5)]
    (steps, rates) = lines(speed)["steps per second"]  # not of the step that compiles
    np.testing.assert_array_equal(steps, [8, 12, 16])
    np.testing.assert_allclose(rates, [4 / 4.8, 4 / 8, 4 / 11.2])
    (steps, values) = lines(apart)["share of the parameters' norm"]
    assert steps == [4, 8, 12, 16]
    assert values == [0.04, 0.08, 0.12, 0.16]
    assert all(axes.get_ylabel() and axes.get_xlabel() for axes in panels.values())


def test_what_discriminators_say_is_a_probability_where_it_is(monkeypatch):
    said = drawn(monkeypatch, RECORDS, "a.png", "", {}, True)[
        "what the discriminators say"
    ]
    assert said.get_ylabel() == "mean probability of being real"
    assert set(lines(said)) == {"D(real)", "D(generated)", "undecided"}


def test_curves_can_be_drawn_from_the_first_line_on(tmp_path):
    plots.plot_curves(RECORDS[:1], tmp_path / "start.png", "a", {"missing": 1.0})
    plots.plot_curves([], tmp_path / "nothing.png")
    for name in ("start", "nothing"):
        picture = np.asarray(PIL.Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
