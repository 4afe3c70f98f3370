r"""Compressors: what a vector is turned into before it travels, and back.

A compressor is a pure function of a key and an array. Its payload is the arrays that
travel, in their physical form: codes packed into bytes, indices in the smallest integer
type that holds them, and no random index that the receiver can redraw from the seed.
It states what it does to a vector $v$ of dimension $d$, if it is unbiased by

$$\mathbb E\, Q(v) = v, \qquad \mathbb E\,|Q(v)|^2 \le q(d)\,|v|^2,$$

and if it is contractive by

$$\mathbb E\,|C(v) - v|^2 \le (1 - 1/\delta(d))\,|v|^2.$$

| compressor | bits a number (float32) | $q(d)$ | $\delta(d)$ |
| --- | --- | --- | --- |
| `identity()` | 32 | 1 | 1 |
| `top_k(fraction)` | 64 fraction (48, 40 for $d$ up to $2^{16}$, $2^8$) | | $d/k$ |
| `rand_k(fraction)` | 32 fraction | $d/k$ | |
| `perm_k()`, $M$ workers | $32/M$ | $M$ | |
| `natural()` | 9 | 9/8 | |
| `dithering(s)` | $\lceil\log_2(2s+1)\rceil$ | $1+\min(d/s^2, \sqrt d/s)$ | |
| `ternary()` | 2 | $(1+\sqrt d)/2$ | |
| `quantize(b)`, $L = 2^{b-1}-1$ | $b$ | $(1+\sqrt{1+(d-1)/L^2})/2$ | |
| `sign()` | 1 | | $d$ |
| `low_rank(r)` | $32 r (1/n + 1/m)$ for $n \times m$ | | $\sqrt d/r$ |
| `scaled(Q)` | as $Q$ | | $q$ of $Q$ |

`per_leaf` applies one to each leaf of a model by itself, or to each layer another, of
as many bits as `allocate_bits` chooses for it under a budget.

An unbiased compressor is in general no contraction: on a Gaussian vector of a thousand
numbers `ternary()` has a relative error above 1, and a method with error feedback needs
`scaled(ternary())` instead. Constants hold for the arithmetic of real numbers. Rounding
to the array's own type comes on top, which only half precision shows; and where the
processor takes numbers below the smallest normal one (1e-38 in float32) for zero, as
XLA has it do, a vector of nothing larger than $10^{-38} d$ may be compressed to zero.
An infinity or NaN never becomes a finite vector.
"""

from jaxsp.compressors.allocation import allocate_bits
from jaxsp.compressors.blockwise import blockwise, contractive, scaled
from jaxsp.compressors.compressor import Compressor
from jaxsp.compressors.identity import identity
from jaxsp.compressors.layers import per_leaf
from jaxsp.compressors.low_rank import low_rank
from jaxsp.compressors.natural import natural
from jaxsp.compressors.perm_k import perm_k
from jaxsp.compressors.rand_k import rand_k
from jaxsp.compressors.sign import sign
from jaxsp.compressors.stochastic import dithering, quantize, ternary
from jaxsp.compressors.top_k import top_k

__all__ = [
    "Compressor",
    "allocate_bits",
    "blockwise",
    "contractive",
    "dithering",
    "identity",
    "low_rank",
    "natural",
    "per_leaf",
    "perm_k",
    "quantize",
    "rand_k",
    "scaled",
    "sign",
    "ternary",
    "top_k",
]
