"""Names that a graph's weights get: whatever the graph calls them, they can stand in one module."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from persistlib.graph_modules.naming import Names

# So few that they meet: words that a module has for itself, and what they become, among them.
WORDS = st.sampled_from(
    [
        "a",
        "A",
        "a_",
        "b",
        "a_1",
        "half",
        "half_",
        "load",
        "state",
        "dict",
        "load_state_dict",
        "ключ",
    ]
)
VALUES = st.lists(WORDS, min_size=1, max_size=4).flatmap(
    lambda words: st.sampled_from("./:-").map(lambda between: between.join(words))
)


@given(st.lists(VALUES, max_size=20))
def test_no_two_names_are_equal_but_for_case_or_a_prefix_and_every_part_can_be_an_attribute(
    values: list[str],
) -> None:
    names = Names()
    given = [names.name(value, None) for value in values]
    paths = [tuple(name.casefold().split(".")) for name in given]
    for index, path in enumerate(paths):
        others = paths[:index] + paths[index + 1 :]
        assert all(other[: len(path)] != path for other in others)
    root = nn.Module()
    for name in given:
        *folders, leaf = name.split(".")
        inner = root
        for folder in folders:
            if folder not in dict(inner.named_children()):
                inner.add_module(folder, nn.Module())
            inner = inner.get_submodule(folder)
        inner.register_buffer(leaf, None)


def test_what_would_stand_below_a_weight_finds_another_place() -> None:
    """Joined, its folders may be the very name that a reserved word became: then it never ended."""
    names = Names()
    given = [names.name(value, None) for value in ("load", "load_state_dict", "load/state/dict/x")]
    assert given == ["load", "load_state_dict_", "load_state_dict__.x_1"]


def test_the_work_grows_with_the_number_of_names_that_are_alike() -> None:
    looks = 0

    class Counting(Names):
        def _is_free(self, path: str) -> bool:
            nonlocal looks
            looks += 1
            return super()._is_free(path)

    names = Counting()
    values = [f"ключ.{'я' * (number % 7 + 1)}.w" for number in range(3000)]
    assert len({names.name(value, None) for value in values}) == len(values)
    assert looks <= 2 * len(values)
