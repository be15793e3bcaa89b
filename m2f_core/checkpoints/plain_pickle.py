"""A pickle of plain containers and numpy arrays, read without running anything that it asks for.

A pickle is a program for a stack machine, and two of its instructions call any function that the pickle names. The
machine here has only the instructions that lists, tuples, dictionaries, numbers, strings and arrays need, and it calls
no function: it implements the few names in `ALLOWED` itself and refuses every other name. Memory stays in proportion to
the file: declared data must be present, and nothing is copied twice. The values of arrays are not read; they stay views
of the given bytes, so that reading names and shapes of a large file costs little.

The instructions are described in the standard library's pickletools.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from m2f_core.checkpoints.pickled_arrays import PickledArray, PickledDtype, PlainPickleError, printable

MAX_INSTRUCTIONS = 10_000_000  # a checkpoint has about 20 for each of its tensors
MAX_NAME_BYTES = 500
# Numbers as keys of dictionaries, in the whole pickle; the state of an optimizer has some hundreds. An attacker can
# choose numbers that share one hash (the multiples of 2**61 - 1), and each is compared with all before. Strings are
# hashed with a secret.
MAX_NUMBER_KEYS = 5_000
MAX_KEY = 2**63  # longer numbers take time to hash, each time
LATIN_1 = ("latin1", "latin-1")

ARRAY_CLASS = ("numpy", "ndarray")
# Functions by their names in pickles of numpy 1 and 2.
ALLOWED = {
    ARRAY_CLASS: "array class",
    ("numpy", "dtype"): "dtype",
    **{
        (f"numpy.{core}.multiarray", name): meaning
        for core in ("core", "_core")
        for name, meaning in (("_reconstruct", "array"), ("scalar", "scalar"))
    },
    ("numpy.core.numeric", "_frombuffer"): "array of buffer",
    ("numpy._core.numeric", "_frombuffer"): "array of buffer",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "no bytes",  # for an empty array in protocol 2
    ("collections", "OrderedDict"): "dictionary",
}


class _Machine:
    """Runs one pickle. `marks` are heights of the stack; entries below the last mark cannot be taken."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded: dict[str, bytes] = {}
        self.num_number_keys = 0

    def run(self) -> Any:
        if bytes(self.data[:1]) != pickle.PROTO:
            raise PlainPickleError("is not a pickle of protocol 2 to 5")
        for _ in range(MAX_INSTRUCTIONS):
            opcode = bytes(self.take(1))
            if opcode == pickle.STOP:
                return self.pop()
            if opcode in OPERANDS:
                self.stack.append(OPERANDS[opcode](self))
            elif opcode in INSTRUCTIONS:
                INSTRUCTIONS[opcode](self)
            else:
                raise PlainPickleError(f"refuses the pickle instruction {opcode!r}, which plain containers do not need")
        raise PlainPickleError(f"has more than {MAX_INSTRUCTIONS} instructions")

    def take(self, length: int) -> memoryview:
        if length > len(self.data) - self.position:
            raise PlainPickleError("is cut off")
        self.position += length
        return self.data[self.position - length : self.position]

    def number(self, length: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(length), "little", signed=signed)

    def text(self, length: int) -> str:
        return str(self.take(length), "utf-8", "surrogatepass")

    def line(self) -> str:
        head = bytes(self.data[self.position : self.position + MAX_NAME_BYTES])
        line, newline, _ = head.partition(b"\n")
        if not newline:
            raise PlainPickleError("has a name without an end")
        self.take(len(line) + 1)
        return line.decode("utf-8")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PlainPickleError("takes more from its stack than it has put there")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise PlainPickleError("takes more from its stack than it has put there")
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def encode(self, text: str) -> bytes:
        """The bytes that Python 2, or protocol 2 of Python 3, wrote as a string; one object per string."""
        if text not in self.encoded:
            self.encoded[text] = text.encode("latin-1")
        return self.encoded[text]

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def tuple_of(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.stack.append(tuple(reversed(items)))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PlainPickleError(f"recalls entry {index}, which it did not store")
        self.stack.append(self.memo[index])

    def top(self, kind: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise PlainPickleError(f"expects a {kind.__name__} on its stack, but there is none")
        return self.stack[-1]

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        self.top(dict).update(self.pairs(items))

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        """`items` alternate between keys and values."""
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise PlainPickleError("has a key without a value")
        for key in keys:
            # Hashing a million nested tuples would overflow the interpreter's own stack.
            if not isinstance(key, (str, int, float, type(None))):
                raise PlainPickleError(f"has a {type(key).__name__} as a key of a dictionary")
            if isinstance(key, int) and not -MAX_KEY <= key < MAX_KEY:
                raise PlainPickleError("has a number of more than 64 bits as a key of a dictionary")
            self.num_number_keys += not isinstance(key, str)
        if self.num_number_keys > MAX_NUMBER_KEYS:
            raise PlainPickleError(f"has more than {MAX_NUMBER_KEYS} numbers as keys of dictionaries")
        return dict(zip(keys, values, strict=True))

    def look_up(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in ALLOWED:
            full_name = f"{printable(module)}.{printable(name)}"
            raise PlainPickleError(
                f"refuses {full_name}: only numpy arrays in plain containers are read, nothing is run"
            )
        self.stack.append(_Global(module, name))

    def call(self) -> None:
        """Compute the result of a function in ALLOWED. Arguments that the real function would not get are refused."""
        arguments, function = self.pop(), self.pop()
        meaning = ALLOWED[function.module, function.name] if isinstance(function, _Global) else None
        array = PickledArray()
        match meaning, arguments:
            case "array", (_Global() as kind, tuple(), _) if (kind.module, kind.name) == ARRAY_CLASS:
                result: object = array
            case "array of buffer", (data, dtype, shape, "C" | "F" as order):
                array.set_values(shape, dtype, data, order)
                result = array
            case "dtype", (code, *_):
                result = PickledDtype(code)
            case "scalar", (dtype, data):
                array.set_values((), dtype, data, "C")
                result = array.values[()]
            case "encode", (str(text), encoding) if encoding in LATIN_1:
                result = self.encode(text)
            case "no bytes", ():
                result = b""
            case "dictionary", ():
                result = {}
            case "dictionary", (list(pairs),) if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                result = self.pairs([entry for pair in pairs for entry in pair])  # the form that Python 2 wrote
                pairs.clear()  # otherwise further calls could copy them again and again
            case _:
                raise PlainPickleError(
                    f"calls {meaning or type(function).__name__!r} with arguments that it does not take"
                )
        self.stack.append(result)

    def build(self) -> None:
        state, target = self.pop(), self.top(object)
        match target, state:
            case PickledArray(), (_, shape, dtype, fortran, data):
                raw = self.encode(data) if isinstance(data, str) else data
                target.set_values(shape, dtype, raw, "F" if fortran is True else "C")
            case PickledDtype(), _:
                target.set_state(state)
            case dict(), dict():
                pass  # attributes of an OrderedDict, such as torch's state_dict(); they are dropped
            case _:
                raise PlainPickleError(f"refuses to set the state of a {type(target).__name__}")


class _Global:
    """A name of ALLOWED on the stack; only the name, not the object itself."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name


OPERANDS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.NONE: lambda m: None,
    pickle.NEWTRUE: lambda m: True,
    pickle.NEWFALSE: lambda m: False,
    pickle.BININT: lambda m: m.number(4, signed=True),
    pickle.BININT1: lambda m: m.number(1),
    pickle.BININT2: lambda m: m.number(2),
    pickle.LONG1: lambda m: m.number(m.number(1), signed=True),
    pickle.LONG4: lambda m: m.number(m.number(4), signed=True),
    pickle.BINFLOAT: lambda m: struct.unpack(">d", m.take(8))[0],
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.number(1)),
    pickle.BINUNICODE: lambda m: m.text(m.number(4)),
    pickle.BINUNICODE8: lambda m: m.text(m.number(8)),
    pickle.SHORT_BINSTRING: lambda m: str(m.take(m.number(1)), "latin-1"),  # Python 2
    pickle.BINSTRING: lambda m: str(m.take(m.number(4)), "latin-1"),
    pickle.SHORT_BINBYTES: lambda m: m.take(m.number(1)),
    pickle.BINBYTES: lambda m: m.take(m.number(4)),
    pickle.BINBYTES8: lambda m: m.take(m.number(8)),
    pickle.BYTEARRAY8: lambda m: m.take(m.number(8)),
    pickle.EMPTY_TUPLE: lambda m: (),
    pickle.EMPTY_LIST: lambda m: [],
    pickle.EMPTY_DICT: lambda m: {},
}
INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda m: _check_protocol(m.number(1)),
    pickle.FRAME: lambda m: _ignore(m.take(8)),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda m: m.stack.append(tuple(m.pop_to_mark())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_to_mark()),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.BINPUT: lambda m: m.remember(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number(4)),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: lambda m: m.recall(m.number(1)),
    pickle.LONG_BINGET: lambda m: m.recall(m.number(4)),
    pickle.GLOBAL: lambda m: m.look_up(m.line(), m.line()),
    pickle.INST: lambda m: m.look_up(m.line(), m.line()),  # never goes further: plain containers do not need it
    pickle.STACK_GLOBAL: lambda m: m.look_up(*[m.pop(), m.pop()][::-1]),
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
}


def read_plain_pickle(data: bytes | memoryview) -> object:
    """The object in `data`: lists, tuples, dictionaries, numbers, strings, None, bytes as views, and `PickledArray`s.

    Arrays are views of `data`. Raises PlainPickleError for everything else, before any code in it could run.
    """
    try:
        return _Machine(memoryview(data)).run()
    except UnicodeError:
        raise PlainPickleError("has a string that cannot be decoded") from None


def _check_protocol(version: int) -> None:
    if not 2 <= version <= 5:
        raise PlainPickleError(f"is not a pickle of protocol 2 to 5, but {version}")


def _ignore(_: object) -> None:
    """Ignore a frame, which says how much to read at once: all data are here."""
