"""Compressors: time and bytes for 10 million numbers, beside a copy of them.

For each codec, one compiled function makes the payload and another what it decompresses
to; a third does both and subtracts the result, which is what error feedback needs. The
copy takes turns with them, and a ratio is the median over turns.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from jaxsp import compressors

CODECS = (
    compressors.identity(),
    compressors.quantize(8),
    compressors.quantize(4),
    compressors.quantize(3),
    compressors.ternary(),
    compressors.dithering(7),
    compressors.natural(),
    compressors.sign(),
    compressors.top_k(0.01),
    compressors.top_k(0.1),
    compressors.rand_k(0.01),
    compressors.rand_k(0.1),
    compressors.perm_k().for_worker(0, 8),
    compressors.low_rank(4),
)


def milliseconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return (time.perf_counter() - start) * 1e3


def measure(codec: compressors.Compressor, x: jax.Array, repeats: int) -> dict:
    """Median milliseconds, and median ratios to the copy of the same turn."""
    key = jax.random.key(1)

    def residual(key, x):
        payload = codec.compress(key, x)
        return payload, x - codec.decompress(payload, x)

    payload = jax.jit(codec.compress)(key, x)
    calls = {
        "copy": (jax.jit(jnp.copy), x),
        "compress": (jax.jit(codec.compress), key, x),
        "decompress": (jax.jit(lambda p: codec.decompress(p, x)), payload),
        "residual": (jax.jit(residual), key, x),
    }
    for call in calls.values():
        milliseconds(*call)
    turns = [{k: milliseconds(*c) for k, c in calls.items()} for _ in range(repeats)]
    median = {k: statistics.median(t[k] for t in turns) for k in calls}
    there_and_back = [(t["compress"] + t["decompress"]) / t["copy"] for t in turns]
    median["ratio"] = statistics.median(there_and_back)
    median["residual_ratio"] = statistics.median(
        t["residual"] / t["copy"] for t in turns
    )
    return median


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (arguments.size,))
    print(f"{arguments.size:,} float32 numbers on {jax.devices()[0].device_kind}")
    print(
        "| codec | payload MB | copy ms | compress ms | decompress ms | there and "
        "back, copies | with x − x̂, copies | MB/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for codec in CODECS:
        t = measure(codec, x, arguments.repeats)
        speed = x.nbytes / 1e3 / (t["compress"] + t["decompress"])
        print(
            f"| {codec} | {codec.bits(x) / 8e6:.2f} | {t['copy']:.1f} | "
            f"{t['compress']:.1f} | {t['decompress']:.1f} | {t['ratio']:.1f} | "
            f"{t['residual_ratio']:.1f} | {speed:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
