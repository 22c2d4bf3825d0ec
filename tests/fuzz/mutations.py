"""Damage: to bytes, to JSON and to protobuf, each by someone who knows the format.

Every function takes its chances from the generator it is given and returns new bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1)
BYTES = (0x00, 0x01, 0x0A, 0x0D, 0x20, 0x22, 0x2C, 0x3A, 0x5B, 0x7B, 0x7F, 0x80, 0xC0, 0xFF)


def damaged(rng: Random, body: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """Return a body with one to four wounds that know nothing of its format."""
    out = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(out))
        size = min(rng.choice((1, 1, 2, 4, 8, 16, 64)), len(out) - at)
        kind = rng.randrange(9)
        if kind == 0 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            out[at] = rng.choice(BYTES)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            other = rng.choice(others)
            out[at:] = other[rng.randint(0, len(other)) :]
        elif kind == 7:
            width = rng.choice((2, 4, 8))
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        else:
            there = rng.randint(0, len(out))
            out[there : there + size] = out[at : at + size]
    return bytes(out)


# JSON


class Raw(str):
    """Text that is written as it is, valid or not."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object whose names may come twice."""


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, -1e308, 1e-320, 2**31, -(2**31) - 1),
    *(2**53 + 1, 2**63, 2**64, -(2**63) - 1, "", "x", "\x00", "tinker://a/weights/b", "é" * 40),
    *([], [None], [[]], [[[1]]], [1, [2]], [[1], [2, 3]], [True], ["1"], [1.5, None], [1e300]),
    *([2**70], [10**400], [-1], [0] * 300, [{}], {}, {"": {}}, {"type": "try_again"}),
    *({"type": []}, {"error": {"a": [1]}}, {"data": [1.0], "dtype": "int64", "shape": [2**62]}),
    *(10**400, -(10**5000)),
    *(Raw("NaN"), Raw("Infinity"), Raw("1e999"), Raw("-1e999"), Raw("01"), Raw("+1"), Raw("1.")),
    *(Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\x41"'), Raw('"\n"'), Raw(""), Raw(",")),
    *(Raw("[1,]"), Raw('{"a":1,}'), Raw("[" * 200), Raw("[" * 200 + "]" * 200), Raw("nul")),
    *(Raw("1" * 5000), Raw("0." + "1" * 5000), Raw("1e" + "9" * 30), Raw('{"a":' * 150 + "1")),
    *("2026-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+00:00", "0000-00-00", "-0001-01-01"),
)
"""Values that are hardly ever the right ones."""

DEPTHS = (2, 50, 500, 1500, 5000, 100_000)


def damaged_json(rng: Random, body: bytes, others: Sequence[bytes] = (b"{}",)) -> bytes:
    """Return a JSON text with values of wrong types, names twice, deep nests and the like."""
    if rng.random() < 0.15:
        return damaged(rng, body, others)
    tree = _loaded(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _wounded(rng, tree, others)
    text = _dumped(tree)
    if rng.random() < 0.05:
        text = rng.choice(("\ufeff", " ", "\x00")) + text
    out = text.encode("utf-8", "surrogatepass")
    return damaged(rng, out, others) if rng.random() < 0.1 else out


def _loaded(body: bytes) -> Any:
    # Arrays that JSON has no numbers for are in some of the bodies: nan is Raw here.
    return json.loads(body, object_pairs_hook=Pairs)


def _paths(tree: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found = [path]
    if isinstance(tree, list):
        for index, item in enumerate(tree[:20]):
            found += _paths(item[1] if isinstance(tree, Pairs) else item, (*path, index))
    return found


def _wounded(rng: Random, tree: Any, others: Sequence[bytes]) -> Any:
    path = rng.choice(_paths(tree))
    return _changed(tree, path, rng, others)


def _changed(  # noqa: PLR0911  # a table
    tree: Any, path: tuple[int, ...], rng: Random, others: Sequence[bytes]
) -> Any:
    if path and isinstance(tree, list):
        index, rest = path[0], path[1:]
        copy: Any = type(tree)(tree)
        if isinstance(tree, Pairs):
            name, value = tree[index]
            if not rest and rng.random() < 0.35:
                return _renamed(copy, index, rng)
            copy[index] = (name, _changed(value, rest, rng, others))
        else:
            if not rest and rng.random() < 0.2:
                del copy[index]
                return copy
            copy[index] = _changed(tree[index], rest, rng, others)
        return copy
    kind = rng.randrange(8)
    if kind == 0:
        depth = rng.choice(DEPTHS)
        opened, closed = rng.choice((("[", "]"), ('{"a":', "}"), ('{"error":', "}")))
        return Raw(opened * depth + "1" + closed * (depth if rng.random() < 0.8 else depth // 2))
    if kind == 1:
        return Pairs([("unknown", rng.choice(WRONG)), ("type", tree)])
    if kind == 2:
        return [tree] * rng.choice((0, 1, 2, 70))
    if kind == 3:
        return Raw(rng.choice(others).decode("utf-8", "replace"))
    return rng.choice(WRONG)


def _renamed(pairs: Pairs, index: int, rng: Random) -> Pairs:
    """Drop a name, give it twice, or change it."""
    name, value = pairs[index]
    kind = rng.randrange(3)
    if kind == 0:
        del pairs[index]
    elif kind == 1:
        pairs.insert(rng.randint(0, len(pairs)), (name, rng.choice(WRONG)))
    else:
        pairs[index] = (rng.choice((name.upper(), "", "type", "error", name + "\x00")), value)
    return pairs


def _dumped(tree: Any) -> str:  # noqa: PLR0911  # a table
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{json.dumps(n)}:{_dumped(v)}" for n, v in tree) + "}"
    if isinstance(tree, dict):
        return _dumped(Pairs(tree.items()))
    if isinstance(tree, list | tuple):
        return "[" + ",".join(map(_dumped, tree)) + "]"
    if isinstance(tree, int) and not isinstance(tree, bool) and abs(tree) >= 10**4000:
        return ("-" if tree < 0 else "") + "9" * 5000  # Python writes no longer ones
    if isinstance(tree, float) and not math.isfinite(tree):
        return "NaN"
    return json.dumps(tree)


# Protobuf

VARINTS = (
    b"\x00",
    b"\x7f",
    b"\x80\x01",
    b"\x80\x00",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 9 + b"\x02",
    b"\x80" * 9 + b"\x00",
    b"\xff" * 10,
    b"\x80" * 20,
    b"\x80",
)


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


Fields = list[tuple[int, int, bytes]]
"""Number, wire type and content of each field."""


def parsed(body: bytes) -> Fields | None:
    """Return the fields of a message, or None if it is none."""
    fields: Fields = []
    at = 0
    while at < len(body):
        tag, at = _number(body, at)
        kind = tag & 7
        if at < 0 or not tag >> 3:
            return None
        if kind == 0:
            start = at
            _, at = _number(body, at)
            content = body[start:at] if at >= 0 else b""
        elif kind == 2:
            size, at = _number(body, at)
            if at < 0 or at + size > len(body):
                return None
            content = body[at : at + size]
            at += size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            content = body[at : at + size]
            at += size
        else:
            return None
        if at < 0 or at > len(body):
            return None
        fields.append((tag >> 3, kind, content))
    return fields


def _number(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body) and shift < 70:
        value |= (body[at] & 0x7F) << shift
        at += 1
        if body[at - 1] < 0x80:
            return value, at
        shift += 7
    return 0, -1


def written(fields: Fields) -> bytes:
    """Return the message of these fields."""
    parts = []
    for number, kind, content in fields:
        size = varint(len(content)) if kind == 2 else b""
        parts.append(varint(number << 3 | kind) + size + content)
    return b"".join(parts)


def damaged_protobuf(rng: Random, body: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """Return a message whose fields are lost, repeated, mislabelled, or too long."""
    if rng.random() < 0.15:
        return damaged(rng, body, others)
    for _ in range(rng.choice((1, 1, 2, 3))):
        body = _hurt(rng, body, others)
    return body


def _hurt(rng: Random, body: bytes, others: Sequence[bytes]) -> bytes:  # noqa: C901, PLR0911  # a table
    fields = parsed(body)
    if not fields:
        return _hurt_content(rng, body, others)
    index = rng.randrange(len(fields))
    number, kind, content = fields[index]
    if kind == 2 and rng.random() < 0.6:
        fields[index] = (number, kind, _hurt(rng, content, others))
        return written(fields)
    before, after = written(fields[:index]), written(fields[index + 1 :])
    tag = varint(number << 3 | kind)
    choice = rng.randrange(9)
    if choice == 0:
        return before + after
    if choice == 1:
        return written(fields[: index + 1]) + written(fields[index:]) * rng.choice((1, 3))
    if choice == 2:
        return before + varint(rng.randrange(1, 40) << 3 | kind) + written([fields[index]]) + after
    if choice == 3:
        return before + varint(number << 3 | rng.randrange(8)) + content + after
    if choice == 4:
        return before + tag + rng.choice(VARINTS) + content + after
    if choice == 5:
        unknown = delimited(rng.choice((1, 15, 999, 2**29 - 1)), rng.randbytes(5))
        return before + unknown + written(fields[index:])
    if choice == 6:
        nested = content
        for _ in range(rng.choice((1, 5, 40, 400))):
            nested = delimited(number, nested)
        return before + nested + after
    if choice == 7:
        rng.shuffle(fields)
        return written(fields)
    return (
        before + tag + varint(max(0, len(content) + rng.choice((-1, 1, 2**32)))) + content + after
    )


def _hurt_content(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    choice = rng.randrange(6)
    if choice == 0:
        return rng.choice(VARINTS)
    if choice == 1:
        return content + b"\xff\xfe\x80"
    if choice == 2:
        return b"\x00\x00\xc0\x7f" * max(1, len(content) // 4)  # float32 NaN
    if choice == 3:
        width = rng.choice((4, 8))
        number = (rng.choice(NUMBERS) * rng.choice((1, -1))) % (1 << 8 * width)
        return number.to_bytes(width, "little") * max(1, len(content) // width)
    if choice == 4:
        return content[: rng.randint(0, len(content))]
    return damaged(rng, content, others)
