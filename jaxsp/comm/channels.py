"""Channels: how a mean over the workers travels."""

import dataclasses
from typing import Any, Literal

import jax

from jaxsp import _arguments
from jaxsp.aggregators import Aggregator
from jaxsp.comm.axis import AxisName
from jaxsp.compressors import Compressor

__all__ = [
    "Channel",
    "Route",
    "as_channel",
    "channel",
    "check_contractive",
    "check_key",
    "check_mean",
    "check_unbiased",
]

Route = Literal["gather", "sharded"]


@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """How a mean over the workers travels; `jaxsp.channel` makes one.

    Attributes:
      axis_name: the worker axis.
      up: what workers send through, or None.
      down: what the server sends through, or None.
      key: a key that all workers share, or None.
      route: `"gather"`, `"sharded"`, or None for whichever moves fewer bits.
      aggregate: what takes the place of the mean, or None.
    """

    axis_name: AxisName
    up: Compressor | None = None
    down: Compressor | None = None
    key: jax.Array | None = None
    route: Route | None = None
    aggregate: Aggregator | None = None

    def __repr__(self) -> str:
        parts = [repr(self.axis_name)]
        parts += [] if self.up is None else [f"up={self.up}"]
        parts += [] if self.down is None else [f"down={self.down}"]
        parts += [] if self.route is None else [f"route={self.route!r}"]
        parts += [] if self.aggregate is None else [f"aggregate={self.aggregate}"]
        return f"channel({', '.join(parts)})"

    @property
    def plain(self) -> bool:
        """Whether it is an all-reduce of the numbers themselves."""
        return self.lossless and self.aggregate is None

    @property
    def lossless(self) -> bool:
        """Whether there is no compressor on it."""
        return self.up is None and self.down is None

    @property
    def unbiased(self) -> bool:
        """Whether its errors average out: of a mean, all compressors state a `q`."""
        of_mean = self.aggregate is None
        return of_mean and all(c is None or c.q for c in (self.up, self.down))

    @property
    def contractive(self) -> bool:
        """Whether its errors can be fed back: of a mean, all state a `delta`."""
        of_mean = self.aggregate is None or self.lossless  # or there are no errors
        return of_mean and all(c is None or c.delta for c in (self.up, self.down))

    def at(self, step: jax.Array | int) -> "Channel":
        """The channel of one step, whose compressors draw by a key of that step."""
        if self.key is None:
            return self
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, step))


def channel(
    axis_name: AxisName,
    up: Compressor | None = None,
    down: Compressor | None = None,
    *,
    key: jax.Array | None = None,
    route: Route | None = None,
    aggregate: Aggregator | None = None,
) -> Channel:
    r"""Say how a mean over the workers travels: as it is, or through compressors.

    Worker $m$ sends $c_m = C(x_m)$ up. The server takes the mean and sends it down,

    $$c = C_s\Big(\frac1M \sum_{m=1}^M c_m\Big).$$

    There is no server: the workers do its work, on one of two routes.

    * `"gather"`: every payload goes to every worker, and all form the same mean by the
      same arithmetic. A worker receives $M - 1$ payloads. The way down costs nothing,
      because all apply $C_s$ alike.
    * `"sharded"`: worker $m$ is the server of block $m$. One all-to-all takes the
      blocks' payloads to their servers, and one all-gather takes the blocks' means
      back, or what $C_s$ makes of them: $2(M-1)/M$ payloads, whatever $M$ is. The
      vector is then compressed block by block: `top_k` keeps the largest numbers of
      every block, and every block has a scale of its own.

    Without compressors the mean is one all-reduce of each dtype. Wherever a channel is
    asked for, an axis name alone means that.

    An `aggregate` takes the place of the mean,
    $c = C_s(\mathrm{agg}(c_1, \dots, c_M))$, such as a median that a few bad workers do
    not move. The vectors themselves then travel, on one of the routes even without
    compressors; `"sharded"` is for aggregates that go coordinate by coordinate, and has
    every worker, good or bad, do a server's work. All vectors are held at once where
    they are combined. Through `rand_k`, `top_k` or `ternary` most of what arrives is
    zero, and so is its median: use `quantize` or `natural`. Errors of compressors are
    not fed back through an aggregate, nor are the differences of DIANA, EF21 and MASHA
    taken: they stand on the mean of all that was sent, and methods with them refuse it.

    Args:
      axis_name: the worker axis, `Workers.axis_name`.
      up: $C$, from `jaxsp.compressors`; None compresses nothing. Workers draw
        independently of each other.
      down: $C_s$, the compressor of the server's mean; None compresses nothing.
      key: a key that all workers share, such as `jax.random.key(0)`. Compressors need
        it, and methods that draw coins.
      route: `"gather"`, `"sharded"`, or None for the one that moves fewer bits.
      aggregate: what takes the place of the mean, from `jaxsp.aggregators`; None is
        the mean.

    Returns:
      The channel. `channel.unbiased` and `channel.contractive` say what it allows.

    Raises:
      ValueError: for an argument that is none of the above, a compressor without a
        key, a route without a compressor or aggregate, or an aggregate that its route
        or `perm_k` does not allow.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> half = jaxsp.compressors.top_k(0.5)
      >>> sparse = jaxsp.channel(
      ...     workers.axis_name, half, key=jax.random.key(0), route="gather"
      ... )
      >>> sparse.unbiased, sparse.contractive
      (False, True)
      >>> tx = jaxsp.average(sparse)
      >>> u = jnp.array([[1.0, 4.0], [2.0, 0.5]])
      >>> print(workers.map(lambda u: tx.update(u, tx.init(u))[0])(u))
      [[1. 2.]
       [1. 2.]]
    """
    _arguments.check_axis_name(axis_name)
    for name, compressor in (("up", up), ("down", down)):
        if compressor is not None and not isinstance(compressor, Compressor):
            raise ValueError(
                f"{name} must come from jaxsp.compressors, such as "
                "jaxsp.compressors.top_k(0.1), or be None, got "
                f"{_arguments.shown(compressor)}."
            )
    if key is not None:
        key = _arguments.check_key("key", key)
    _arguments.check_choice("route", route, (None, "gather", "sharded"))
    if aggregate is not None:
        _check_aggregate(aggregate, up, route)
    made = Channel(axis_name, up, down, key, route, aggregate)
    if made.plain and route is not None:
        raise ValueError(
            f"route={route!r} is for payloads of compressors, and there are none: "
            "leave it out, or give up=jaxsp.compressors.identity()."
        )
    return made if made.lossless else check_key(made)


def _check_aggregate(aggregate, up, route):
    """Refuse what is none, and what its vectors cannot travel by."""
    if not isinstance(aggregate, Aggregator):
        raise ValueError(
            "aggregate must come from jaxsp.aggregators, such as "
            "jaxsp.aggregators.coordinate_median(), or be None, got "
            f"{_arguments.shown(aggregate)}."
        )
    if route == "sharded" and not aggregate.coordinatewise:
        raise ValueError(
            f'route must be "gather" for {aggregate}, which needs whole vectors, got '
            '"sharded": leave it out.'
        )
    if up is not None and up.worker is not None:
        raise ValueError(
            f"aggregate must be None with {up}, of which every worker sends other "
            f"coordinates, got {aggregate}: use another compressor."
        )


def as_channel(value: Any) -> Channel:
    """A channel as it is, or the plain one of an axis name."""
    if isinstance(value, Channel):
        return value
    names = value if isinstance(value, tuple) else (value,)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "channel must be the name of the worker axis, such as "
            "Workers(8).axis_name, or what jaxsp.channel(...) makes of it, got "
            f"{_arguments.shown(value)}."
        )
    return channel(value)


def check_key(channel: Channel) -> Channel:
    """Refuse a channel without a key where something is drawn."""
    if channel.key is None:
        raise ValueError(
            "key must be a typed key that all workers share where something is drawn, "
            f"and {channel} has none: write "
            f"jaxsp.channel({channel.axis_name!r}, ..., key=jax.random.key(0))."
        )
    return channel


def check_mean(channel: Channel) -> Channel:
    """Refuse an aggregate where what is computed stands on the mean."""
    if channel.aggregate is not None:
        raise ValueError(
            "channel must be one of the mean, because what follows stands on the mean "
            f"of all that was sent, got {channel}: leave aggregate out, or use a "
            "method without memory of what was sent, such as extra_step or cp_oadam."
        )
    return channel


def check_unbiased(channel: Channel) -> Channel:
    """Refuse a biased compressor where errors must average out."""
    check_mean(channel)
    if not channel.unbiased:
        biased = [c for c in (channel.up, channel.down) if c is not None and not c.q]
        raise ValueError(
            f"channel must be unbiased, and {biased[0]} is not: write "
            "jaxsp.compressors.rand_k, natural, dithering or quantize, or use a method "
            "with error feedback, such as masha2 or dqgan."
        )
    return channel


def check_contractive(channel: Channel) -> Channel:
    """Refuse a compressor whose errors may grow where they are fed back."""
    if not channel.lossless:
        check_mean(channel)
    if not channel.contractive:
        pair = (channel.up, channel.down)
        growing = [c for c in pair if c is not None and not c.delta]
        raise ValueError(
            f"channel must be contractive, and {growing[0]} is not: write "
            f"jaxsp.compressors.scaled({growing[0]}), or contractive(...), or top_k or "
            "sign."
        )
    return channel
