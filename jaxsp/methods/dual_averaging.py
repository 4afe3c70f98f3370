"""Optimistic dual averaging of quantized gradients: QODA."""

import optax

from jaxsp import comm, transforms

__all__ = ["qoda"]


def qoda(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""QODA: optimistic dual averaging, one quantized message, an adaptive rate.

    $$X_{1/2} = X - \gamma_k\, g_{k-1}, \qquad v_m = Q(F_m(X_{1/2})), \qquad
    g_k = \frac1M \sum_m v_m^k, \qquad X = X_0 - \gamma_{k+1} \sum_{i \le k} g_i, \qquad
    \gamma_{k+1} = \frac{\eta}{\sqrt{1 + \frac{1}{M^2} \sum_{i \le k} \sum_m
    |v_m^i - v_m^{i-1}|^2}}.$$

    The parameters are $X_{1/2}$, where the next gradient is taken; all workers share
    $X$, `eval_params(state, params)`. The rate follows from the messages: no constant
    of the game is needed, and $\eta = 1$ is the paper's. One oracle call an iteration;
    `operator_fn` is ignored. For monotone games the mean of the half points converges
    as $1/\sqrt k$ with noise, and as $1/k$ where the noise vanishes with the gradient,
    which that of quantized messages of unlike workers does not: the rate then goes to
    zero. Beside the message a scalar is averaged, 4 bytes.

    Layers have their own scales and numbers of bits, as in the paper, with
    `jaxsp.compressors.per_leaf` and `allocate_bits`, which chooses them from gradients.
    To choose anew, make the method over the new channel and go on with the state. The
    paper adapts the levels themselves too; here they are equidistant.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes, with
        unbiased compressors.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a channel that is not unbiased.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(4)
      >>> codes = jaxsp.channel(
      ...   workers.axis_name, jaxsp.compressors.quantize(4), key=jax.random.key(0)
      ... )
      >>> tx = jaxsp.methods.qoda(1.0, codes)
      >>> F = jaxsp.saddle(lambda x, y: x @ y)
      >>> def step(z, state):
      ...   updates, state = tx.update(F(z), state, z)
      ...   return optax.apply_updates(z, updates), state
      >>> z = workers.replicate(jaxsp.MinMax(jnp.ones(9), jnp.ones(9)))
      >>> state, step = workers.map(tx.init)(z), jax.jit(workers.map(step))
      >>> for _ in range(300):
      ...   z, state = jax.block_until_ready(step(z, state))
      >>> X = jaxsp.methods.eval_params(state, z)
      >>> bool(abs(X.x).max() < 1e-3)
      True

      Bits by layer: of a player whose gradients are small, fewer.

      >>> F = jaxsp.saddle(lambda x, y: x @ x + 1e-3 * y @ y)
      >>> z = workers.replicate(jaxsp.MinMax(jnp.arange(90.0), jnp.arange(200.0)))
      >>> bits = jaxsp.compressors.allocate_bits(workers.map(F)(z), 4)
      >>> print(bits)
      MinMax(x=quantize(8), y=quantize(2))
      >>> layers = jaxsp.compressors.per_leaf(bits)
      >>> codes = jaxsp.channel(workers.axis_name, layers, key=jax.random.key(0))
      >>> tx = jaxsp.methods.qoda(1.0, codes)

    References:
      Nguyen, Markov, Wu, Ramezani-Kebrya, Antonakopoulos, Alistarh, Cevher, Layer-wise
      Quantization for Quantized Optimistic Dual Averaging, 2025, arXiv 2505.14371.
    """
    return transforms.optimistic_dual_averaging(learning_rate, channel)
