"""The protocol: what a compressor is, and what is asked of one."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Compressor:
    r"""How an array is compressed: pure functions, no state.

    Attributes:
      name: what it is called in tables.
      compress: `compress(key, x) -> payload`, of a floating array of any shape, one
        number at least; the payload is a pytree of the arrays that travel.
      decompress: `decompress(payload, like) -> array` of the shape and dtype of `like`,
        an array or a `jax.ShapeDtypeStruct`; it needs nothing but the payload.
      q: `q(d)` if it is unbiased, $\mathbb E|Q(v)|^2 \le q |v|^2$ in dimension $d$,
        else None.
      delta: `delta(d)` if it is contractive,
        $\mathbb E|C(v)-v|^2 \le (1-1/\delta)|v|^2$, else None.
      per_leaf: whether transformations compress each leaf of a model by itself. If not,
        they compress the packed model, one vector for each dtype: one scale, and one
        budget of `k` numbers, for all leaves.
      shared_key: whether all workers must compress with the same key, because their
        payloads fit together. If not, each needs a key of its own.
      worker: `worker(index, count) -> Compressor` if what is sent depends on who sends
        it, else None; see `for_worker`.
      warm: `warm(key, x, previous) -> payload`, if the payload for the last vector
        helps with this one, else None. A payload of zeros is no help, and no harm.
      total: `total(payloads, weights, like) -> array`, $\sum_m w_m c_m$ of what the
        payloads of all workers stand for, stacked along a first axis in the order of
        the workers, if that is quicker than one after another, else None. It must
        add up in one order everywhere, or workers that must agree would not: no
        scatter whose places repeat, for which GPUs take any order.
      layers: the tree of compressors that `jaxsp.compressors.per_leaf` was given for
        the layers of a model, else None. If there is one, `compress` and `bits` take a
        whole model, and the payload is a list, of each leaf one.
    """

    name: str
    compress: Callable[[jax.Array, jax.Array], Any]
    decompress: Callable[[Any, Any], jax.Array]
    q: Callable[[int], float] | None = None
    delta: Callable[[int], float] | None = None
    per_leaf: bool = False
    shared_key: bool = False
    worker: Callable[[Any, int], "Compressor"] | None = None
    warm: Callable[[jax.Array, jax.Array, Any], Any] | None = None
    total: Callable[[Any, jax.Array, Any], jax.Array] | None = None
    layers: Any = None

    def __post_init__(self):
        _arguments.check_instance("name", self.name, str, "a text")
        for field in (
            *("compress", "decompress", "q", "delta", "worker", "warm", "total"),
        ):
            value = getattr(self, field)
            if value is not None or field in ("compress", "decompress"):
                _arguments.check_callable(field, value)
        _arguments.check_flag("per_leaf", self.per_leaf)
        _arguments.check_flag("shared_key", self.shared_key)
        for layer in jax.tree.leaves(self.layers):
            check_compressor("layers", layer)

    def __repr__(self) -> str:
        return self.name

    def bits(self, like: Any) -> int:
        """The size of the payload for an array like this, exactly, as it travels."""
        payload = jax.eval_shape(
            lambda x: self.compress(jax.random.key(0), x),
            jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like),
        )
        return sum(8 * a.dtype.itemsize * a.size for a in jax.tree.leaves(payload))

    def for_worker(self, index: jax.Array | int, count: int) -> "Compressor":
        """What worker `index` of `count` compresses with: itself, but for `perm_k`.

        Args:
          index: the number of the worker, which may be traced, as
            `jaxsp.comm.worker_index(axis_name)` is.
          count: the number of workers, a Python integer.
        """
        if self.worker is None:
            return self
        return dataclasses.replace(self.worker(index, count), per_leaf=self.per_leaf)

    def for_leaves(self, tree: Any) -> list["Compressor"]:
        """What each leaf of a model is compressed with, in their order.

        A branch that is empty, as `optax.masked` and `optax.partition` make those that
        they hide, may have compressors or none.

        Args:
          tree: a pytree, of which the leaves may be anything.

        Raises:
          ValueError: if the `layers` do not fit the model.
        """
        layers = dict(jax.tree_util.tree_leaves_with_path(self.layers))
        if self.layers is None:
            layers = {(): self}
        found, used = [], set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_empty):
            starts = (path[:length] for length in range(len(path) + 1))
            start = next((p for p in starts if p in layers), None)
            if _empty(leaf):
                used |= {p for p in layers if p[: len(path)] == path} | {start}
                continue
            if start is None:
                raise ValueError(
                    f"compressor must have one compressor for every leaf, got {self}, "
                    f"which has none for {jax.tree_util.keystr(path)}: write a tree of "
                    "compressors like that of the parameters, or its first branches, "
                    "such as per_leaf(MinMax(quantize(4), quantize(8)))."
                )
            found.append(layers[start])
            used.add(start)
        for path in layers:
            if path not in used:
                raise ValueError(
                    "compressor must have compressors for the leaves alone, got "
                    f"{self}, of which {jax.tree_util.keystr(path)} is no layer of "
                    f"{_arguments.shown(jax.tree.structure(tree))}: leave it out."
                )
        return found


def by_eights(total: Callable[[Any, jax.Array, Any], jax.Array]):
    """A `total` of any number of payloads, made of one for a few.

    A program in which eight are added up at once reads and writes the sum an eighth as
    often as one that adds them one by one, and is no longer for more payloads.
    """

    def of_all(payloads, weights, like):
        def some(start, stop):
            part = jax.tree.map(lambda x: x[start:stop], payloads)
            return total(part, weights[start:stop], like)

        count = len(weights)
        rest = count % 8
        if count <= 8:
            return some(0, count)

        def add(sums, group):
            eight, their_weights = group
            return sums + total(eight, their_weights, like), None

        groups = jax.tree.map(
            lambda x: x[rest:].reshape(-1, 8, *x.shape[1:]), (payloads, weights)
        )
        start = some(0, rest) if rest else jnp.zeros(like.shape, like.dtype)
        return jax.lax.scan(add, start, groups)[0]

    return of_all


def check_compressor(name: str, compressor: Any) -> None:
    """Accept a compressor."""
    if not isinstance(compressor, Compressor):
        raise ValueError(
            f"{name} must come from jaxsp.compressors, such as "
            f"jaxsp.compressors.natural(), got {_arguments.shown(compressor)}."
        )


def _empty(branch):
    """Whether there are no leaves, as where optax hides some parameters."""
    return not jax.tree.leaves(branch)


def check_fraction(fraction: Any) -> float:
    """A number in (0, 1]."""
    required = "above 0 and at most 1, the share of the numbers that is sent, as 0.01"
    _arguments.check_number(
        "fraction", fraction, lambda f: 0 < f <= 1, required, traced=False
    )
    return float(fraction)


def number_kept(fraction: float, d: int) -> int:
    """How many of `d` numbers a fraction keeps: rounded, at least one."""
    return max(1, round(fraction * d))


def one_by_one(
    places: jax.Array, values: jax.Array, like: Any, in_order: bool = False
) -> jax.Array:
    """Numbers added up at their places, zero elsewhere; row after row, in one order.

    Args:
      places: `[M, k]`, different ones in a row.
      values: the numbers, of the same shape.
      like: an array of the shape and dtype of the sum.
      in_order: whether the places of every row increase.
    """

    def add(sums, row):
        at, numbers = row
        order = {"unique_indices": True, "indices_are_sorted": in_order}
        return sums.at[at].add(numbers, **order), None

    sums = jnp.zeros(math.prod(like.shape), like.dtype)
    rows = places.astype(jnp.uint32), values
    return jax.lax.scan(add, sums, rows)[0].reshape(like.shape)


@functools.lru_cache(maxsize=256)
def check_round_trip(
    compressor: Compressor, shape: tuple[int, ...], dtype: Any
) -> None:
    """Refuse a compressor that does not give back what it is given, by shapes alone."""
    like = jax.ShapeDtypeStruct(shape, dtype)

    def round_trip(x):
        return compressor.decompress(compressor.compress(jax.random.key(0), x), like)

    try:
        found = jax.eval_shape(round_trip, like)
    except TypeError as error:
        raise ValueError(
            f"the compressor {compressor} must have compress(key, x) and "
            f"decompress(payload, like), which failed: {str(error).splitlines()[0]}"
        ) from error
    # A weak type is the same type.
    if getattr(found, "shape", None) != shape or found.dtype != dtype:
        raise ValueError(
            f"the compressor {compressor} must decompress to an array like the one "
            f"given, {np.dtype(dtype).name} of shape {shape}, got "
            f"{_arguments.shown(found)}."
        )


def check_input(key: Any, x: Any, most: float = 2**31 - 1) -> jax.Array:
    """An array that can be compressed, with a key."""
    _arguments.check_key("key", key)
    x = jnp.asarray(x)
    if x.dtype.name not in _FLOATS:
        raise ValueError(
            f"x must be an array of one of {', '.join(_FLOATS)}, got {x.dtype}: "
            "convert it, or leave it out with optax.masked."
        )
    if x.size == 0:
        raise ValueError(
            f"x must have at least one number, got shape {x.shape}: leave empty arrays "
            "out with optax.masked."
        )
    if x.size > most:  # places are numbers of 32 bits
        raise ValueError(
            f"x must have at most {most} numbers for this compressor, got {x.size}: "
            "write jaxsp.compressors.blockwise(..., 2**20), or per_leaf(...)."
        )
    return x


def compute_dtype(dtype: Any) -> np.dtype:
    """The type to compute in: float32, or float64 for itself."""
    return np.dtype(np.promote_types(dtype, np.float32))


def nan_unless_finite(values: jax.Array, x: jax.Array) -> jax.Array:
    """The values sent of `x`, or NaN if there is anything in it that is not finite."""
    finite = jnp.isfinite(jnp.max(jnp.abs(x)))
    return jnp.where(finite, values, jnp.full_like(values, jnp.nan))
