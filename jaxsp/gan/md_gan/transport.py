"""What server and workers say to each other, in one process or from one to another.

Every process makes the same calls in the same order. Who has no part in a message
passes by, and holds the arrays of somebody else without their data.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsp import comm
from jaxsp.gan.md_gan import roles
from jaxsp.workers import Workers

__all__ = ["Transport"]

_ENDS = "ends"  # the axis of the devices between which a message goes


class Transport:
    """Carries generated batches down to the workers and their answers up.

    A message goes between two devices only: what is sent to one worker passes no other.
    To workers that are gone nothing is sent. With several workers on a device, one
    message carries what is theirs.

    Args:
      workers: who holds the discriminators.
      server: the device of the generator, or None to choose it, as in `MDGan`.
      down: shapes of what goes down, stacked over the workers.
      up: shapes of what comes up, likewise.

    Attributes:
      serves: whether the server lives in this process.
      works: whether a worker does.

    Raises:
      ValueError: if the server has no device of its own in process 0, among many.
    """

    def __init__(self, workers: Workers, server: Any, down: Any, up: Any):
        self._workers, self._down, self._up = workers, down, up
        self._server = _server_device(workers, server)
        self.serves, self.works = _is_here(self._server), bool(workers.local)
        self._block = workers.count // len(workers.devices)
        self._at_server = NamedSharding(_mesh([self._server]), PartitionSpec())
        # Compiled and made for this one, and gone with it.
        self._take = jax.jit(lambda tree, rows: roles.swap(tree, rows))
        self._scatter = jax.jit(lambda *args: _scatter(*args), static_argnums=2)
        self._zeros = functools.cache(_zeros)
        self._carrier = functools.cache(_carrier)
        self._at_workers = workers.shard(np.zeros(workers.count, bool)).sharding

    def at_server(self, make: Callable[[], Any]) -> Any:
        """New arrays of what `make()` returns, on the server; elsewhere no data."""
        if self.serves:
            return jax.tree.map(jnp.array, jax.device_put(make(), self._at_server))

        def without_data(leaf):
            return jax.make_array_from_single_device_arrays(
                leaf.shape, self._at_server, [], dtype=leaf.dtype
            )

        return jax.tree.map(without_data, jax.eval_shape(make))

    def down(self, fakes: Any, alive: np.ndarray) -> Any:
        """From the server to the workers.

        Args:
          fakes: what each worker gets, stacked, on the server; whatever elsewhere.
          alive: who gets it, bool [N]; the others get zeros.

        Returns:
          The same on the workers' devices; None where no worker lives.
        """
        blocks = []
        for device, first, rows in self._living(alive):
            message = self._taken(fakes, first + rows) if self.serves else None
            message = self._send(self._server, device, message, self._down, len(rows))
            if _is_here(device):
                block = self._scattered([message], rows, self._block)
                blocks.append(jax.device_put(block, device))  # zeros may be elsewhere
        if not self.works:
            return None
        return jax.tree.map(
            lambda shape, *leaves: jax.make_array_from_single_device_arrays(
                shape.shape, self._at_workers, list(leaves)
            ),
            self._down,
            *blocks,
        )

    def up(self, answers: Any, alive: np.ndarray) -> Any:
        """From the workers to the server.

        Args:
          answers: of each worker, stacked, on the workers' devices; whatever elsewhere.
          alive: who sends; in place of what the others would there are zeros.

        Returns:
          The same on the server's device; None elsewhere.
        """
        arrived = []
        for device, _, rows in self._living(alive):
            here = _is_here(device)
            message = self._taken(_piece(answers, device), rows) if here else None
            message = self._send(device, self._server, message, self._up, len(rows))
            arrived.append(message)
        if not self.serves:
            return None
        return self._scattered(arrived, np.flatnonzero(alive), self._workers.count)

    def everywhere(self, tree: Any) -> Any:
        """A tree of the server as NumPy arrays, in all processes."""

        def here(leaf):
            return np.asarray(leaf) if self.serves else np.zeros(leaf.shape, leaf.dtype)

        return multihost_utils.broadcast_one_to_all(jax.tree.map(here, tree))

    def _taken(self, tree: Any, rows: np.ndarray) -> Any:
        """Some rows of a stacked tree."""
        whole = len(rows) == len(jax.tree.leaves(tree)[0])
        return tree if whole else self._take(tree, rows)

    def _scattered(self, trees: list[Any], rows: np.ndarray, count: int) -> Any:
        """Stacked trees together as `rows` of one of `count`, the others zeros."""
        whole = len(trees) == 1 and len(rows) == count
        return trees[0] if whole else self._scatter(trees, rows, count)

    def _living(self, alive: np.ndarray) -> Iterator[tuple[Any, int, np.ndarray]]:
        """Each device, the first of its workers, and which of these are alive."""
        for number, device in enumerate(self._workers.devices):
            first = number * self._block
            yield device, first, np.flatnonzero(alive[first : first + self._block])

    def _send(self, source, target, tree, shapes, rows):
        """A message of so many rows from a device to another; None for all others.

        Between processes the two devices make one array, of which the sender has one
        half and the receiver the other, zeros that are made once. What is sent takes
        their place.
        """
        if _is_here(source) and _is_here(target):
            return jax.device_put(tree, target)
        if not rows:
            zeros = functools.partial(self._zeros, target, 0)
            return jax.tree.map(zeros, shapes) if _is_here(target) else None
        if not (_is_here(source) or _is_here(target)):
            return None
        ends = tuple(sorted((source, target), key=lambda device: device.id))
        sharding = NamedSharding(_mesh(ends), PartitionSpec(_ENDS))

        def whole(shape, *leaf):
            half = (
                leaf[0].addressable_data(0)
                if leaf
                else self._zeros(target, rows, shape)
            )
            return jax.make_array_from_single_device_arrays(
                (2 * rows, *shape.shape[1:]), sharding, [half]
            )

        trees = (tree,) if _is_here(source) else ()
        sent = self._carrier(ends, ends.index(source))(
            jax.tree.map(whole, shapes, *trees)
        )
        return _piece(sent, target) if _is_here(target) else None


def _server_device(workers: Workers, given: Any) -> Any:
    """The device of the server: `given`, or one that no worker has."""
    devices = workers.devices
    free = [
        device
        for device in jax.devices()
        if device.process_index == 0
        and device.platform == devices[0].platform
        and device not in devices
    ]
    if jax.process_count() == 1:
        return given or (free[0] if free and len(devices) > 1 else devices[0])
    if free and (given is None or given in free):
        return given or free[0]
    if given is not None and all(map(_is_here, (given, *devices))):  # a plan of a run
        return given
    others = sum(device.process_index > 0 for device in jax.devices())
    places = ", ".join(f"{d} (process {d.process_index})" for d in devices)
    raise ValueError(
        "workers must leave a device of process 0 to the server of an MD-GAN, and "
        f"server_device be None or such a device, got server_device={given} beside "
        f"workers on {places}: write Workers({others}, devices="
        "[d for d in jax.devices() if d.process_index > 0])."
    )


def _is_here(device: Any) -> bool:
    return device.process_index == jax.process_index()


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (_ENDS,), axis_types=(AxisType.Auto,))


def _piece(tree: Any, device: Any) -> Any:
    """What of a tree lies on a device."""

    def one(leaf):
        return next(s.data for s in leaf.addressable_shards if s.device == device)

    return jax.tree.map(one, tree)


def _zeros(device: Any, rows: int, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.zeros((rows, *like.shape[1:]), like.dtype), device)


def _carrier(ends: tuple[Any, Any], source: int) -> Callable[[Any], Any]:
    """The program that carries the half of `ends[source]` to the other."""

    def carry(tree):
        return jax.tree.map(lambda x: comm.send(x, source, 1 - source, _ENDS), tree)

    spec = PartitionSpec(_ENDS)
    return jax.jit(
        jax.shard_map(
            carry, mesh=_mesh(ends), in_specs=spec, out_specs=spec, check_vma=False
        )
    )


def _scatter(trees, rows, count):
    def one(*leaves):
        nothing = jnp.zeros((count, *leaves[0].shape[1:]), leaves[0].dtype)
        return nothing.at[rows].set(jnp.concatenate(leaves))

    return jax.tree.map(one, *trees)
