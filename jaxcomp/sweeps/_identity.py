"""What a value is, as a hash that another process finds again: no ids, no addresses, no order of sets."""

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import jax
import numpy as np
from jax.tree_util import default_registry


def config_key(config: Any) -> str:
    """The SHA-256, in hexadecimal, of names, classes, numbers and bytes; the same in any process.

    It does not depend on the order of keywords. In it

    - a Python integer and the float of the same value are one; an array counts by dtype, shape and bytes;
    - an object that JAX knows (a solver, a constraint, a dict) counts by class and contents, static fields included;
      a dataclass that it does not know by class and fields, a member of an enumeration by name;
    - a function or a class counts by module and name, and not by what it does. One without a name of its own, a lambda
      or a function made in another, counts by its bytecode, its defaults and what it closes over: such keys may differ
      between versions of Python.

    Raises:
        ValueError: it holds an object that cannot be told from others of its class.

    >>> config_key({"density": 0.5, "seed": 1}) == config_key({"seed": 1.0, "density": 0.5})
    True
    """
    return _digest(_tokens(config, _Walk(strict=True)))


def code_key(fn: Any) -> str:
    """The same of what a function does: its own bytecode, defaults and what it closes over, but not what it calls.

    Comments and layout do not count. Of an object that cannot be told from others of its class the class counts.
    """
    return _digest(_does(fn, _Walk(strict=False)))


def name_of(fn: Any) -> str:
    """Module and name of a function or class, of what a partial or a wrapper stands for, or of an object's class."""
    while isinstance(fn, functools.partial) or hasattr(fn, "__wrapped__"):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__wrapped__
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"


@dataclasses.dataclass(frozen=True)
class _Walk:
    """On the way through a value: where it is, and what it is inside of, since closures may hold themselves."""

    strict: bool
    path: str = ""
    inside: frozenset[int] = frozenset()

    def into(self, value: Any, name: Any = "") -> "_Walk":
        path = ".".join(filter(None, (self.path, str(name))))
        return dataclasses.replace(self, path=path, inside=self.inside | {id(value)})


def _digest(tokens: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for token in tokens:
        found.update(len(token).to_bytes(8, "big") + token)
    return found.hexdigest()


def _text(*words: Any) -> Iterator[bytes]:
    yield from (str(word).encode() for word in words)


def _tokens(value: Any, walk: _Walk) -> Iterator[bytes]:
    """Words that spell the value, and no other value."""
    if id(value) in walk.inside:
        yield from _text("itself")
    elif value is None or value is Ellipsis or isinstance(value, bool | str | complex | range | slice | np.dtype):
        yield from _text(type(value).__name__, value)
    elif isinstance(value, enum.Enum):
        yield from _text("member", name_of(type(value)), value.name)
    elif isinstance(value, int | float):
        yield from _text("number", int(value) if value == value // 1 and abs(value) != np.inf else float(value).hex())
    elif isinstance(value, bytes):
        yield from (b"bytes", value)
    elif isinstance(value, PurePath):
        yield from _text("path", value.as_posix())
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        yield from _array(value, walk)
    elif isinstance(value, type | types.BuiltinFunctionType | np.ufunc):
        yield from _text("named", name_of(value))
    elif isinstance(value, types.FunctionType):
        yield from _text("named", name_of(value))
        if "<" in value.__qualname__:
            yield from _body(value, walk)
    elif isinstance(value, types.MethodType):
        yield from _parts("method", {"function": value.__func__, "of": value.__self__}, value, walk)
    elif isinstance(value, functools.partial):
        parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
        yield from _parts("partial", parts, value, walk)
    elif isinstance(value, set | frozenset):
        yield from _text("set", *sorted(_digest(_tokens(item, walk.into(value))) for item in value))
    elif isinstance(value, types.CodeType):
        yield from _code(value, walk)
    elif not jax.tree_util.all_leaves([value]):
        yield from _node(value, walk)
    elif dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
        yield from _parts(name_of(type(value)), fields, value, walk)
    elif hasattr(value, "__wrapped__"):  # as jax.jit's
        yield from _tokens(value.__wrapped__, walk)
    elif hasattr(value, "__qualname__"):  # a callable with a name, as jax.numpy's functions
        yield from _text("named", name_of(value))
    elif walk.strict:
        raise ValueError(
            f"{walk.path or 'the value'} is {value!r}, which cannot be told from others of its class in another "
            "process: give numbers, arrays, strings, dataclasses, pytrees or functions with a name"
        )
    else:
        yield from _text("some", name_of(type(value)))


def _parts(kind: str, parts: dict, value: Any, walk: _Walk) -> Iterator[bytes]:
    yield from _text(kind, len(parts))
    for name, part in parts.items():
        yield from _text(name)
        yield from _tokens(part, walk.into(value, name))


def _node(value: Any, walk: _Walk) -> Iterator[bytes]:
    """A pytree: its class, what is static of it, its children; a dict sorted by its keys."""
    children, static = default_registry.flatten_one_level(value)
    yield from _text("node", name_of(type(value)), len(children))
    yield from _tokens(tuple(static) if isinstance(static, list) else static, walk.into(value))
    fields = getattr(value, "__dataclass_fields__", {}).items()
    names = static if isinstance(value, dict) else [name for name, f in fields if not f.metadata.get("static")]
    for i, child in enumerate(children):
        yield from _tokens(child, walk.into(value, names[i] if i < len(names) else i))


def _array(value: Any, walk: _Walk) -> Iterator[bytes]:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        yield from _text("key", jax.random.key_impl(value))
        value = jax.random.key_data(value)
    value = np.asarray(value)
    if value.dtype == object:
        raise ValueError(f"{walk.path or 'the value'} is an array of Python objects: give an array of numbers")
    yield from _text("array", value.dtype.name, value.shape)
    yield np.ascontiguousarray(value).tobytes()


def _does(fn: Any, walk: _Walk) -> Iterator[bytes]:
    """A callable by what it does, through wrappers and partials."""
    if isinstance(fn, functools.partial):
        yield from _does(fn.func, walk)
        yield from _tokens((fn.args, fn.keywords), walk)
    elif hasattr(fn, "__wrapped__"):
        yield from _does(fn.__wrapped__, walk)
    else:
        yield from _body(fn, walk) if isinstance(fn, types.FunctionType) else _tokens(fn, walk)


def _body(fn: types.FunctionType, walk: _Walk) -> Iterator[bytes]:
    """What a function does, as far as it holds it itself."""
    yield from _code(fn.__code__, walk)
    held = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    for cell in fn.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            held.append(None)
    for value in held:
        yield from _tokens(value, walk.into(fn, fn.__qualname__))


def _code(code: types.CodeType, walk: _Walk) -> Iterator[bytes]:
    yield from _text("code", code.co_argcount, code.co_names)
    yield code.co_code
    for constant in code.co_consts:
        yield from _tokens(constant, walk)
