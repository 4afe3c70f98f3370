r"""What a compiled program sends, holds and launches, read from its final HLO text.

The bytes that a device sends are those of ring algorithms, which is how jaxsp counts:
of M devices in a group, for an operand of n bytes,

    all-reduce             2 (M − 1)/M n
    all-gather             (M − 1) n
    all-to-all             (M − 1)/M n
    reduce-scatter         (M − 1)/M n
    collective-permute     n for each device that one sends to

without what a compiler adds to fill its tiles. A loop counts as often as it is known to
run, and once where nobody knows; of branches the cheapest makes the least, the dearest
the most.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Collective", "Instruction", "Program", "read"]

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# What names a part of a value, or holds others together: nothing runs for it.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "iota"}
_AROUND = {"while", "conditional", "call", "async-start"}
_CALLS = re.compile(
    r"(?:calls|body|to_apply|(?:true|false|called)_computations?|"
    r"branch_computations|async_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


class Instruction(NamedTuple):
    """A line of HLO.

    Attributes:
      name: its name, without the %.
      op: what it does, such as `fusion` or `all-gather-start`.
      shape: the text of its result's shape.
      operands: names.
      rest: the text behind the operands: attributes.
    """

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    rest: str

    @property
    def size(self) -> int:
        """The bytes of the result, of a tuple those of all parts."""
        return size(self.shape)

    @property
    def called(self) -> list[str]:
        """The computations that it runs; not those of a reduction's addition."""
        if self.op.startswith((*COLLECTIVES, "reduce", "scatter", "sort", "select")):
            return []
        texts = _CALLS.findall(self.rest)
        return [name.strip(" %") for text in texts for name in text.split(",")]


class Collective(NamedTuple):
    """A collective of the program.

    Attributes:
      op: `all-reduce`, `all-gather` ...
      shape: the text of what it moves, without layouts.
      sent: bytes that a device sends, each time.
      asynchronous: whether it starts in one place and is waited for in another.
      between: how many kernels are scheduled between start and done.
      products: how many of those have matrix products or convolutions.
    """

    op: str
    shape: str
    sent: int
    asynchronous: bool
    between: int
    products: int


class Program:
    """A compiled program; `read` makes it of a text."""

    def __init__(self, computations: dict[str, list[Instruction]], entry: str):
        self.computations, self.entry = computations, entry
        self._chains: dict[str, list[Instruction]] = {}
        for block in computations.values():
            self._join(block)

    def collectives(self) -> list[Collective]:
        """All of them, those of branches and loops once each."""
        return [
            self._collective(block, i)
            for block in map(self.computations.get, self._reached())
            for i, line in enumerate(block or ())
            if _collective_op(line) and not line.op.endswith("-done")
        ]

    def sent(self) -> tuple[int, int]:
        """The bytes that a device sends, at least and at most."""

        def bytes_sent(block, i):
            collective = _collective_op(block[i]) and not block[i].op.endswith("-done")
            return self._collective(block, i).sent if collective else 0

        return self.total(bytes_sent, self.entry, inside_fusions=True)

    def kernels(self) -> int:
        """How many instructions launch something, at most; collectives apart."""
        return self.total(lambda block, i: runs(block[i]), self.entry)[1]

    def total(self, of, name, inside_fusions=False):
        """The sum of `of(block, i)` over what runs: over the least and the most."""
        least = most = 0
        block = self.computations[name]
        for i, line in enumerate(block):
            own = of(block, i)
            least, most = least + own, most + own
            if not (inside_fusions or line.op in _AROUND):
                continue
            inner = [
                self.total(of, c, inside_fusions)
                for c in line.called
                if c in self.computations
            ]
            if line.op == "conditional":
                least += min(a for a, _ in inner)
                most += max(b for _, b in inner)
            else:
                times = self._times(line) if line.op == "while" else 1
                least += times * sum(a for a, _ in inner)
                most += times * sum(b for _, b in inner)
        return least, most

    def _times(self, loop):
        """How often a loop runs, which counts from 0; once if nobody knows."""
        found = re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.rest)
        test = re.search(r"condition=%([\w.\-]+)", loop.rest)
        if found or not test:
            return int(found[1]) if found else 1
        block = self.computations[test[1]]
        constants = {
            x.name: x.rest[1:].partition(")")[0] for x in block if x.op == "constant"
        }
        counter, limit = (*block[-1].operands, "", "")[:2]
        below = block[-1].op == "compare" and "direction=LT" in block[-1].rest
        known = below and counter not in constants and limit in constants
        return int(constants[limit]) if known else 1

    def _join(self, block):
        """Make one collective of a chain of them, and keep what is between its ends.

        For a TPU a collective beside which something else is computed is written as
        several, in the fusions that start it, carry it on and wait for it.
        """
        chains: dict[str, list[tuple[int, str, int]]] = {}
        for at, line in enumerate(block):
            for name in line.called if line.op == "fusion" else ():
                for i, inner in enumerate(self.computations.get(name, ())):
                    chain = re.search(r"channel_id=(\d+).*chain_id=", inner.rest)
                    if chain and _collective_op(inner):
                        chains.setdefault(chain[1], []).append((at, name, i))
        for (start, name, i), *others in chains.values():
            for _, where, j in others:
                part = self.computations[where][j]
                self.computations[where][j] = part._replace(op="continued")
            if others:
                first = self.computations[name][i].name
                self._chains[first] = block[start + 1 : others[-1][0]]

    def _reached(self) -> Iterator[str]:
        """The computations that run, from the entry on, each once."""
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            yield name
            for line in self.computations[name]:
                waiting += [c for c in line.called if c in self.computations]

    def _collective(self, block, at):
        line, shapes = block[at], {x.name: x.shape for x in block}
        op = _collective_op(line)
        moved = [shapes[name] for name in line.operands if name in shapes]
        bytes_moved = sum(map(size, moved))
        members = _members(line.rest)
        if op == "collective-permute":
            sent = bytes_moved * _fan_out(line.rest)
        elif op == "all-gather":
            sent = bytes_moved * (members - 1)
        else:
            sent = bytes_moved * (members - 1) // members
            sent *= 2 if op == "all-reduce" else 1
        between = self._chains.get(line.name)
        if line.op.endswith("-start"):
            between = list(_until_done(block, at))
        return Collective(
            op=op,
            shape=" ".join(re.sub(r"\{.*?\}(?=[,) ]|$)", "", shape) for shape in moved),
            sent=sent,
            asynchronous=between is not None,
            between=sum(runs(x) or x.op in _AROUND for x in between or ()),
            products=sum(map(self._multiplies, between or ())),
        )

    def _multiplies(self, line):
        if line.op in ("dot", "convolution"):
            return True
        if line.op == "custom-call":
            return bool(re.search(r"gemm|matmul|conv\w*(For|Back)", line.rest, re.I))
        if line.op == "fusion" and "triton_gemm" in line.rest:
            return True
        inner = (self.computations.get(name, ()) for name in line.called)
        return any(self._multiplies(x) for block in inner for x in block)


def read(text: str) -> Program:
    """Read what `Compiled.as_text()` returns.

    Args:
      text: HLO after all passes, in the order of its schedule.

    Returns:
      The program.

    Raises:
      ValueError: if the text has no entry.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, block = None, []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            block = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _instruction(line):
            block.append(found)
    if entry is None:
        raise ValueError("text must be HLO with an ENTRY, got none.")
    return Program(computations, entry)


def _instruction(line):
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, text = found.groups()
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    op, _, _ = text.partition("(")
    text = text[len(op) :]
    end = _closing(text)
    operands = tuple(re.findall(r"%([\w.\-]+)", text[:end]))
    # What stands in the brackets of these is no operand.
    rest = text if op in ("constant", "parameter") else text[end:]
    return Instruction(name, op, shape, operands, rest)


def _closing(text):
    """Behind the bracket that closes the one a text begins with."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"text must close its brackets, got {text[:60]!r}.")


def size(shape):
    bits = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", shape):
        width = _BITS.get(kind)
        if width is None:
            width = int(re.findall(r"\d+", kind)[0])  # f32, u8, f8e4m3fn
        for size in filter(None, sizes.split(",")):
            width *= int(size.lstrip("<="))
        bits += width
    return -(-bits // 8)


def _collective_op(line):
    op = re.sub(r"-(start|done)$", "", line.op)
    return op if op in COLLECTIVES else ""


def _members(rest):
    """How many devices are in a group."""
    found = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if found:
        return int(found[1])
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return found[1].count(",") + 1 if found else 1


def _fan_out(rest):
    """To how many others a device sends at most."""
    found = re.search(r"source_target_pairs=\{([\d{},]*)\}", rest)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1] if found else "")
    senders = [a for a, b in pairs if a != b]
    return max(map(senders.count, senders), default=0)


def _until_done(block, at):
    """The instructions of the schedule until what `block[at]` starts is waited for."""
    waited = {block[at].name}
    for line in block[at + 1 :]:
        if waited & set(line.operands) and line.op.endswith("-done"):
            return
        yield line


def runs(line):
    return not (
        line.op in _FREE | _AROUND
        or line.op.endswith("-done")
        or _collective_op(line)
        or (line.op == "custom-call" and "ConcatBitcast" in line.rest)
    )
