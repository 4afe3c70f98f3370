"""What server and workers say to each other, in one process or from one to another.

A link carries the generated batches down and the feedback up, and knows where the
server and the workers live. `InProcess` copies from device to device. `OverProcesses`
is for a server and workers that no process sees all of: every process makes the same
calls in the same order, those who have no part in a message pass by, and each array of
somebody else is held without its data.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp.gan.md_gan import pieces
from jaxsp.gan.md_gan.processes import OverProcesses, in_words
from jaxsp.workers import Workers

__all__ = ["InProcess", "OverProcesses", "link"]


def link(workers: Workers, server: Any, messages: Any) -> "InProcess | OverProcesses":
    """The link between a server and its workers.

    Args:
      workers: who holds the discriminators.
      server: the device of the generator, or None to choose it: of one process the
        first that no worker has where the workers have several, else the workers'
        first; of many the first of process 0 that no worker has.
      messages: shapes of what travels, stacked over the workers: the pair of what goes
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
    return OverProcesses(workers, server or _first_device(workers), *messages)


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
        return bool(pieces.finite(of_server)) and bool(pieces.finite(of_workers))


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
        f"workers on {in_words(workers)}: write Workers({others}, devices="
        "[d for d in jax.devices() if d.process_index > 0])."
    )
