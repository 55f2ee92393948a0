"""What XLA made of a program, read from the compiled text: its kernels, their bytes, its blocks.

Each computation is counted as often as it is called, and the body of a loop as
often as it runs. On a TPU only its main memory counts: what XLA places into the memory
of the core, S(1) in the text, is moved to and fro much faster.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_LEAST_XORS_A_BLOCK = 19  # of 20 rounds; the last is left out where the second word is not used
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_IN_CORE = re.compile(r"S\(\d+\)")
_ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](?:{[^}]*?(S\(\d+\))?})?")
_CALLED = re.compile(r"(calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations={([^}]*)}")
_TRIPS = re.compile(r'"known_trip_count":{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_WORKSPACE = re.compile(r"s8\[(\d+)\]")

# What starts no kernel: it names or groups buffers.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_STARTED_BEFORE = ("-done", "-update")  # ends of what a line before has started
_SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def called(self) -> Iterator[str]:
        """The computations that it calls."""
        yield from (name for _, name in _CALLED.findall(self.line))
        for names in _BRANCHES.findall(self.line):
            yield from re.findall(r"[\w.-]+", names)


class Kernel(NamedTuple):
    """What is started once, and how often: bytes are those of one run."""

    name: str
    opcode: str
    runs: int
    read: int
    written: int

    @property
    def moved(self) -> int:
        """Bytes read and written by all runs."""
        return self.runs * (self.read + self.written)


class Program:
    """A compiled program, by its computations."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, list[Instruction]] = {}
        lines: list[Instruction] = []
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                lines = self._computations.setdefault(start[2], [])
                if start[1]:
                    self._entry = start[2]
            elif found := _INSTRUCTION.match(line):
                name, type_, opcode, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")")[0]))
                lines.append(Instruction(name, type_, opcode, operands, line))

    def kernels(self) -> list[Kernel]:
        """What is started, in order; a fusion is one kernel.

        What a kernel only slices, or updates in place, counts as the part.
        """
        return list(self._kernels(self._entry, 1))

    def threefry_blocks(self) -> int:
        """Threefry blocks computed.

        What XLA has fused into several kernels, and computes again in each,
        counts several times. Within one it may still compute a block once for
        each element that the block is broadcast to, or only once.
        """
        partial = Counter[int]()
        whole = self._blocks(self._entry, 1, partial)
        return whole + sum(n * (count // _LEAST_XORS_A_BLOCK) for n, count in partial.items())

    def _kernels(self, name: str, runs: int) -> Iterator[Kernel]:
        types = {line.name: line.type for line in self._computations[name]}
        for line in self._computations[name]:
            if line.opcode in ("while", "call", "conditional"):
                for inner in line.called():
                    yield from self._kernels(inner, runs * self._times(line))
            elif line.opcode not in _FREE and not line.opcode.endswith(_STARTED_BEFORE):
                yield Kernel(line.name, line.opcode, runs, *self._moved(line, types))

    def _times(self, line: Instruction) -> int:
        """How often an instruction runs what it calls: all branches of a conditional once."""
        if line.opcode != "while":
            return 1
        if trips := _TRIPS.search(line.line):
            return int(trips[1])
        # The compiler for TPUs does not say. Its loops count from 0 to a constant.
        condition = self._computations[_CONDITION.search(line.line)[1]]
        bounds = [bound for inner in condition for bound in _BOUND.findall(inner.line)]
        if len(bounds) != 1:
            raise ValueError(f"a loop must have a known number of trips; got {line.line}.")
        return int(bounds[0])

    def _moved(self, kernel: Instruction, types: Mapping[str, str]) -> tuple[int, int]:
        sizes = [bytes_of(types.get(operand, "")) for operand in kernel.operands]
        written = bytes_of(kernel.type)
        if kernel.opcode.endswith("-start"):
            return _copied(kernel, types)
        if kernel.opcode in _SLICES:
            return written, written
        if kernel.opcode == "dynamic-update-slice":
            return sizes[1], sizes[1]
        if "__cublas" in kernel.line:  # returns its workspace too
            written -= sum(map(int, _WORKSPACE.findall(kernel.type)))
        if kernel.opcode != "fusion":
            return sum(sizes), written
        body = self._computations[next(kernel.called())]
        for number, size in enumerate(sizes):
            sizes[number] = min(size, self._touched(body, number))
        inner = {line.name: line.type for line in body}
        for line in body:
            if line.opcode == "dynamic-update-slice" and bytes_of(line.type) <= written:
                written -= bytes_of(line.type) - bytes_of(inner[line.operands[1]])
        return sum(sizes), written

    def _touched(self, body: Sequence[Instruction], number: int) -> float:
        """Bytes of a parameter of a fusion that are read; without bound if all of it may be."""
        names = {line.name for line in body if f"parameter({number})" in line.line}
        names |= {
            line.name for line in body if line.opcode == "bitcast" and names & {*line.operands}
        }
        users = [line for line in body if names & {*line.operands} and line.name not in names]
        read = 0.0
        for line in users:
            if line.opcode == "fusion":  # a TPU has fusions inside of fusions
                inner = self._computations[next(line.called())]
                given = (i for i, operand in enumerate(line.operands) if operand in names)
                read += sum(self._touched(inner, place) for place in given)
            elif line.operands[0] not in names or names & {*line.operands[1:]}:
                return math.inf
            elif line.opcode in _SLICES:
                read += bytes_of(_IN_CORE.sub("", line.type))
            elif line.opcode != "dynamic-update-slice":
                return math.inf
        return read if users else math.inf

    def _blocks(self, name: str, runs: int, partial: Counter[int]) -> int:
        """Whole blocks of a computation; the xors of parts of a block are added to `partial`."""
        xors, blocks = Counter[int](), 0
        for line in self._computations[name]:
            if line.opcode == "xor" and line.type.startswith("u32"):
                xors[elements_of(line.type)] += 1
            for inner in line.called():
                blocks += self._blocks(inner, runs * self._times(line), partial)
        for elements, count in xors.items():
            blocks += runs * elements * (count // _LEAST_XORS_A_BLOCK)
            partial[elements] += runs * count if count < _LEAST_XORS_A_BLOCK else 0
        return blocks


def _copied(start: Instruction, types: Mapping[str, str]) -> tuple[int, int]:
    """What a copy or slice reads and writes, which runs beside what follows it."""
    # Its type has what is read, what is written, and a context.
    written = re.split(r", (?=[a-z]+\d*\[)", start.type)[1]
    size = bytes_of(_IN_CORE.sub("", written))
    return size if bytes_of(types[start.operands[0]]) else 0, bytes_of(written)


def bytes_of(type_: str) -> int:
    """Bytes of an array, or of all in a tuple."""
    return sum(size * bits + 7 >> 3 for bits, size in _arrays(type_))


def elements_of(type_: str) -> int:
    """Elements of an array, or of all in a tuple."""
    return sum(size for _, size in _arrays(type_))


def _arrays(type_: str) -> Iterator[tuple[int, int]]:
    """Bits of an element, and elements, of each array in a type."""
    for bits, sizes, in_core in _ARRAY.findall(type_):
        if not in_core:
            yield int(bits or 8), math.prod(int(n) for n in sizes.split(",") if n)
