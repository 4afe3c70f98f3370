"""Training a GAN by settings alone: `python -m jaxsp.gan.train`, or from Python.

    from jaxsp.gan import train

    result = train.run(train.Config(dataset="digits", method="dp_oadam", steps=500))

With networks, losses and data of one's own it is `jaxsp.gan.training.train`.
"""

from jaxsp.gan.train.config import Config
from jaxsp.gan.train.experiment import read, run

__all__ = ["Config", "read", "run"]
