"""How many bits each layer gets: a budget where it lessens the error most."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments
from jaxsp.compressors.stochastic import quantize

_MANY = 4_000  # partial choices, all of which are kept
_CLOSE = 1e-2  # how close to the least error the choice is with more


def allocate_bits(
    gradients: Any, bits: float, choices: Sequence[int] = range(2, 9)
) -> Any:
    r"""Choose the bits of each layer from measured gradients, under a budget.

    Of all ways to give layer $l$, of $d_l$ numbers, $b_l$ of the `choices` it finds the
    one of the least expected error of `quantize(b_l)`,

    $$\min_{b} \sum_l \sum_k \mathbb E\,|Q_{b_l}(g_l^k) - g_l^k|^2 \quad \text{with}
    \quad \sum_l d_l b_l \le B \sum_l d_l, \qquad \mathbb E\,|Q_b(v) - v|^2 =
    \Big(\frac{|v|_\infty}{L}\Big)^2 \sum_i f_i (1 - f_i),$$

    $f_i$ being the fractional part of $L|v_i|/|v|_\infty$ and $L = 2^{b-1} - 1$. It
    computes on the host, in NumPy and float64, and calls nothing of JAX's devices.

    Least error is not fastest convergence. A layer of small gradients gets few bits,
    even if it is the one that converges last: in games of two layers of unlike scale
    QODA came less far so than with the same bits for both.

    Call it now and then, as gradients change, and go on by a method made anew over the
    new channel, with the old one's state, which does not depend on the bits; a step is
    compiled for each choice. Where a process sees only its own workers' gradients, all
    must be given the same, such as those of `Workers.fetch`.

    The problem is a knapsack. Layer by layer partial choices are kept that no other
    beats in both bits and error, and that a bound by a Lagrange multiplier does not
    rule out. The choice is the best one as long as there are at most 4,000 of them, as
    for tens of layers; with more, its error is the least to a hundredth.

    Args:
      gradients: a tree like the parameters' of arrays that are stacked along a first
        axis: of the workers, as what is mapped by `Workers.map` returns it, or of
        several steps.
      bits: $B$, how many bits a number may take on average. What comes beside, a scale
        of 32 bits for each leaf and the rest of its last byte, is no part of it.
      choices: which numbers of bits a layer may have, each from 2 to 8. One that is not
        among them, given to all layers, may have less error.

    Returns:
      A tree like the parameters', with the compressor `quantize(b)` of each leaf, for
      `jaxsp.compressors.per_leaf`.

    Raises:
      ValueError: for gradients that are not such, a budget below the least of the
        choices, or choices that are no bits.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> large, small = jnp.linspace(-1.0, 1.0, 80), jnp.linspace(-0.01, 0.01, 160)
      >>> gradients = {"first": large[None], "last": small[None]}  # of one worker
      >>> chosen = compressors.allocate_bits(gradients, 4)
      >>> print(chosen)
      {'first': quantize(8), 'last': quantize(2)}
      >>> print(compressors.per_leaf(chosen).bits({"first": large, "last": small}))
      1024

    References:
      Nguyen, Markov, Wu, Ramezani-Kebrya, Antonakopoulos, Alistarh, Cevher, Layer-wise
      Quantization for Quantized Optimistic Dual Averaging, 2025, arXiv 2505.14371.
      Alimohammadi, Markov, Frantar, Alistarh, L-GreCo: Layerwise-Adaptive Gradient
      Compression for Efficient and Accurate Deep Learning, 2022, arXiv 2210.17357.
    """
    widths = _check_choices(choices)
    _arguments.check_number(
        "bits",
        bits,
        lambda b: b >= widths[0],
        f"at least {widths[0]}, the least of choices, as bits a number on average",
        traced=False,
    )
    samples = _check_gradients(gradients)
    sizes = np.array([g[0].size for g in samples])
    errors = np.array([[expected_error(g, b) for b in widths] for g in samples])
    costs = sizes[:, None] * np.array(widths)
    chosen = _least_errors(errors, costs, int(np.floor(float(bits) * sizes.sum())))
    codecs = [quantize(b) for b in widths]
    return jax.tree.unflatten(
        jax.tree.structure(gradients), [codecs[i] for i in chosen]
    )


def expected_error(vectors, bits):
    """The sum of the expected squared errors of some vectors, `[k, d]`."""
    levels, total = 2 ** (bits - 1) - 1, 0.0
    for v in vectors:
        scale = np.abs(v).max()
        if scale > 0:
            part = np.modf(np.abs(v) / scale * levels)[0]
            total += (scale / levels) ** 2 * np.sum(part * (1 - part))
    return total


def _least_errors(errors, costs, budget):
    """Which choice each layer takes: the least sum of errors within the budget.

    Args:
      errors: `[layers, choices]`.
      costs: integers `[layers, choices]`, rising along a row, of which the first ones
        keep within the budget.
      budget: what the costs may come to.
    """
    layers, rows = len(errors), np.arange(len(errors))
    # The least multiplier at which what costs too much is not chosen.
    gains = errors[:, :, None] - errors[:, None, :]  # of the second over the first
    prices = costs[:, None, :] - costs[:, :, None]
    rising = (prices > 0) & (gains > 0)
    slopes = np.unique(np.append(0.0, gains[rising] / prices[rising]))
    multipliers = np.append(slopes, 2 * slopes[-1] + 1)  # the least cost everywhere

    def relaxed(multiplier):
        return np.argmin(errors + multiplier * costs, axis=1)

    low, high = 0, len(multipliers) - 1
    while low < high:
        middle = (low + high) // 2
        if costs[rows, relaxed(multipliers[middle])].sum() <= budget:
            high = middle
        else:
            low = middle + 1
    multiplier = multipliers[low]
    best = _filled(relaxed(multiplier), errors, costs, budget)
    most = errors[rows, best].sum()

    order = np.argsort(-costs[:, 0], kind="stable")
    bounds = np.min(errors + multiplier * costs, axis=1)[order]
    rest = np.append(np.cumsum(bounds[::-1])[::-1], 0.0)  # of the layers from here on
    least = np.append(np.cumsum(costs[order, 0][::-1])[::-1], 0)
    spent, missed, steps = np.zeros(1, np.int64), np.zeros(1), []
    for i, layer in enumerate(order):
        cost = (spent[:, None] + costs[layer]).ravel()
        error = (missed[:, None] + errors[layer]).ravel()
        bound = error + rest[i + 1] - multiplier * (budget - cost)
        kept = np.flatnonzero((cost + least[i + 1] <= budget) & (bound < most))
        kept = kept[np.lexsort((error[kept], cost[kept]))]
        before = np.minimum.accumulate(np.append(np.inf, error[kept]))[:-1]
        kept = kept[error[kept] < before]
        if len(kept) > _MANY:  # half of what may be lost by each
            kept = kept[bound[kept] < (1 - _CLOSE / 2) * most]
            alike = np.floor(error[kept] / (_CLOSE / 2 * most / layers))
            kept = kept[np.unique(alike, return_index=True)[1]]  # of the least cost
        spent, missed = cost[kept], error[kept]
        steps.append(kept)
    if not (missed < most).any():
        return best
    chosen, at = np.empty(layers, int), int(np.argmin(missed))
    for layer, kept in zip(order[::-1], steps[::-1], strict=True):
        at, chosen[layer] = divmod(kept[at], costs.shape[1])
    return chosen


def _filled(chosen, errors, costs, budget):
    """What is left of the budget, spent where an error falls most for its bits."""
    chosen, rows = chosen.copy(), np.arange(len(chosen))
    while True:
        left = budget - costs[rows, chosen].sum()
        price = costs - costs[rows, chosen][:, None]
        gain = errors[rows, chosen][:, None] - errors
        useful = (price > 0) & (price <= left) & (gain > 0)
        if not useful.any():
            return chosen
        rate = np.where(useful, gain / np.where(useful, price, 1), -1.0)
        layer, choice = np.unravel_index(np.argmax(rate), rate.shape)
        chosen[layer] = choice


def _check_choices(choices):
    """Bits in rising order, each once."""
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        _arguments.refuse("choices", "a list of bits, such as (2, 4, 8)", choices)
    return sorted(
        {_arguments.check_count("choices", b, minimum=2, maximum=8) for b in choices}
    )


def _check_gradients(gradients):
    """The leaves as float64 `[samples, d]`, with as many samples in each."""
    found = []
    for path, leaf in _arguments.check_arrays("gradients", gradients):
        name, array = f"gradients{path}", np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating) or not array.size:
            _arguments.refuse(name, "an array of floating point numbers", leaf)
        array = _arguments.check_array(name, array.astype(np.float64))
        count = len(found[0]) if found else (array.shape or (0,))[0]
        if array.ndim == 0 or len(array) != count:
            raise ValueError(
                "gradients must be stacked along a first axis, alike for all leaves, "
                f"but {name} has the shape {array.shape}"
                + (f" beside {count} others" if found else "")
                + ": for one gradient g write jax.tree.map(lambda x: x[None], g)."
            )
        found.append(array.reshape(count, -1))
    if not found:
        _arguments.refuse("gradients", "a tree of at least one array", gradients)
    return found
