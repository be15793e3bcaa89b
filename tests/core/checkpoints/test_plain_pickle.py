"""Pickles that Python and numpy write are read as they read them; anything that would run is refused by name."""

import collections
import copyreg
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from m2f_core.checkpoints.pickled_arrays import DTYPES, PickledArray, PlainPickleError
from m2f_core.checkpoints.plain_pickle import read_plain_pickle

PROTOCOLS = (2, 3, 4, 5)
ARRAYS = hnp.arrays(
    dtype=st.sampled_from([order + code for code in DTYPES for order in "<>"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
).flatmap(
    lambda array: st.sampled_from([array, np.asfortranarray(array), array.T, array[::2] if array.ndim else array])
)
KEYS = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.none(), st.booleans())
SCALARS = hnp.from_dtype(np.dtype("f4")) | hnp.from_dtype(np.dtype("i8")) | hnp.from_dtype(np.dtype("?"))
LEAVES = st.one_of(KEYS, st.binary(), st.integers(-(2**900), 2**900), ARRAYS, SCALARS)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(collections.OrderedDict),
    ),
    max_leaves=12,
)


def refusal(data: bytes) -> str:
    with pytest.raises(PlainPickleError) as error:
        read_plain_pickle(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal in type and value, where ours are arrays in boxes, views of bytes and plain dictionaries."""
    if isinstance(mine, PickledArray):
        assert isinstance(theirs, np.ndarray)
        assert mine.values.shape == theirs.shape
        native = theirs.dtype.newbyteorder("=")  # numpy swaps bytes here and there
        assert mine.values.dtype.newbyteorder("=") == native
        assert mine.values.astype(native).tobytes() == theirs.astype(native).tobytes()
        assert not mine.values.flags.writeable
    elif isinstance(theirs, dict):
        assert type(mine) is dict
        assert list(map(repr, mine)) == list(map(repr, theirs))
        for my_value, their_value in zip(mine.values(), theirs.values(), strict=True):
            assert_same(my_value, their_value)
    elif isinstance(theirs, (list, tuple)):
        assert type(mine) is type(theirs)
        assert len(mine) == len(theirs)
        for my_value, their_value in zip(mine, theirs, strict=True):
            assert_same(my_value, their_value)
    elif isinstance(theirs, bytes):
        assert isinstance(mine, (bytes, memoryview))
        assert mine == theirs
    else:
        assert type(mine) is type(theirs)
        assert repr(mine) == repr(theirs)


@given(OBJECTS, st.sampled_from(PROTOCOLS), st.booleans())
def test_reads_what_python_writes(value: Any, protocol: int, in_python: bool) -> None:
    """Both of Python's own picklers, in each protocol; pickle.loads is the oracle."""
    file = io.BytesIO()
    try:
        (pickle._Pickler if in_python else pickle.Pickler)(file, protocol).dump(value)
    except AssertionError:  # the one in Python fails at b"" beside an empty array: there is one b"" in the process
        assert in_python and protocol == 5
        reject()
    assert_same(read_plain_pickle(file.getvalue()), pickle.loads(file.getvalue()))


@given(ARRAYS, st.sampled_from(PROTOCOLS))
def test_names_of_older_numpy(array: np.ndarray, protocol: int) -> None:
    """numpy 1 has its functions in numpy.core, where numpy 2 has numpy._core. Same length in protocol 2 and 3 only."""
    data = pickle.dumps(array, protocol)
    old = pickletools.optimize(data).replace(b"numpy._core.", b"numpy.core.")
    if protocol >= 4:  # names are strings of a given length
        old = old.replace(b"\x8c\x16numpy.core.multiarray", b"\x8c\x15numpy.core.multiarray")
        old = old.replace(b"\x8c\x13numpy.core.numeric", b"\x8c\x12numpy.core.numeric")
        old = old[:2] + (old[11:] if old[2:3] == pickle.FRAME else old[2:])  # its length is no longer right
    assert_same(read_plain_pickle(old), array)


def test_pickles_of_python_2() -> None:
    """Strings and the bytes of arrays were one type; an OrderedDict was called with a list of pairs."""
    raw = np.arange(6, dtype="<f4").tobytes()
    data = (
        b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01]q\x02(U\x01aq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04"
        b"cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01b\x87Rq\x07(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x08U\x02f4K\x00K\x01"
        b"\x87Rq\x09(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbea\x85R."
    )
    theirs = pickle.loads(data, encoding="latin1")
    assert isinstance(theirs, collections.OrderedDict)
    assert_same(read_plain_pickle(data), theirs)


def test_values_are_views_of_the_file() -> None:
    """Names and shapes of a large file cost no memory."""
    data = pickle.dumps({"model": {"weight": np.arange(1000.0)}}, 4)
    weight = read_plain_pickle(data)["model"]["weight"].values
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert start <= weight.__array_interface__["data"][0] < start + len(data)


def test_attributes_of_a_state_dict_are_dropped() -> None:
    weights = collections.OrderedDict(a=np.ones(2))
    weights._metadata = collections.OrderedDict(version=1)
    assert_same(read_plain_pickle(pickle.dumps(weights, 4)), {"a": np.ones(2)})


class Evil:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced

    def __call__(self) -> None:
        """Only callable objects may be pickled as the function of another call."""


class WithState:
    """Pickles as an allowed call whose result then gets a hostile state."""

    def __init__(self, reduced: tuple) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


# What Python 3 writes instead in protocol 2, for Python 2 to find
OLD_NAMES = {"builtins": "__builtin__", "copyreg": "copy_reg", "subprocess": "commands"}


def evil_objects(path: str) -> dict[str, tuple[Any, str]]:
    """Objects whose unpickling would make a file at `path`, and the name by which they are refused."""
    command = f"touch {path}"
    code = f"open({path!r}, 'w').close()"
    reconstruct = pickle.loads(pickle.dumps(np.ones(1).__reduce__()[0]))
    return {
        "os.system": (Evil(os.system, command), f"{os.system.__module__}.system"),
        "subprocess": (Evil(subprocess.Popen, ["touch", path]), "subprocess.Popen"),
        "eval": (Evil(eval, code), "builtins.eval"),
        "exec": (Evil(exec, code), "builtins.exec"),
        "getattr": (Evil(getattr, Evil(__import__, "os"), "system"), "builtins.getattr"),
        "import": (Evil(__import__, "os"), "builtins.__import__"),
        "nested": (Evil(Evil(getattr, np.ndarray, "tofile"), np.ones(1), path), "builtins.getattr"),
        "in a container": ({"model": {"a": [1, (Evil(os.system, command),)]}}, f"{os.system.__module__}.system"),
        "as a shape": (Evil(reconstruct, np.ndarray, Evil(os.system, command), b"b"), f"{os.system.__module__}.system"),
        "as a state": (WithState((reconstruct, (np.ndarray, (0,), b"b"), Evil(eval, code))), "builtins.eval"),
        "objects": (np.array([Evil(os.system, command)], dtype=object), "arrays of dtype O8"),
        "copyreg": (Evil(copyreg._reconstructor, Evil, object, None), "copyreg._reconstructor"),
        "partial": (Evil(__import__("functools").partial, os.system, command), "functools.partial"),
        "memmap": (Evil(np.memmap, path, "u1", "w+", 0, (1,)), "numpy.memmap"),
        "numpy.load": (Evil(np.load, path, None, True), "numpy.load"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", evil_objects("x"))
def test_what_would_run_is_refused_by_name(tmp_path: Path, name: str, protocol: int) -> None:
    target = tmp_path / "touched"
    value, refused = evil_objects(str(target))[name]
    module, _, rest = refused.partition(".")
    if protocol == 2 and module in OLD_NAMES:
        refused = f"{OLD_NAMES[module]}.{rest}"
    assert f"refuses {refused}" in refusal(pickle.dumps(value, protocol))
    assert not target.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_pickles_do_run_elsewhere(tmp_path: Path, protocol: int) -> None:
    """So that the test above shows something."""
    value, _ = evil_objects(str(tmp_path / "touched"))["os.system"]
    pickle.loads(pickle.dumps(value, protocol))
    assert (tmp_path / "touched").exists()


def program(*parts: bytes | str) -> bytes:
    return b"\x80\x04" + b"".join(part.encode("latin-1") if isinstance(part, str) else part for part in parts) + b"."


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (program("cos\nsystem\n", "U\x02id", b"\x85R"), "refuses os.system"),
        (program("(ios\nsystem\n"), "refuses os.system"),
        (program("cnumpy.testing._private.utils\nrunstring\n"), "refuses numpy.testing._private.utils.runstring"),
        (program("cnumpy.testing._private.extbuild\nbuild\n"), "refuses numpy.testing._private.extbuild.build"),
        (program("cnumpy.distutils.exec_command\nexec_command\n"), "refuses numpy.distutils.exec_command.exec_command"),
        (program("ctorch._utils\n_rebuild_tensor_v2\n"), "refuses torch._utils._rebuild_tensor_v2"),
        (program("cnumpy\nndarray.tofile\n"), "refuses numpy.ndarray.tofile"),
        (program(b"\x8c\x05numpy\x8c\x0dndarray.dumps\x93"), "refuses numpy.ndarray.dumps"),
        (
            program(b"\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93"),
            "refuses collections.OrderedDict.__",
        ),
        (program("ccollections\nnamedtuple\n"), "refuses collections.namedtuple"),
        (program("c_codecs\nopen\n"), "refuses _codecs.open"),
        (program("ca\x1b[2J\nb\n"), r"refuses 'a\x1b[2J'.b"),
        (program("NN", b"\x93"), "refuses a NoneType.a NoneType"),
        (program(b"\x82\x01"), "refuses the pickle instruction b'\\x82'"),  # an extension code of copyreg
        (program("Ppersistent\n"), "refuses the pickle instruction b'P'"),
        (program("U\x01aQ"), "refuses the pickle instruction b'Q'"),
        (program("cnumpy\nndarray\n", b")\x81"), "refuses the pickle instruction b'\\x81'"),  # NEWOBJ
        (program("cnumpy\nndarray\n", b")}\x92"), "refuses the pickle instruction b'\\x92'"),  # NEWOBJ_EX
        (program("(cnumpy\nndarray\no"), "refuses the pickle instruction b'o'"),
        (program(b"\x97"), "refuses the pickle instruction b'\\x97'"),  # a buffer out of band
        # Allowed names, used as they are not meant to be
        (program("cnumpy\nndarray\n)R"), "calls 'array class' with arguments"),
        (program("U\x01a)R"), "calls 'str' with arguments"),
        (program("c_codecs\nencode\nU\x01aU\x05rot13", b"\x86R"), "calls 'encode' with arguments"),
        (program("c__builtin__\nbytes\nK\x05", b"\x85R"), "calls 'no bytes' with arguments"),
        (program("ccollections\nOrderedDict\nK\x05", b"\x85R"), "calls 'dictionary' with arguments"),
        (program("ccollections\nOrderedDict\n}b"), "refuses to set the state of a _Global"),
        (program("]}b"), "refuses to set the state of a list"),
        (program("cnumpy\ndtype\nU\x01O", b"\x85R"), "refuses arrays of dtype O"),
        (program("cnumpy\ndtype\nU\x03V99", b"\x85R"), "refuses arrays of dtype V99"),
        (program("cnumpy\ndtype\n]", b"\x85R"), "refuses arrays of dtype a list"),
        (program("cnumpy\ndtype\nU\x02f4", b"\x85R(K\x03U\x01<]NNK\x04K\x04K\x00tb"), "refuses arrays of records"),
        # What the interpreter's own stack or memory would not survive
        (program("})", b"\x85" * 200_000, "Ns"), "has a tuple as a key"),
        (program(b"\x8e" + struct.pack("<Q", 2**62)), "is cut off"),
        (program(b"\x95" + struct.pack("<Q", 2**62)), "takes more from its stack"),
        (program(b"B" + struct.pack("<I", 2**32 - 1)), "is cut off"),
        (program(b"\x8b" + struct.pack("<i", -1)), "is cut off"),
        (program(b"j" + struct.pack("<I", 7)), "recalls entry 7"),
        # Machines that are out of step
        (b"", "is not a pickle of protocol 2 to 5"),
        (b"(lp0\n.", "is not a pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "is not a pickle of protocol 2 to 5, but 6"),
        (program(), "takes more from its stack"),
        (program("t"), "takes more from its stack"),
        (program("(R"), "takes more from its stack"),
        (program("NNs"), "expects a dict on its stack"),
        (program("}(Nu"), "has a key without a value"),
        (program(b"}\x8a\x09" + bytes(8) + b"\x01NsK"), "has a number of more than 64 bits as a key"),
        (program("NNa"), "expects a list on its stack"),
        (program("cnumpy"), "has a name without an end"),
        (program(b"\x8c\x01\xff"), "has a string that cannot be decoded"),
    ],
)
def test_hostile_programs_are_refused(data: bytes, refused: str) -> None:
    assert refused in refusal(data)


def test_memory_is_in_proportion_to_the_file() -> None:
    """A string that is encoded, or a list that becomes a dictionary, again and again with a few bytes each time."""
    text = "x" * 1_000_000
    again = b"c_codecs\nencode\nq\x01h\x00U\x06latin1\x86R" * 3
    data = program("](X" + "\x40\x42\x0f\x00", text, b"q\x00", again * 300, "e")
    tracemalloc.start()
    try:
        result = read_plain_pickle(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert len(result) == 901

    pairs = program("](]](K\x01K\x02eaq\x00", b"ccollections\nOrderedDict\nh\x00\x85R" * 2, "e")
    _, first, second = read_plain_pickle(pairs)
    assert (first, second) == ({1: 2}, {})


def test_endless_programs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2f_core.checkpoints.plain_pickle.MAX_INSTRUCTIONS", 1000)
    assert "has more than 1000 instructions" in refusal(program("N" * 2000))


WHOLE = pickle.dumps({"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2)}, "c": [1, (2.5, None)]}, 4)


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_truncated(length: int) -> None:
    refusal(WHOLE[:length])


@given(st.lists(st.tuples(st.integers(2, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.binary())
def test_damage_gives_an_error_of_ours_or_an_object(changes: list[tuple[int, int]], tail: bytes) -> None:
    damaged = bytearray(WHOLE)
    for position, value in changes:
        damaged[position] = value
    for data in (bytes(damaged), b"\x80\x04" + tail, WHOLE[: changes[0][0]] + tail):
        try:
            found = read_plain_pickle(data)
        except PlainPickleError as error:
            assert str(error)
        else:
            assert type(found).__module__ in ("builtins", "m2f_core.checkpoints.plain_pickle"), "nothing else is made"


def test_numpy_is_all_it_imports() -> None:
    code = "import sys, m2f_core.checkpoints.plain_pickle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
