"""Updates of the step before: what travels may run beside the next gradient."""

from typing import NamedTuple

import optax


class DelayState(NamedTuple):
    """What `delay` keeps.

    Attributes:
      previous: the updates of the step before, zero at first.
    """

    previous: optax.Updates


def delay() -> optax.GradientTransformationExtraArgs:
    r"""Hand on the updates of the step before in the place of this step's.

    $$u^k \leftarrow u^{k-1}, \qquad u^{-1} = 0.$$

    Chained before a mean it makes that mean one step stale: what is compressed and sent
    in a step is known when the step begins, so that a scheduler may let it travel while
    the step's gradient is computed. The first step sends zeros, and counts them.

    >>> import jaxsp, optax
    >>> def delayed(learning_rate, channel):
    ...   return optax.chain(
    ...     jaxsp.transforms.delay(),
    ...     jaxsp.error_feedback_average(channel),
    ...     jaxsp.transforms.past_extragradient(learning_rate, look_ahead=2.0),
    ...   )

    A stale gradient costs stability. With $F(z) = L a z$, $|a| = 1$, steps
    $\eta$ are stable up to these $\eta L$, of one sign ($a = 1$, strongly monotone), of
    a rotation ($a = i$, bilinear), and between:

    | | $a = 1$ | $e^{i\pi/3}$ | $i$ |
    | --- | --- | --- | --- |
    | descent | 2 | 1 | none |
    | descent, delayed | 1 | 0.35 | none |
    | optimistic descent | 0.67 | 0.65 | 0.58 |
    | optimistic descent, delayed | 0.62 | 0.48 | none |
    | the same with `look_ahead=2` | 0.39 | 0.36 | 0.28 |

    A look ahead makes up for one step, and on rotations that is what the delay takes:
    the delayed method must look two steps ahead. Inside `extragradient` every oracle
    call counts as a step, so that the full step would be made with the gradient at the
    point that it starts from, which is plain descent: do not put it there.

    Returns:
      The transformation.

    Example:
      >>> tx = jaxsp.transforms.delay()
      >>> state = tx.init(0.0)
      >>> for u in (1.0, 2.0):
      ...   out, state = tx.update(u, state)
      ...   print(float(out))
      0.0
      1.0

    References:
      Agarwal, Duchi, Distributed Delayed Stochastic Optimization, 2011,
      arXiv 1104.5525 (delayed gradients; the look ahead of two steps is ours).
    """

    def init_fn(params):
        return DelayState(optax.tree.zeros_like(params))

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        return state.previous, DelayState(updates)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
