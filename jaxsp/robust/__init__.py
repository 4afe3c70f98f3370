r"""Adversarial training of transformers on many workers, beyond GANs.

$$\min_\theta \max_{\|\delta_i\| \le \epsilon} \frac1M \sum_m
\mathbb E_{i \sim m}\, \ell(\theta, \delta_i; i)$$

for the masked-language-model loss at the embedding of a text plus a perturbation: the
experiment of MASHA (arXiv 2110.03313). `adversary` is the game and its inner maximum,
for any loss; `encoder` the transformer; `masked_lm` its losses; `text` the data;
`training` the loop.

Needs `pip install "jaxsp[robust]"`; the rest of jaxsp never imports it.
"""

from jaxsp.robust import adversary, encoder, masked_lm, text, training
from jaxsp.robust.adversary import Attack, inner_maximum

__all__ = [
    "Attack",
    "adversary",
    "encoder",
    "inner_maximum",
    "masked_lm",
    "text",
    "training",
]
