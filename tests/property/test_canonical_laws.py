"""The laws of `persistlib.canonical`."""

from __future__ import annotations

import enum
import json
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from persistlib.canonical import DEPTH_LIMIT, encode, parse
from persistlib.errors import Code, ManifestError
from property.strategies import json_objects, json_values


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, 1, 1.0 and True being three."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(json_objects)
def test_parsing_what_was_encoded_gives_it_back(value: dict[str, Any]) -> None:
    assert same(parse(encode(value), "here"), value)


@given(json_objects)
def test_encoding_what_was_parsed_gives_the_canonical_bytes(value: dict[str, Any]) -> None:
    loose = json.dumps(value, indent=1).encode()
    assert encode(parse(loose, "here")) == encode(value)
    assert encode(parse(encode(value), "here")) == encode(value)


@given(json_objects, st.randoms())
def test_the_order_of_names_does_not_matter(value: dict[str, Any], random: Any) -> None:
    names = list(value)
    random.shuffle(names)
    assert encode({name: value[name] for name in names}) == encode(value)


@given(json_values, json_values)
def test_different_values_have_different_bytes(one: Any, other: Any) -> None:
    assert (encode([one]) == encode([other])) == same(one, other)


def parsed(data: bytes) -> Any:
    """Return the value, None where it is refused as it should be."""
    fault: ManifestError | None = None
    try:
        return parse(data, "here")
    except ManifestError as caught:
        fault = caught
    assert (fault.code, fault.location) == (Code.MANIFEST_SYNTAX.identifier, "here")
    assert "\n" not in str(fault)
    return None


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf{}")
@example(b"{}\x00")
def test_bytes_are_parsed_or_refused_as_no_manifest(data: bytes) -> None:
    if (value := parsed(data)) is not None:
        assert same(parse(encode(value), "here"), value)


@given(st.text(st.sampled_from('{}[]":,.\\u0dD8e+-1' + string.ascii_lowercase), max_size=30))
def test_text_that_looks_like_json_is_parsed_or_refused(text: str) -> None:
    parsed(text.encode())


ROWS = {  # T19 of the threat model
    "a name twice": b'{"a":1,"a":2}',
    "a name twice below": b'{"a":[{"b":1,"b":1}]}',
    "a name twice by escapes": b'{"a":1,"\\u0061":2}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "1e999": b'{"a":1e999}',
    "-1e999": b'{"a":-1e999}',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "Latin-1": '{"a":"é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "an encoded surrogate": b'{"a":"\xed\xa0\x80"}',
    "a lone surrogate": b'{"a":"\\ud800"}',
    "a lone surrogate in a name": b'{"\\udfff":1}',
    "surrogates the wrong way round": b'{"a":"\\udc00\\ud800"}',
    "5000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "beyond 2**63": b'{"a":9223372036854775809}',
    "below -2**63": b'{"a":-9223372036854775809}',
    "depth 65": b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
    "depth 1e5": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth 1e6, never closed": b"[" * 1_000_000,
    "depth of objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "-0.0": b'{"a":-0.0}',
    "-0e5": b'{"a":-0e5}',
    "-1e-999": b'{"a":-1e-999}',
    "a list": b"[]",
    "a number": b"1",
    "nothing": b"",
    "a comment": b'{"a":1}//',
    "a comma too many": b'{"a":1,}',
    "single quotes": b"{'a':1}",
    "two values": b"{}{}",
    "a raw control character": b'{"a":"\x01"}',
    "a NUL": b"{}\0",
    "a leading zero": b'{"a":01}',
    "a plus": b'{"a":+1}',
    "hexadecimal": b'{"a":0x1}',
    "an underscore": b'{"a":1_0}',
    "cut off": b'{"a":"b',
}


@pytest.mark.parametrize("row", ROWS)
def test_what_is_no_strict_json_is_refused(row: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(ROWS[row], "here")
    assert caught.value.code == "PL101"
    assert caught.value.location == "here"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", [" {}", "{ }", '{"b":1,"a":2}', '{"a":"\\u0061"}', '{"a":1e2}'])
def test_what_is_json_but_not_canonical_has_other_bytes(text: str) -> None:
    assert encode(parse(text.encode(), "here")) != text.encode() + b"\n"


def test_what_is_too_large_is_refused_unread() -> None:
    with pytest.raises(ManifestError, match="at most 10"):
        parse(b"{}" + b" " * 9, "here", limit=10)


def test_a_hostile_file_makes_no_long_work_and_no_long_message() -> None:
    names = ",".join(f'"{n}":1' for n in range(200_000))
    data = f'{{{names},"199999":1}}'.encode()
    with pytest.raises(ManifestError) as caught:
        parse(data, "here")
    assert "'199999'" in caught.value.reason
    with pytest.raises(ManifestError) as caught:
        parse(b'{"' + b"n" * 1_000_000 + b'":-0.0}', "here")
    assert len(str(caught.value)) < 400


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, float("nan")]}}, "a.b.1"),
        ({"a": -0.0}, "a"),
        ({"a": 2**63 + 1}, "a"),
        ({"a": "\ud800"}, "a"),
        ({"a": {1: 2}}, "a"),
        ({"a": {None: 2}}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": b"bytes"}, "a"),
        ({"a": Number.ONE}, "a"),
        ({"a": Text("b")}, "a"),
        ({"a": object()}, "a"),
    ],
)
def test_what_the_canonical_form_cannot_say_is_refused_by_its_place(
    value: object, place: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        encode(value)
    assert caught.value.code == "PL106"
    assert caught.value.reason.startswith(f"{place}: ")


def test_a_value_may_be_as_deep_as_the_limit_and_no_deeper() -> None:
    value = nested(DEPTH_LIMIT)
    assert parse(encode({"a": value[0]}), "here") == {"a": value[0]}
    with pytest.raises(ManifestError, match=f"deeper than {DEPTH_LIMIT}"):
        encode(nested(DEPTH_LIMIT + 1))
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ManifestError):
        encode(loop)
