"""Checks of arguments that several factories share, done when they are built.

Each refuses with one line that names the argument, what it must be and what came.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

ANY_ARRAY = jnp.number, jnp.bool_, jax.dtypes.extended  # keys are of extended types
_LONGEST = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """A value in one line of a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def refuse(name: str, required: str, value: Any) -> NoReturn:
    """Say what an argument must be, and what came."""
    raise ValueError(f"{name} must be {required}, got {shown(value)}.")


# ------------------------------------------------------------------ numbers


def check_learning_rate(learning_rate: Any, name: str = "learning_rate") -> None:
    """Accept a schedule, a traced value, or a finite number above zero."""
    if not callable(learning_rate):
        required = "finite and above 0, or a schedule (a function of the step)"
        check_number(name, learning_rate, lambda x: x > 0, required)


def check_positive(name: str, value: Any) -> None:
    """Accept a traced value, or a finite number above zero."""
    check_number(name, value, lambda x: x > 0, "finite and above 0")


def check_nonnegative(name: str, value: Any) -> None:
    """Accept a traced value, or a finite number of at least zero."""
    check_number(name, value, lambda x: x >= 0, "finite and at least 0")


def check_decay(name: str, value: Any) -> None:
    """Accept a traced value, or a number in [0, 1)."""
    check_number(name, value, lambda x: 0 <= x < 1, "at least 0 and below 1")


def check_probability(name: str, value: Any) -> None:
    """Accept a traced value, or a number in (0, 1]."""
    check_number(name, value, lambda x: 0 < x <= 1, "above 0 and at most 1")


def check_number(
    name: str,
    value: Any,
    valid: Callable[[Any], Any],
    required: str,
    traced: bool = True,
) -> None:
    """Accept a finite real number that is valid, and a traced value unless told so."""
    if traced and isinstance(value, Tracer):
        return
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        real = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.number)
    try:
        number = float(value) if real else math.nan
    except (OverflowError, TypeError):  # too large, or complex
        number = math.inf
    if not (math.isfinite(number) and valid(number)):
        refuse(name, required, value)


def check_count(
    name: str, value: Any, minimum: int = 1, maximum: float = 2**31 - 1
) -> int:
    """A Python integer in a range, for what must be known when tracing."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} must be a Python integer, got the array {shown(value)}: with "
            f'optax.inject_hyperparams pass static_args=("{name}",).'
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        refuse(name, "an integer", value)
    if value < minimum:
        refuse(name, f"at least {minimum}", value)
    if value > maximum:
        refuse(name, f"at most {maximum}", value)
    return int(value)


def check_every(name: str, value: Any) -> Any:
    """A number of updates as `check_count` takes it, or a traced one."""
    array = isinstance(value, jax.Array) and value.ndim == 0
    if array and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    return check_count(name, value)


def check_workers(name: str, value: Any) -> int:
    """A number of workers, of which tables are made."""
    return check_count(name, value, maximum=2**20)


def check_unrolled(name: str, value: Any) -> int:
    """A number of steps that are written out, each of which is compiled."""
    return check_count(name, value, maximum=10_000)


def check_seed(seed: Any) -> int:
    """An integer of at least zero, as large as you like."""
    return check_count("seed", seed, minimum=0, maximum=math.inf)


# ------------------------------------------------------------------ other kinds


def check_array(
    name: str, value: Any, ndim: int | None = None, integer: bool = False
) -> np.ndarray:
    """Finite real numbers, or integers, known on the host, as a NumPy array."""
    what = "integers" if integer else "finite real numbers"
    required = f"an array of {what}" + (f" in {ndim} dimensions" if ndim else "")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # traced, a key, or rows of different lengths
        refuse(name, required, value)
    if array.dtype.kind not in ("iu" if integer else "biuf" if array.ndim else "iuf"):
        refuse(name, required, value)
    if ndim not in (None, array.ndim):
        refuse(name, f"{required}, not of shape {array.shape}", value)
    if not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0].tolist()
        refuse(f"{name}{at or ''}", "finite", array[tuple(at)].item())
    return array


def check_flag(name: str, value: Any) -> None:
    """Accept True or False, and nothing that only counts as such."""
    if not isinstance(value, bool | np.bool):
        refuse(name, "True or False", value)


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Accept one of some words, or None where that is one."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        words = ["None" if c is None else f'"{c}"' for c in choices]
        refuse(name, f"{', '.join(words[:-1])} or {words[-1]}", value)


def check_callable(name: str, value: Any, what: str = "a function") -> None:
    """Accept what can be called."""
    if not callable(value):
        refuse(name, what, value)


def check_instance(name: str, value: Any, kind: Any, what: str) -> None:
    """Accept an instance of a class."""
    if not isinstance(value, kind):
        refuse(name, what, value)


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
            f"{name} must be a typed key such as jax.random.key(0), got {shown(key)}."
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
            f"Workers(8).axis_name, got {shown(axis_name)}."
        )


def check_arrays(
    name: str, tree: Any, kinds: Sequence[Any] = (jnp.number,)
) -> list[tuple[str, Any]]:
    """The leaves of a tree, all arrays of some kinds, and the path to each."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    for path, leaf in found:
        try:
            array = jnp.asarray(leaf) if isinstance(leaf, numbers.Number) else leaf
            numeric = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
        except (AttributeError, TypeError, OverflowError):
            numeric = False
        if not numeric:
            refuse(f"{name}{path}", "a number or an array of numbers", leaf)
    return found


def check_floating(params: Any) -> None:
    """Refuse parameters that cannot be averaged."""
    for path, leaf in check_arrays("params", params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "params must be floating point to be averaged over workers, but "
                f"params{path} is {jnp.result_type(leaf)}: "
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
            f"function of the point alone, got {shown(operator_fn)}."
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
            f"{shown(value)}{hint}."
        )
    if isinstance(getattr(value.update, "__self__", None), optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(value.init, value.update)
    return optax.with_extra_args_support(value)


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
