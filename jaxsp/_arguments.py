"""Checks of arguments that several factories share, done when they are built."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer


def check_learning_rate(learning_rate: Any) -> None:
    """Accept a schedule, a traced value, or a finite number above zero."""
    if callable(learning_rate) or isinstance(learning_rate, Tracer):
        return
    scalar = isinstance(learning_rate, numbers.Real) or (
        isinstance(learning_rate, np.ndarray | jax.Array) and learning_rate.ndim == 0
    )
    if not scalar:
        raise ValueError(
            "learning_rate must be a number or a schedule (a function of the step), "
            f"got {learning_rate!r}."
        )
    if not 0 < float(learning_rate) < math.inf:
        raise ValueError(
            f"learning_rate must be finite and above 0, got {learning_rate!r}."
        )


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """A Python integer of at least `minimum`, for what must be known when tracing."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} must be a Python integer, got the array {value}: with "
            f'optax.inject_hyperparams pass static_args=("{name}",).'
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")
    return int(value)


def check_topology(topology: Any) -> None:
    """Accept what `jaxsp.topology` makes."""
    if not hasattr(topology, "members"):  # topologies use the checks of this module
        raise ValueError(
            f"topology must come from jaxsp.topology, got {type(topology).__name__}: "
            "wrap a mixing matrix in jaxsp.topology.from_matrix, a networkx graph in "
            "jaxsp.topology.from_graph."
        )


def check_key(name: str, key: Any) -> jax.Array:
    """A typed key, as one of Threefry.

    With keys of other generators (`"rbg"`) `vmap` changes what is drawn, and what all
    workers must draw alike would differ between virtual ones. Threefry's words are the
    same however they are mapped.
    """
    if not (
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        raise ValueError(
            f"{name} must be a typed key such as jax.random.key(0), got {key!r}."
        )
    if key.shape:
        raise ValueError(
            f"{name} must be one key, got an array of keys of shape {key.shape}: write "
            f"{name}=keys[0]."
        )
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    words = jax.random.key_data(key)
    key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    for word in words[2:]:
        key = jax.random.fold_in(key, word)
    return key


def check_axis_name(axis_name: Any) -> None:
    """Accept a name, or the pair of names of blocks of workers."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "axis_name must be the name of the worker axis, such as "
            f"Workers(8).axis_name, got {axis_name!r}."
        )


def check_floating(params: Any) -> None:
    """Refuse parameters that cannot be averaged."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "params must be floating point to be averaged over workers, but "
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}: "
                "leave it out with optax.masked, or make it float32."
            )


def require_params(params: Any) -> Any:
    """Refuse an update without parameters."""
    if params is None:
        raise ValueError(
            "params are required: call update(updates, state, params), because this "
            "transformation mixes or restores the parameters themselves."
        )
    return params


def require_operator(
    operator_fn: Any, name: str = "operator_fn"
) -> Callable[[Any], Any]:
    """Refuse a two-gradient update without a way to get the second gradient."""
    if not callable(operator_fn):
        raise ValueError(
            f"{name} is required: call update(F(z), state, z, {name}=F) with a "
            f"function of the point alone, got {operator_fn!r}."
        )
    return operator_fn


def check_transformation(
    name: str, value: Any
) -> optax.GradientTransformationExtraArgs:
    """A transformation, as one that takes extra arguments."""
    if not (callable(getattr(value, "init", None)) and hasattr(value, "update")):
        hint = f": write {value.__name__}(...)" if callable(value) else ""
        raise ValueError(
            f"{name} must be an optax transformation, such as optax.adam(1e-3), got "
            f"{value!r}{hint}."
        )
    return optax.with_extra_args_support(value)


def check_decay(name: str, value: Any) -> None:
    """Accept a traced value, or a number in [0, 1)."""
    if not isinstance(value, Tracer) and not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}.")


def check_nonnegative(name: str, value: Any) -> None:
    """Accept a traced value, or a number of at least zero."""
    if not isinstance(value, Tracer) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}.")


def call_operator(operator_fn: Callable[[Any], Any], point: Any) -> Any:
    """The operator at a point, with a hint if it fails on a point with gaps."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    try:
        return operator_fn(point)
    except Exception as error:
        if any(map(masked, jax.tree.leaves(point, is_leaf=masked))):
            raise ValueError(
                "operator_fn was given a point in which optax.masked or "
                "optax.partition has hidden some parameters, and failed. All players "
                "look ahead together: write extragradient(optax.partition(...)), not "
                "optax.partition of extragradients."
            ) from error
        raise


def check_probability(name: str, value: Any) -> None:
    """Accept a traced value, or a number in (0, 1]."""
    if not isinstance(value, Tracer) and not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}.")
