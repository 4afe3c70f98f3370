"""Train a GAN on several workers that each hold a part of the data.

The flags are those of `python -m jaxsp.gan.train`, whose --help has examples; what they
stand for is in jaxsp/gan/train. To train with more than flags can say, copy this file:

    run(config, callback=...)   # sees every record, and ends the run by returning True

or see README.md for networks, losses and data of your own.
"""

from jaxsp.gan import command
from jaxsp.gan.train.__main__ import PROGRAM, Config, main

if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
