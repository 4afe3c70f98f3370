r"""MD-GAN: one generator on a server, a discriminator on every worker.

An iteration, with $N$ workers, $k$ batches of $b$ samples and $L$ discriminator steps:

1. `server_generate`: the server draws $X^{(j)} = G_w(Z_j)$, $j = 1, \dots, k$, and
   sends two of them to each worker, $X_n^g$ and $X_n^d$ (`assignment`).
2. `worker_step`: worker $n$ draws one real batch, makes $L$ steps of its discriminator
   on that batch and $X_n^d$, and returns the error feedback
   $F_n = \partial \tilde B(X_n^g) / \partial X_n^g$ of the updated discriminator.
3. `server_update`: $\Delta w = \frac1N \sum_n \sum_{x \in X_n^g} F_n\, \partial x /
   \partial w$, the gradient of the workers' mean loss, and one step along it.
4. `swap`: once in a while the discriminators change places.

Workers hold neither the generator nor its optimizer and compute nothing for it: what
they run is compiled apart from what the server runs. Where there is a device more than
the workers use, the server has it to itself; over processes it has process 0
(`transport`).

References:
  Hardy, Le Merrer, Sericola, MD-GAN: Multi-Discriminator Generative Adversarial
  Networks for Distributed Datasets, 2019, arXiv 1811.03850.
"""

from jaxsp.gan.md_gan.method import MDGan
from jaxsp.gan.md_gan.roles import (
    Messages,
    assignment,
    derangement,
    joining,
    messages,
    server_generate,
    server_update,
    swap,
    worker_step,
)
from jaxsp.gan.md_gan.run import MDGanState

__all__ = [
    "MDGan",
    "MDGanState",
    "Messages",
    "assignment",
    "derangement",
    "joining",
    "messages",
    "server_generate",
    "server_update",
    "swap",
    "worker_step",
]
