r"""What a compiled program reads and writes, and in which memory.

Of every kernel the operands and the results count, in the tiles in which they lie; of
an operand from which a kernel takes some numbers (a slice, a gather), those numbers
alone; where it changes some numbers of an array (a scatter, an update), those too.
Loops count as often as they are known to run, of branches the dearest.

A TPU's compiler keeps what fits in the vector memory beside the processor, 128 MiB on
a v5e, for which its text has S(1). That memory is much faster, and counts apart.
"""

import math
import re
from typing import NamedTuple

import hlo

__all__ = ["Touched", "touched"]

_TAKE = ("slice", "dynamic-slice", "gather")
_PUT = ("dynamic-update-slice", "scatter")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([\d,]*):?([^}]*)\})?")


class Touched(NamedTuple):
    """Bytes read and written.

    Attributes:
      main: of the device's main memory.
      fast: of a TPU's vector memory.
    """

    main: int
    fast: int


def touched(program: hlo.Program) -> Touched:
    """What all kernels, copies and collectives of a program read and write, at most."""

    def bytes_of(fast):
        def of(block, i):
            accesses = _accesses(program, block, i)
            return round(sum(n for n, where in accesses if where is fast))

        return program.total(of, program.entry)[1]

    return Touched(bytes_of(False), bytes_of(True))


def _accesses(program, block, i):
    """The bytes of each access of an instruction, and whether in the fast memory."""
    line, shapes = block[i], {x.name: x.shape for x in block}
    collective = line.op.startswith(hlo.COLLECTIVES)
    if not (collective or hlo.runs(line)):
        return
    if line.op in ("copy-start", "slice-start"):
        ends = sorted(map(_array, _ARRAY.finditer(line.shape)))[-2:]
        yield from ((ends[0][0], fast) for _, fast in ends)
        return
    if line.op == "fusion":
        inside = program.computations[line.called[0]]
        given = {
            x.rest.partition(")")[0]: x.name for x in inside if x.op == "parameter"
        }
        names = [given[f"({i}"] for i in range(len(line.operands))]
    else:
        names = line.operands
        given = [x for x in block if x.name in names]
        inside = [x._replace(op="parameter", operands=()) for x in given] + [line]
    read, written = _shares(inside)
    if not (collective and line.op.endswith("-done")):
        for outside, name in zip(line.operands, names, strict=True):
            for found in _ARRAY.finditer(shapes.get(outside, "")):
                size, fast = _array(found)
                yield size * read.get(name, 0.0), fast
    if not (collective and line.op.endswith("-start")):
        for found, share in zip(_ARRAY.finditer(line.shape), written, strict=False):
            size, fast = _array(found)
            yield size * share, fast


def _array(found):
    """The bytes that an array takes as it lies, and whether in the fast memory."""
    kind, sizes, order, rest = found.groups(default="")
    dims = [int(n.lstrip("<=")) for n in sizes.split(",") if n]
    dims = [dims[int(i)] for i in reversed(order.split(","))] if order else dims
    tile = re.match(r"T\(([\d,]+)\)", rest)
    sides = [int(n) for n in tile[1].split(",")] if tile else []
    for j, side in enumerate(reversed(sides[-len(dims) :] if dims else []), 1):
        dims[-j] = -(-dims[-j] // side) * side
    return hlo.size(f"{kind}[{','.join(map(str, dims))}]"), "S(1)" in rest


def _shares(block):
    """Of all values of a kernel the share that is read, and of its results written."""
    inside = {x.name: x for x in block}
    count = {x.name: _count(x.shape) for x in block}
    root = block[-1]
    needed = {root.name: 1.0}
    for x in reversed(block):
        for i, name in enumerate(x.operands):
            share = needed.get(x.name, 0.0)
            if i == 0 and x.op in _TAKE:
                share *= count[x.name] / count.get(name, count[x.name])
            elif i == 0 and x.op in _PUT:
                share *= _put(x, inside) * (x.op == "scatter")
            elif x.op != "tuple":
                share *= max(1, count[x.name] / count.get(name, count[x.name]))
            needed[name] = min(1.0, needed.get(name, 0.0) + share)
    results = [inside[n] for n in root.operands] if root.op == "tuple" else [root]
    return needed, [_put(x, inside) for x in results]


def _put(x, inside):
    """The share of a result that is written: where an argument changes, the changes."""
    while x.op == "bitcast" and x.operands[0] in inside:
        x = inside[x.operands[0]]
    if x.op not in _PUT:
        return 1.0
    changed = inside.get(x.operands[0], x)
    while changed.op == "bitcast" and changed.operands[0] in inside:
        changed = inside[changed.operands[0]]
    if changed is not x and changed.op != "parameter":
        return 1.0  # made here, and written whole
    update = inside[x.operands[1 if x.op == _PUT[0] else -1]]
    return _count(update.shape) / _count(x.shape)


def _count(shape):
    """How many numbers arrays have, one at least."""
    sizes = (found[2].split(",") for found in _ARRAY.finditer(shape))
    return max(1, sum(math.prod(int(n.lstrip("<=")) for n in s if n) for s in sizes))
