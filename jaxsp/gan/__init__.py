"""Training GANs on many workers: models, losses, data, scores and the training loop.

Needs `pip install "jaxsp[gan]"`; the rest of jaxsp never imports it.
"""

from jaxsp.gan import (
    checkpoint,
    data,
    fl_gan,
    losses,
    md_gan,
    models,
    partition,
    plan,
    program,
    recorder,
    report,
    scores,
    step,
    train,
)
from jaxsp.gan.data import preparation

__all__ = [
    "checkpoint",
    "data",
    "fl_gan",
    "losses",
    "md_gan",
    "models",
    "partition",
    "plan",
    "prepare",
    "program",
    "recorder",
    "report",
    "scores",
    "step",
    "train",
]
