"""Reads an optimised XLA program: its kernels, the memory that they move, and what is likely slow or imprecise."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
LOW = {"bf16", "f16"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What takes no time of its own: values are renamed, or an earlier operation is waited for.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
CONTROL = ("conditional", "while", "call")
LARGE = 16 << 20  # a copy or transpose that writes this many bytes is a suspect

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_AROUND = re.compile(r"((?:\w+\()*)(.*?)\)*")
_NAME = re.compile(r'op_name="([^"]*)"')
_OPERAND = re.compile(r"%([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name, opcode: of the instruction.
      shape: of its result, as written in the program.
      operands: names of its operands.
      called: names of the computations that it calls.
      target: for a custom call, the function called.
      module: the module that it comes from, see `module_name`.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    target: str
    module: str

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return shape_bytes(self.shape)

    @property
    def dtypes(self) -> set[str]:
        return {kind for kind, _ in _SHAPE.findall(self.shape)}


@dataclasses.dataclass(frozen=True)
class Suspect:
    """Something that is likely slow or imprecise.

    Attributes:
      kind: what it is.
      module: where it comes from.
      size: bytes of its result.
    """

    kind: str
    module: str
    size: int


def shape_bytes(shape: str) -> int:
    """Returns the bytes of all arrays in a shape such as "(f32[2,3]{1,0}, s32[])"."""
    total = 0
    for kind, dimensions in _SHAPE.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind) or (int(digits[0]) if digits else 0)
        count = 1
        for length in filter(None, dimensions.split(",")):
            count *= int(length)
        total += count * bits // 8
    return total


def module_name(op_name: str) -> str:
    """Returns the path of the module in the name of an operation, without JAX's transformations.

    "jit(step)/student/transpose(jvp(HFDNet))/alignment/dot_general" -> "student/HFDNet/alignment, backward"
    """
    parts = []
    for part in op_name.split("/")[:-1]:
        around, name = _AROUND.fullmatch(part).groups()
        # Names with a dot are methods, those with an arrow einsum's formulas.
        if name and "jit(" not in around and "." not in name and "->" not in name:
            parts.append(name)
    backward = ", backward" if "transpose(" in op_name else ""
    return ("/".join(parts) or op_name.rpartition("/")[2]) + backward


class Program:
    """An optimised program, parsed from its text.

    Attributes:
      computations: name -> instructions.
      entry: name of the computation that starts.
      aliased: number of results that reuse the memory of an argument.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", ""
        head, _, body = text.partition("\n")
        self.aliased = len(re.findall(r"\{[\d, ]*\}: \(\d+,", head))
        for line in body.splitlines():
            if found := _HEAD.match(line):
                current = found[2]
                self.computations[current] = []
                self.entry = current if found[1] else self.entry
            elif current and (found := _LINE.match(line)):
                self.computations[current].append(_parse(found[2], found[3]))

    def kernels(self) -> Iterator[Instruction]:
        """Yields what the device runs one after the other: also the branches and bodies, each once."""
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for instruction in self.computations[name]:
                if instruction.opcode in CONTROL:
                    waiting += instruction.called
                elif instruction.opcode not in FREE and not instruction.opcode.endswith("-done"):
                    yield instruction

    def moved(self) -> int:
        """Bytes that the kernels read and write, if each reads its operands and writes its results once."""
        sizes = self._sizes()
        return sum(one.size + sum(sizes.get(name, 0) for name in one.operands) for one in self.kernels())

    def collectives(self) -> dict[str, tuple[int, int]]:
        """Returns collective operation -> (number, bytes of the results on one chip)."""
        found: dict[str, list[int]] = collections.defaultdict(list)
        sizes = self._sizes()
        for one in self.kernels():
            opcode = one.opcode.removesuffix("-start")
            if opcode in COLLECTIVES:
                # Except for all-reduce, the result of a start holds the operands as well.
                both = one.opcode in ("all-gather-start", "collective-permute-start")
                found[opcode].append(one.size - both * sum(sizes.get(name, 0) for name in one.operands))
        return {opcode: (len(sizes), sum(sizes)) for opcode, sizes in found.items()}

    def suspects(self) -> list[Suspect]:
        """Returns everything suspicious, the largest first."""
        found = [Suspect(kind, one.module, one.size) for one in self.everything() for kind in self._kinds(one)]
        for one in self.kernels():
            if one.size >= LARGE and (kind := self._rearranges(one)):
                found.append(Suspect(kind, one.module, one.size))
        return sorted(found, key=lambda suspect: -suspect.size)

    def _sizes(self) -> dict[str, int]:
        return {one.name: one.size for one in self.everything()}

    def everything(self) -> Iterator[Instruction]:
        for lines in self.computations.values():
            yield from lines

    def _kinds(self, one: Instruction) -> Iterator[str]:
        if one.dtypes & {"f64", "c128"}:
            yield "float64"
        if one.opcode == "conditional":
            yield "conditional"
        if one.opcode == "sort" or "sort" in one.target.lower():
            yield "sort"
        if one.opcode in ("send", "recv", "infeed", "outfeed") or "callback" in one.target or "S(5)" in one.shape:
            yield "host transfer"
        if one.opcode.removesuffix("-start") in ("all-reduce", "reduce-scatter") and one.dtypes & LOW:
            yield "low-precision sum over chips"
        if one.opcode in ("scatter", "select-and-scatter"):
            sums = any(inner.opcode == "add" for name in one.called for inner in self.computations.get(name, ()))
            yield "low-precision scatter sum" if sums and one.dtypes & LOW else "scatter"

    def _rearranges(self, one: Instruction) -> str:
        """Returns "transpose" or "copy" for a kernel that changes the order of its elements or only copies them."""
        inner = [part.opcode for name in one.called for part in self.computations.get(name, ())]
        if one.opcode == "transpose" or "transpose" in inner:
            return "transpose"
        return "copy" if one.opcode in ("copy", "copy-start") or set(inner) - set(FREE) == {"copy"} else ""


def _parse(name: str, text: str) -> Instruction:
    """Parses what follows the equals sign of an instruction."""
    opcode = _OPCODE.search(" " + text)
    start = opcode.start() if opcode else len(text)
    shape, rest = text[: max(start - 1, 0)], text[start:]
    rest = rest.partition(", backend_config=")[0]
    operands = rest.partition(")")[0]
    called = _CALLED.findall(rest)
    if branches := _BRANCHES.search(rest):
        called += [part.strip().lstrip("%") for part in branches[1].split(",")]
    op_name, target = _NAME.search(rest), _TARGET.search(rest)
    return Instruction(
        name,
        opcode[1] if opcode else "",
        shape,
        tuple(_OPERAND.findall(operands)),
        tuple(called),
        target[1] if target else "",
        module_name(op_name[1]) if op_name else "unnamed",
    )


def grouped(suspects: Sequence[Suspect]) -> list[tuple[str, str, int, int]]:
    """Returns (kind, module, number, bytes) for each kind and module, by kind, the largest first."""
    found: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for suspect in suspects:
        found[suspect.kind, suspect.module].append(suspect.size)
    rows = [(kind, module, len(sizes), sum(sizes)) for (kind, module), sizes in found.items()]
    return sorted(rows, key=lambda row: (row[0], -row[3]))
