"""Workers estimate the mean of their gradients by gossip: gradient tracking."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import _arguments


class GradientTrackingState(NamedTuple):
    r"""What `gradient_tracking` keeps.

    Attributes:
      estimate: $S$, of the mean gradient; of float32 where the parameters are narrower.
      gradient: $G$, this worker's last gradient, likewise.
      optimizer: the state of the optimizer.
      combine: the state of what mixes.
    """

    estimate: optax.Updates
    gradient: optax.Updates
    optimizer: optax.OptState
    combine: optax.OptState


def gradient_tracking(
    optimizer: optax.GradientTransformation, combine: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Give an optimizer an estimate of the workers' mean gradient, kept by gossip.

    With $G$ the worker's gradient and $\mathrm{opt}$ the update that `optimizer` makes,

    $$S \leftarrow W (S + G - G_{\mathrm{prev}}), \qquad
    Z \leftarrow W Z + \mathrm{opt}(S), \qquad G_{\mathrm{prev}} \leftarrow G,$$

    from $S = G_{\mathrm{prev}} = 0$. The mean of all $S$ is always that of the last
    gradients, and each $S$ comes close to it where the points settle. With gossip of
    the points alone every worker pulls to its own solution, and unlike workers end off
    the common one by the order of the step; here they end at it.

    An optimizer with a second oracle call is given $F_m - G + S$ for `operator_fn`,
    which stands for the mean operator as $S$ does for its value.

    $S$ travels with the points, in the same messages, of twice the size. It is kept and
    sent in float32 at least: what rounding takes away from the sum of all $S$ never
    comes back. Beside parameters of half precision it takes messages of its own.

    Args:
      optimizer: any optax transformation.
      combine: what mixes a pair of trees, the points and $S$: `jaxsp.gossip(...)`. With
        `order="combine_then_adapt"`, $S \leftarrow W S + G - G_{\mathrm{prev}}$: what
        travels is known when an update begins, and may do so while $G$ is computed.

    Returns:
      The transformation; `update` needs `params`, and what `optimizer` needs.

    Raises:
      ValueError: if an argument is not a transformation, `update` is called without
        `params`, or a leaf of the parameters is not floating point.

    Example:
      Four workers, each of which pulls to a number of its own, meet in the middle:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(4)
      >>> gossip = jaxsp.gossip(jaxsp.topology.ring(4), axis_name=workers.axis_name)
      >>> tx = jaxsp.transforms.gradient_tracking(optax.sgd(0.3), gossip)
      >>> def step(z, state, target):
      ...   updates, state = tx.update(z - target, state, z)
      ...   return optax.apply_updates(z, updates), state
      >>> z, targets = jnp.zeros(4), jnp.array([0.0, 3.0, 6.0, 9.0])
      >>> state, step = workers.map(tx.init)(z), jax.jit(workers.map(step))
      >>> for _ in range(100):
      ...   z, state = jax.block_until_ready(step(z, state, targets))
      >>> print(z.round(3))
      [4.5 4.5 4.5 4.5]

    References:
      Di Lorenzo, Scutari, NEXT: In-Network Nonconvex Optimization, 2016,
      arXiv 1602.00591.
      Nedić, Olshevsky, Shi, Achieving Geometric Convergence for Distributed
      Optimization over Time-Varying Graphs, 2017, arXiv 1607.03218 (DIGing).
    """
    optimizer = _arguments.check_transformation("optimizer", optimizer)
    combine = _arguments.check_transformation("combine", combine)

    def init_fn(params):
        _arguments.check_floating(params)
        zeros = _wide(optax.tree.zeros_like(params))
        return GradientTrackingState(
            estimate=zeros,
            gradient=jax.tree.map(jnp.zeros_like, zeros),
            optimizer=optimizer.init(params),
            combine=combine.init((params, zeros)),
        )

    def update_fn(updates, state, params=None, *, operator_fn=None, **extra_args):
        params = _arguments.require_params(params)
        gradient = _wide(updates)
        difference = optax.tree.sub(gradient, state.gradient)
        changes: Any
        changes, combined = combine.update(  # W z − z, W (S + ΔG) − S
            (jax.tree.map(jnp.zeros_like, params), difference),
            state.combine,
            (params, state.estimate),
            **extra_args,
        )
        drift, change = changes
        estimate = optax.tree.add(state.estimate, change)

        def mean_operator(point: Any) -> Any:  # F(point) − G + S
            operator = _arguments.require_operator(operator_fn)
            field = _arguments.call_operator(operator, point)
            beyond = optax.tree.sub(_wide(field), gradient)
            return _like(optax.tree.add(beyond, estimate), field)

        if operator_fn is not None:
            extra_args["operator_fn"] = mean_operator
        step, inner = optimizer.update(
            _like(estimate, updates), state.optimizer, params, **extra_args
        )
        state = GradientTrackingState(estimate, gradient, inner, combined)
        return optax.tree.add(drift, step), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(tree: Any) -> Any:
    """Floating point numbers in float32 at least."""

    def wide(x):
        return jnp.asarray(x, np.promote_types(jnp.result_type(x), np.float32))

    return jax.tree.map(wide, tree)


def _like(tree: Any, other: Any) -> Any:
    """The numbers in the types of another tree."""
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), tree, other)
