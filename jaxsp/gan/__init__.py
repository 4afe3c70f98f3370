"""Training GANs on many workers: models, losses, data, scores and the training loop.

Needs `pip install "jaxsp[gan]"`; the rest of jaxsp never imports it.
"""

from jaxsp.gan import data, partition

__all__ = ["data", "partition"]
