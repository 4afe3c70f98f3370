"""What server and workers say to each other, in one process or from one to another.

A transport carries the generated batches down and the feedback up, and knows where the
server and the workers live. `InProcess` copies from device to device. `OverProcesses`
is for a server and workers that no process sees all of: every process makes the same
calls in the same order, those who have no part in a message pass by, and each array of
somebody else is held without its data.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsp.gan.md_gan import messages
from jaxsp.workers import Workers

__all__ = ["InProcess", "OverProcesses", "between"]

_PAGE = 4096  # bytes


def between(workers: Workers, server: Any, shapes: Any) -> "InProcess | OverProcesses":
    """The transport between a server and its workers.

    Args:
      workers: who holds the discriminators.
      server: the device of the generator, or None to choose it: of one process the
        first that no worker has where the workers have several, else the workers'
        first; of many the first of process 0 that no worker has.
      shapes: shapes of what travels, stacked over the workers: the pair of what goes
        down (the two generated batches, alike) and of what comes up.

    Returns:
      An `InProcess` if this is the only process, or if server and workers all live in
      it; otherwise an `OverProcesses`.

    Raises:
      ValueError: if the server has no device of its own in process 0, among many.
    """
    everyone = [*workers.devices, *([] if server is None else [server])]
    if jax.process_count() == 1 or (
        server is not None
        and all(d.process_index == jax.process_index() for d in everyone)
    ):
        return InProcess(workers, server or _free_device(workers))
    return OverProcesses(workers, server or _first_device(workers), *shapes)


class InProcess:
    """Server and workers of one process.

    Args:
      workers: who holds the discriminators.
      server: the device of the generator.
    """

    serves = works = True

    def __init__(self, workers: Workers, server: Any):
        self._workers, self._server = workers, server

    def at_server(self, make: Any, *args: Any) -> Any:
        """What `make(*args)` makes, in arrays of their own on the server's device."""
        made = jax.device_put(make(*args), self._server)
        return jax.tree.map(jnp.array, made)

    def at_workers(self, make: Any, *args: Any) -> Any:
        """What `make(*args)` makes, stacked, on the workers' devices."""
        return self._workers.shard(make(*args))

    def down(self, fakes: Any, alive: np.ndarray) -> Any:
        """From the server to the workers: the two generated batches, stacked."""
        del alive
        return self._workers.shard(fakes)

    def up(self, feedback: Any, values: Any, alive: np.ndarray) -> tuple[Any, Any]:
        """From the workers to the server: the feedback. The losses stay."""
        del alive
        return jax.device_put(feedback, self._server), values

    def absent(self, tree: Any) -> Any:
        """Nothing is absent here."""
        return tree

    def read(self, of_server: Any, of_workers: Any) -> tuple[Any, Any]:
        """Trees of the server and of the workers as NumPy arrays."""
        return jax.tree.map(np.asarray, (of_server, of_workers))

    def finite(self, of_server: Any, of_workers: Any) -> bool:
        """Whether every number is finite."""
        return bool(messages.finite(of_server)) and bool(messages.finite(of_workers))


class OverProcesses:
    """A server in process 0 and workers in any processes.

    A message goes between two processes only, in a program over the two devices: what
    is sent to one worker passes no other. To workers that are gone nothing is sent.
    With several workers on a device, one message carries what is theirs.

    Args:
      workers: who holds the discriminators.
      server: the device of the generator.
      down: shapes of what goes down, stacked over the workers.
      up: shapes of what comes up, likewise.

    Attributes:
      serves: whether the server lives in this process.
      works: whether a worker does.

    Raises:
      ValueError: if the server is not in process 0, or on a worker's device.
    """

    def __init__(self, workers: Workers, server: Any, down: Any, up: Any):
        if server.process_index != 0 or server in workers.devices:
            raise ValueError(
                "server_device must be a device of process 0 that no worker has, where "
                f"several processes train, got {server} beside workers on "
                f"{_in_words(workers)}."
            )
        here = jax.process_index()
        self.serves = server.process_index == here
        self.works = any(d.process_index == here for d in workers.devices)
        self._workers, self._devices = workers, list(workers.devices)
        self._block = workers.count // len(self._devices)
        self._down, self._up = down, up
        self._server = server
        self._at_server = NamedSharding(messages.mesh([server]), PartitionSpec())
        self._at_workers = workers.shard(np.zeros(workers.count, bool)).sharding
        first = {d.process_index: d for d in reversed(jax.devices())}
        self._own = first[here]
        self._all = NamedSharding(
            messages.mesh([first[p] for p in sorted(first)]),
            PartitionSpec(messages.ENDS),
        )

    # ------------------------------------------------------------------ who holds what

    def at_server(self, make: Any, *args: Any) -> Any:
        """What `make(*args)` makes, on the server; elsewhere it is not computed."""
        if not self.serves:
            return self._without_data(jax.eval_shape(make, *args), self._at_server)
        made = jax.device_put(make(*args), self._at_server)
        return jax.tree.map(jnp.array, made)

    def at_workers(self, make: Any, *args: Any) -> Any:
        """What `make(*args)` makes, stacked, on the workers; elsewhere as above."""
        if not self.works:
            return self._without_data(jax.eval_shape(make, *args), self._at_workers)
        return self._workers.shard(make(*args))

    def absent(self, tree: Any) -> Any:
        """New arrays without data that stand for a tree of the server."""
        return self._without_data(tree, self._at_server)

    def _without_data(self, tree, sharding):
        def one(leaf):
            nothing = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            return jax.make_array_from_callback(
                leaf.shape, sharding, nothing.__getitem__, dtype=leaf.dtype
            )

        return jax.tree.map(one, tree)

    # ------------------------------------------------------------------ messages

    def down(self, fakes: Any, alive: np.ndarray) -> Any:
        """From the server to the workers: the two generated batches, stacked.

        Args:
          fakes: X^d and X^g, on the server; whatever elsewhere.
          alive: who gets a message; the others get zeros.

        Returns:
          X^d and X^g on the workers' devices; None where no worker lives.
        """
        living = self._living(alive)
        sent = messages.divided(fakes, living) if self.serves else [None] * len(living)
        placed = {}
        for device, rows, message in zip(self._devices, living, sent, strict=True):
            if rows:
                message = self._send(device, message, self._shapes(rows), down=True)
            if device.process_index == jax.process_index():
                placed[device] = self._arrived(device, message, rows)
        if not placed:
            return None
        return [
            jax.tree.map(
                lambda shape, *leaves: jax.make_array_from_single_device_arrays(
                    shape.shape, self._at_workers, list(leaves)
                ),
                self._down,
                *(found[which] for found in placed.values()),
            )
            for which in range(2)
        ]

    def up(self, feedback: Any, values: Any, alive: np.ndarray) -> tuple[Any, Any]:
        """From the workers to the server: the feedback and the losses.

        Args:
          feedback: F, stacked, on the workers' devices; whatever elsewhere.
          values: the losses, likewise.
          alive: who sends; in place of the others' there are zeros.

        Returns:
          Feedback and losses on the server's device; None twice elsewhere.
        """
        living = self._living(alive)
        arrived = []
        for device, rows in zip(self._devices, living, strict=True):
            if rows:
                message = None
                if device.process_index == jax.process_index():
                    held = [messages.piece(x, device) for x in (feedback, values)]
                    whole = len(rows) == self._block
                    message = held if whole else messages.taken(held, rows)
                shapes = messages.first_axis(list(self._up), len(rows))
                arrived.append(self._send(device, message, shapes, down=False))
        if not self.serves:
            return None, None
        every = tuple(n for n, lives in enumerate(alive) if lives)
        return tuple(messages.scattered(arrived, every, self._workers.count))

    def _living(self, alive):
        """For each device those rows of its block that are alive."""
        blocks = np.asarray(alive, bool).reshape(-1, self._block)
        return tuple(tuple(np.flatnonzero(block).tolist()) for block in blocks)

    def _shapes(self, rows):
        """The shapes of a message down: both batches of some workers."""

        def one(leaf):
            shape = (2, len(rows), *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        return jax.tree.map(one, self._down)

    def _arrived(self, device, message, rows):
        """X^d and X^g of all the workers on a device, from the message if there is one.

        Of those that are gone they are zeros, and what comes of these is not used.
        """
        if len(rows) == self._block:
            return messages.opened(message)
        if rows:
            return messages.spread(message, rows, self._block)
        shapes = messages.first_axis(self._down, self._block)
        return [
            jax.tree.map(lambda s: messages.zeros(device, s.shape, s.dtype), shapes)
        ] * 2

    def _send(self, device, tree, shapes, down):
        """A tree from the server to a worker's device, or back; None for the others.

        The two make one array, of which the sender has one half and the receiver the
        other, zeros that are made once. What is sent takes their place.
        """
        here = jax.process_index()
        ends = self._server, device
        source, target = ends if down else ends[::-1]
        mine = [end for end in ends if end.process_index == here]
        if not mine:
            return None
        sharding = NamedSharding(messages.mesh(ends), PartitionSpec(messages.ENDS))

        def whole(shape, *leaf):
            halves = [
                leaf[0].addressable_data(0)
                if end == source
                else messages.zeros(end, shape.shape, shape.dtype)
                for end in mine
            ]
            return jax.make_array_from_single_device_arrays(
                (2 * shape.shape[0], *shape.shape[1:]), sharding, halves
            )

        trees = (tree,) if source in mine else ()
        sent = messages.carrier(ends, down)(jax.tree.map(whole, shapes, *trees))
        return messages.piece(sent, target) if target in mine else None

    # ------------------------------------------------------------------ for all to know

    def read(self, of_server: Any, of_workers: Any) -> tuple[Any, Any]:
        """Trees of the server and of the workers as NumPy arrays, on every process.

        One sum over the processes, in which each number is one process's and the
        others' zeros, added up as the bits they are.
        """
        trees = of_server, of_workers
        here = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trees)
        for leaf, copy in zip(
            *(jax.tree.leaves(tree) for tree in (trees, here)), strict=True
        ):
            for shard in leaf.addressable_shards:
                copy[shard.index] = np.asarray(shard.data)
        leaves, treedef = jax.tree.flatten(here)
        flat = [
            np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves
        ]
        whole = self._sum(np.concatenate(flat))
        parts = np.split(whole, np.cumsum([len(part) for part in flat])[:-1])
        return treedef.unflatten(
            [
                part.copy().view(leaf.dtype).reshape(leaf.shape)
                for part, leaf in zip(parts, leaves, strict=True)
            ]
        )

    def finite(self, of_server: Any, of_workers: Any) -> bool:
        """Whether every number is finite, on every process."""
        here = [
            bool(messages.finite(messages.piece(tree, device)))
            for tree, devices in (
                (of_server, [self._server]),
                (of_workers, self._devices),
            )
            for device in devices
            if device.process_index == jax.process_index()
        ]
        return not self._sum(np.array([not all(here)], np.uint8)).any()

    def _sum(self, data):
        """The sum over processes of vectors of bytes, where but one has other than 0.

        Of a few lengths only, for each is a program of its own.
        """
        padded = np.zeros(-(-len(data) // _PAGE) * _PAGE, np.uint8)
        padded[: len(data)] = data
        words = jax.device_put(padded.view(np.uint32)[None], self._own)
        stacked = jax.make_array_from_single_device_arrays(
            (jax.process_count(), words.shape[1]), self._all, [words]
        )
        total = _total(self._all)(stacked).addressable_data(0)
        return np.asarray(total).view(np.uint8)[: len(data)]


def _free_device(workers):
    """Of this process a device that no worker has, where they have several."""
    if len(workers.devices) > 1:
        for device in jax.local_devices():
            if device not in workers.devices and (
                device.platform == workers.devices[0].platform
            ):
                return device
    return workers.devices[0]


def _first_device(workers):
    """Of process 0 the first device that no worker has."""
    for device in jax.devices():
        if device.process_index == 0 and device not in workers.devices:
            return device
    others = sum(d.process_index > 0 for d in jax.devices())
    raise ValueError(
        "workers must leave a device of process 0 to the server of an MD-GAN, got "
        f"workers on {_in_words(workers)}: write Workers({others}, devices="
        "[d for d in jax.devices() if d.process_index > 0])."
    )


def _in_words(workers: Workers) -> str:
    """The workers' devices, for a message."""
    return ", ".join(f"{d} (process {d.process_index})" for d in workers.devices)


@functools.cache
def _total(sharding):
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: x.sum(axis=0, dtype=x.dtype), out_shardings=whole)
