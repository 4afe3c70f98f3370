r"""What the compilers of TPUs and GPUs make of a step, without a TPU or a GPU.

    python benchmarks/accelerators.py [--targets v5e-8] [--steps NAME ...] [--json PATH]

Nothing runs: every step is compiled for devices that are not here (`compilers.py`), and
the numbers are read from the executable's text (`hlo.py`) and from what the compiler
says of it. A name that is a method's is a step of that method on a vector of `--size`
float32 numbers, one worker a device, or with `--block` several; the gradient is an
argument. `gan:` names are steps of the trainer, 32 a call, of which one is counted.

*Sent* is bytes that a device sends in a step, by ring algorithms; *counted* what
`jaxsp.metrics.bits_sent` counts for its workers; a range where coins or local steps
decide, or a graph that changes. Messages are counted from worker to worker, so that
with blocks, some of which stay on their device, more is counted than sent. *Overlap*
is, for each collective that is asynchronous, how many kernels are scheduled between its
start and its end, and how many of them multiply matrices. *Main* is what is read and
written of the device's main memory, *fast* of a TPU's vector memory (`hlo_memory.py`);
the *floor* is arguments, results and what is sent and received, once each, and *passes*
are main over floor. A TPU keeps a small model in its vector memory for the whole step:
for its passes choose a `--size` that does not fit there.
"""

import json
import pathlib
import re
import time
from typing import Any, cast

import compilers
import hlo
import hlo_memory
import jax
from accelerated_steps import GANS, METHODS, counted, lower, trainer
from common import command_line, print_table


def measure(lowered: jax.stages.Lowered) -> tuple[dict[str, Any], str]:
    """Compile, and say what came out.

    Args:
      lowered: what `lower` returns.

    Returns:
      The figures, as JSON can hold them, and the executable's text.
    """
    start = time.process_time()  # of all threads: others may use the machine
    compiled = lowered.compile()
    seconds = time.process_time() - start
    text, memory = compiled.as_text() or "", cast(Any, compiled.memory_analysis())
    program = hlo.read(text)
    least, most = program.sent()
    touched = hlo_memory.touched(program)
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed", sum(touched))
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return {
        "collectives": [c._asdict() for c in program.collectives()],
        "sent": [least, most],
        "temporary": memory.temp_size_in_bytes,
        "arguments": arguments,
        "main": touched.main,
        "fast": touched.fast,
        "accessed": int(accessed),  # as the compiler counts, of both memories
        "floor": arguments + results + 2 * most,
        "kernels": program.kernels(),
        "seconds": round(seconds, 1),
    }, text


def rows(names: list[str], target: str, block: int, size: int, keep: Any = None):
    """Measure each step for a target, one after the other; a record each."""
    devices = compilers.devices(target)
    count = block * len(devices)
    for name in names:
        if name in METHODS:
            sent = tuple(block * x for x in counted(name, count, size))
            parts = {"": (lower(name, devices, count, size), sent)}
        else:
            parts = {
                role: (lowered, (sent, sent))
                for role, (lowered, sent) in trainer(name, devices).items()
            }
        for role, (lowered, sent) in parts.items():
            found, text = measure(lowered)
            title = f"{name}: {role}" if len(parts) > 1 else name
            if keep:
                file = re.sub(r"\W+", "_", f"{target} {count} {title}") + ".hlo"
                (keep / file).write_text(text)
            of = {"step": title, "target": target, "workers": count}
            yield of | {"counted": sent} | found


def cells(row: dict[str, Any]) -> list[str]:
    """A record as a line of the table."""
    kinds: dict[str, int] = {}
    for c in row["collectives"]:
        kind = c["op"] + "*" * c["asynchronous"]
        kinds[kind] = kinds.get(kind, 0) + 1
    overlaps = [
        f"{c['between']} ({c['products']})"
        for c in row["collectives"]
        if c["asynchronous"]
    ]
    return [
        row["step"],
        ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none",
        _range(row["sent"]),
        _range(row["counted"]),
        ", ".join(dict.fromkeys(overlaps)) or "",
        f"{row['temporary'] / 1e6:.1f}",
        f"{row['main'] / 1e6:.0f}",
        f"{row['fast'] / 1e6:.0f}",
        f"{row['floor'] / 1e6:.0f}",
        f"{row['main'] / row['floor']:.1f}",
        f"{row['kernels']}",
        f"{row['seconds']:.0f}",
    ]


HEAD = ["step", "collectives", "sent MB", "counted MB", "overlap", "temporary MB"]
HEAD += ["main MB", "fast MB", "floor MB", "passes", "kernels", "compile s"]


def _range(pair):
    low, high = (f"{x / 1e6:.3g}" for x in pair)
    return low if low == high else f"{low}–{high}"


def main():
    jax.config.update("jax_platforms", "cpu")  # nothing looks for a TPU
    known = [*METHODS, *GANS]
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--targets", nargs="+", choices=compilers.TARGETS, default=["v5e-8", "h100-8"])
    add("--steps", nargs="+", metavar="NAME", choices=known, default=known)
    add("--block", type=int, default=1, help="workers on a device, for methods")
    add("--size", type=int, default=1_000_000, help="numbers of the parameters")
    add("--json", type=pathlib.Path, help="a file for all figures")
    add("--hlo", type=pathlib.Path, help="a directory for the executables' text")
    arguments = parser.parse_args()
    names = [n for n in arguments.steps if arguments.block == 1 or n in METHODS]
    if arguments.hlo:
        arguments.hlo.mkdir(parents=True, exist_ok=True)
    records, missing = [], []
    for target in arguments.targets:
        try:
            compilers.devices(target)
        except compilers.MissingCompilerError as error:
            missing.append(str(error))
            continue
        print(f"\n{target}: {arguments.block} worker(s) a device\n")

        def lines(target=target):
            for row in rows(
                names, target, arguments.block, arguments.size, arguments.hlo
            ):
                records.append(row)
                yield cells(row)

        print_table(HEAD, lines())
    found = ", ".join(f"{k} {v}" for k, v in compilers.versions().items())
    print(f"\ncompiled by {found}; nothing has run")
    if arguments.json:
        text = {"versions": compilers.versions(), "rows": records}
        arguments.json.write_text(json.dumps(text, indent=1))
    if missing:
        raise SystemExit("\n".join(missing))


if __name__ == "__main__":
    main()
