"""Adam with the past step taken back: OAdam."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import _arguments


class OptimisticAdamState(NamedTuple):
    """What `optimistic_adam` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      mu: the first moment $m$, of float32 where the parameters are narrower.
      nu: the second moment $v$, likewise.
    """

    count: chex.Array
    mu: optax.Updates
    nu: optax.Updates


def optimistic_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""OAdam in the form of Daskalakis et al.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
    v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \qquad
    a_t = \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t},$$
    $$p \leftarrow p - 2 a_t \frac{m_t}{\sqrt{v_t} + \epsilon}
      + a_t \frac{m_{t-1}}{\sqrt{v_{t-1}} + \epsilon},$$

    where the last term is 0 in the first step. Three public variants differ; this is
    the authors' own: both terms have the present $a_t$, and $\epsilon$ is added before
    the bias correction. `optax.optimistic_adam_v2(nesterov=False)` takes back the
    bias-corrected past step and moves once, not twice, in the first.

    Args:
      learning_rate: $\eta$, a number or a schedule.
      b1: $\beta_1$, decay of the first moment.
      b2: $\beta_2$, decay of the second moment.
      eps: $\epsilon$, in the units of the gradient.

    Returns:
      The transformation.

    Raises:
      ValueError: if `learning_rate` is not a schedule or a number above zero, or `b1`,
        `b2` or `eps` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> tx = jaxsp.transforms.optimistic_adam(0.1)
      >>> updates, state = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
      >>> print(updates.round(3))
      [-0.2]

    References:
      Daskalakis, Ilyas, Syrgkanis, Zeng, Training GANs with Optimism, 2018,
      arXiv 1711.00141.
    """
    _arguments.check_learning_rate(learning_rate)
    _arguments.check_decay("b1", b1)
    _arguments.check_decay("b2", b2)
    _arguments.check_nonnegative("eps", eps)

    def widened(tree):  # where float16 holds neither a small square nor epsilon
        def wide(x):
            dtype = jnp.result_type(x)
            inexact = jnp.issubdtype(dtype, jnp.inexact)
            return np.promote_types(dtype, np.float32) if inexact else np.float32

        return jax.tree.map(lambda x: jnp.asarray(x, wide(x)), tree)

    def init_fn(params):
        zeros = widened(optax.tree.zeros_like(params))
        return OptimisticAdamState(
            count=jnp.zeros([], jnp.int32), mu=zeros, nu=jax.tree.map(jnp.abs, zeros)
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        t = count.astype(jnp.result_type(float))
        a = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        wide = widened(updates)
        mu = optax.tree.update_moment(wide, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(wide, state.nu, b2, 2)

        def step(g, m, v, m_past, v_past):
            present = m / (jnp.sqrt(v) + eps)
            past = m_past / (jnp.sqrt(v_past) + eps)
            past = jnp.where(state.count == 0, jnp.zeros_like(past), past)
            return (-2 * a * present + a * past).astype(jnp.result_type(g))

        updates = jax.tree.map(step, updates, mu, nu, state.mu, state.nu)
        return updates, OptimisticAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
