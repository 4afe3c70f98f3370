"""Training GANs on many workers: models, losses, data, scores and the training loop.

Needs `pip install "jaxsp[gan]"`; the rest of jaxsp never imports it.
"""

from jaxsp.gan import data, fl_gan, losses, md_gan, models, scores, step, training

__all__ = [
    "data",
    "fl_gan",
    "losses",
    "md_gan",
    "models",
    "scores",
    "step",
    "training",
]
