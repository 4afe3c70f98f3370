"""Training GANs over a slow network: MD-GAN and FL-GAN as `measure.py` measures them.

Both train the same pair of networks for images of 28 x 28, with batches of 100. The
server of MD-GAN is process 0, and every other process has one worker; of FL-GAN every
process has one.
"""

import jax
import numpy as np
import optax
from task import Run, Task, traffic

import jaxsp
from jaxsp.gan import fl_gan, losses, md_gan, models, step

__all__ = ["prepare"]

BATCH, SHARE, SYNC_EVERY = 100, 200, 8


def prepare(name: str, task: Task) -> Run:
    """A method's program on random images, ready to step.

    Args:
      name: one of `worker.GANS`.
      task: of this process.

    Returns:
      What `worker.measure` runs.
    """
    adam = optax.adam(2e-4, b1=0.5)
    gan = models.mlp((28, 28, 1), latent_size=64, width=256)
    game = losses.non_saturating(gan)
    if name == "MD-GAN":
        others = [d for d in jax.devices() if d.process_index > 0]
        workers = jaxsp.Workers(len(others), devices=others)
        program = md_gan.MDGan(adam, adam).program(gan, game, workers, batch_size=BATCH)
    else:
        workers = jaxsp.Workers(task.num_processes)
        axis = workers.axis_name
        method = fl_gan.fl_gan(adam, adam, SYNC_EVERY, axis_name=axis)
        program = step.program(
            gan, game, method, workers, batch_size=BATCH, steps_per_call=1
        )
    rng = np.random.default_rng(0)
    images = rng.integers(
        0, 256, (workers.count, SHARE, *gan.sample_shape), dtype=np.uint8
    )
    shares, sizes = workers.shard((images, np.full(workers.count, SHARE, np.int32)))
    key = jax.random.key(1)

    def advance(state):
        state, values = program.step(state, shares, sizes, key, 1)
        jax.block_until_ready((state, values))
        return state

    def counted(state):
        if name != "MD-GAN":
            return traffic(state)
        up, down = program.bits(state)  # a worker's mean, which the server knows
        if task.process_id:
            return traffic(state)
        assert up is not None
        assert down is not None
        return down * workers.count, up * workers.count

    return Run(
        advance,
        program.init(jax.random.key(0)),
        counted,
        1 if name == "MD-GAN" else SYNC_EVERY,
    )
