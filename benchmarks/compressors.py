"""Compressors: time and bytes for 10 million numbers, beside a copy of them.

    python benchmarks/compressors.py [--size 10000000] [--repeats 15]

For each codec, one compiled function makes the payload and another what it decompresses
to; a third does both and subtracts the result, which is what error feedback needs. The
copy takes turns with them, and a ratio is the median over turns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, in_turns, print_table

from jaxsp import compressors

CODECS = (
    compressors.quantize(8),
    compressors.quantize(4),
    compressors.ternary(),
    compressors.dithering(7),
    compressors.natural(),
    compressors.sign(),
    compressors.top_k(0.01),
    compressors.top_k(0.1),
    compressors.rand_k(0.01),
    compressors.perm_k().for_worker(0, 8),
    compressors.low_rank(4),
)


def measure(codec: compressors.Compressor, x: jax.Array, repeats: int):
    """Seconds to copy `x`, to compress it, to decompress it, and for the residual."""
    key = jax.random.key(1)

    def residual(key, x):
        payload = codec.compress(key, x)
        return payload, x - codec.decompress(payload, x)

    compress, subtract = jax.jit(codec.compress), jax.jit(residual)
    decompress = jax.jit(lambda payload: codec.decompress(payload, x))
    copy, payload = jax.jit(jnp.copy), compress(key, x)
    calls = {
        "copy": lambda: copy(x),
        "compress": lambda: compress(key, x),
        "decompress": lambda: decompress(payload),
        "residual": lambda: subtract(key, x),
    }
    return in_turns(calls, repeats)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (arguments.size,))
    print(f"{arguments.size:,} float32 numbers on {jax.devices()[0].device_kind}")

    def row(codec):
        t = measure(codec, x, arguments.repeats)
        both = np.median((t["compress"] + t["decompress"]) / t["copy"])
        residual = np.median(t["residual"] / t["copy"])
        return [codec, f"{codec.bits(x) / 8e6:.2f}", f"{both:.1f}", f"{residual:.1f}"]

    head = ["codec", "payload MB", "there and back, copies", "with x − x̂, copies"]
    print_table(head, map(row, CODECS))


if __name__ == "__main__":
    main()
