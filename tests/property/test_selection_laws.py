"""The laws of `selection`, and of renaming by rules."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistlib.checkpoint import identity
from persistlib.errors import PersistlibError, UsageError
from persistlib.patterns import _rule, renamed, select
from persistlib.selection import Selection, without_wrappers, wrapper_of
from property.strategies import checkpoints, tensor_names

if TYPE_CHECKING:
    from persistlib.checkpoint import CheckpointReader, MemoryCheckpoint

# Names that hold nothing which a pattern means something by.
plain_names = st.text("abc.\u00e9-_0", min_size=1, max_size=6)
some = checkpoints(names=plain_names)


def names_of(checkpoint: CheckpointReader) -> tuple[str, ...]:
    return (*checkpoint.tensors, *checkpoint.aliases)


def groups(checkpoint: CheckpointReader) -> set[frozenset[str]]:
    """Return which names are one tensor."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in names_of(checkpoint):
        found[checkpoint.aliases.get(name, name)].add(name)
    return {frozenset(names) for names in found.values()}


def bytes_of(checkpoint: CheckpointReader) -> dict[str, bytes]:
    return {
        name: bytes(checkpoint.read_bytes(checkpoint.aliases.get(name, name)))
        for name in names_of(checkpoint)
    }


@given(some)
def test_a_rule_that_changes_no_name_changes_nothing(source: MemoryCheckpoint) -> None:
    names = names_of(source)
    if names:
        assert renamed({"*": "*"}, names) == renamed({}, names) == {name: name for name in names}
    same = Selection(source, {name: name for name in names})
    assert identity(same) == identity(source)
    assert (groups(same), bytes_of(same)) == (groups(source), bytes_of(source))


@given(checkpoints(), st.data())
def test_a_selection_keeps_bytes_and_ties_and_a_tie_stands_under_the_smallest_name(
    source: MemoryCheckpoint, data: st.DataObject
) -> None:
    names = names_of(source)
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    new = data.draw(st.lists(tensor_names, unique=True, min_size=len(chosen), max_size=len(chosen)))
    rule = dict(zip(chosen, new, strict=True))
    part = Selection(source, rule)
    before = bytes_of(source)
    assert bytes_of(part) == {rule[name]: before[name] for name in chosen}
    kept = {frozenset(rule[name] for name in group if name in rule) for group in groups(source)}
    assert groups(part) == kept - {frozenset()}
    assert all(alias > name for alias, name in part.aliases.items())
    assert part.metadata == source.metadata
    for entry in part:
        assert b"".join(part.windows(entry.name)) == before[_old(rule, entry.name)]


def _old(rule: dict[str, str], new: str) -> str:
    return next(old for old, name in rule.items() if name == new)


@given(checkpoints().filter(lambda source: len(names_of(source)) > 1), tensor_names)
def test_two_names_never_become_one(source: MemoryCheckpoint, name: str) -> None:
    with pytest.raises(PersistlibError, match="stand twice"):
        Selection(source, dict.fromkeys(names_of(source), name))


@given(some.filter(names_of), st.sampled_from(["module.", "a.b.", "_orig_mod.", "x"]))
def test_a_prefix_put_on_and_taken_off_gives_back_the_names(
    source: MemoryCheckpoint, prefix: str
) -> None:
    names = names_of(source)
    put = renamed([f"*={prefix}*"], names)
    assert put == {name: prefix + name for name in names}
    taken = renamed({f"{prefix}*": "*"}, put.values())
    assert taken == {new: old for old, new in put.items()}
    back = Selection(Selection(source, put), taken)
    assert (identity(back), groups(back)) == (identity(source), groups(source))


@given(some.filter(names_of), st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=3))
def test_what_wrappers_put_in_front_is_found_and_taken_off(
    source: MemoryCheckpoint, wrappers: list[str]
) -> None:
    prefix = "".join(wrappers)
    wrapped = Selection(source, {name: prefix + name for name in names_of(source)})
    assert wrapper_of(names_of(wrapped)) == prefix
    assert identity(without_wrappers(wrapped)) == identity(source)


@given(st.lists(plain_names, unique=True, min_size=1), plain_names, plain_names)
def test_a_rule_renames_a_name_and_all_below_it_and_nothing_else(
    names: list[str], module: str, other: str
) -> None:
    below = [name for name in names if name == module or name.startswith(f"{module}.")]
    if not below:
        with pytest.raises(PersistlibError, match="matches no tensor"):
            renamed({module: other}, names)
        return
    found = renamed({module: other}, names)
    assert list(found) == names
    for name in names:
        assert found[name] == (other + name[len(module) :] if name in below else name)
    assert list(select(module, names)) == below


@given(st.lists(plain_names, unique=True, min_size=1), st.integers(0, 3))
def test_a_replacement_has_no_more_wildcards_than_its_pattern(names: list[str], extra: int) -> None:
    if extra > 1:
        with pytest.raises(UsageError, match="wildcards"):
            renamed({"*": "*" * extra}, names)
    else:
        found = renamed({"*": "*" * extra + "x"}, names)
        assert found == {name: name * extra + "x" for name in names}


def backtracked(pattern: str, name: str) -> tuple[list[str], str] | None:
    """Return what a backtracking matcher finds: slower, and plainly right."""
    said = {"*": "(.*)", "?": "(.)", "[ab]": "([ab])", "[!a]": "([^a])"}
    parts = re.split(r"(\*|\?|\[ab\]|\[!a\])", pattern)
    text = "".join(said.get(part, re.escape(part)) for part in parts)
    found = re.fullmatch(f"{text}(?P<below>\\..*)?", name, re.DOTALL)
    return None if found is None else (list(found.groups()[:-1]), found["below"] or "")


@given(
    st.lists(st.sampled_from(["*", "?", "[ab]", "[!a]", "a", "b", ".", "a.b"]), max_size=8),
    st.text("ab.c\n", max_size=12),
)
def test_a_pattern_matches_as_if_every_way_had_been_tried(parts: list[str], name: str) -> None:
    pattern = "".join(parts)
    wanted = backtracked(pattern, name)
    replacement = "<" + "*|" * sum(part in "*?" or part[0] == "[" for part in parts) + ">"
    found = _rule(pattern, replacement)(name)
    if wanted is None:
        assert found is None
    else:
        texts, below = wanted
        assert found == "<" + "".join(f"{text}|" for text in texts) + ">" + below


def test_no_pattern_takes_for_ever() -> None:
    # Tried in every way, either of them would outlast whoever waits.
    assert _rule("*a" * 40 + "b", "x")("a" * 4000) is None
    assert _rule("*." * 40 + "b", "x")("a." * 2000 + "c") is None
