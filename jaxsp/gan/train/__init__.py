"""Training a GAN by settings alone: `python -m jaxsp.gan.train`, or from Python.

    from jaxsp.gan import train

    result = train.run(train.Config(dataset="digits", method="dp_oadam", steps=500))

`callback` sees each record, a dict of numbers: for TensorBoard

    def log(record):
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, record["step"])

    train.run(config, callback=log)

and for W&B `callback=lambda r: wandb.log(r, step=r["step"])`. What returns something
true ends the run.

With networks, losses and data of one's own it is `jaxsp.gan.training.train`.
"""

from jaxsp.gan.train.config import Config
from jaxsp.gan.train.experiment import read, run

__all__ = ["Config", "read", "run"]
