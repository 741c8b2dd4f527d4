"""What a recipe names: builders with their keywords, classes, functions, dtypes.

Every edit counts, and so does what stands inside an argument. Nothing is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.manifest.schema import Architecture

# What persistlib gives a builder besides: its own parametrizing (`architecture.parametrized`), and
# torchvision's builders that no weights are fetched (`architecture.skeleton`).
_PARAMETRIZED = ("module", "name")


class Use(NamedTuple):
    """A name that a recipe uses.

    Attributes:
        name: `package.module:qualified`.
        keywords: what it is called with, encoded; None where it is not called.
        implied: keywords that are given without the recipe's word.
        place: where in the recipe, such as "edits.3 fc"; empty for the builder itself.
        positions: arguments that are given by position.
        is_partial: whether more is given when it is called.
    """

    name: str
    keywords: Mapping[str, Any] | None = None
    implied: tuple[str, ...] = ()
    place: str = ""
    positions: int = 0
    is_partial: bool = False

    @property
    def package(self) -> str:
        """The top-level package that has it."""
        return self.name.partition(":")[0].partition(".")[0]


def uses(recipe: Architecture) -> Iterator[Use]:
    """Yield every name that a recipe uses, in its order."""
    yield Use(recipe.builder, recipe.arguments)
    yield from _inside(recipe.arguments, "arguments")
    for number, edit in enumerate(recipe.edits):
        place = f"edits.{number} {edit.path}".rstrip()
        if edit.builder is not None:
            implied = _PARAMETRIZED if edit.op == "parametrize" else ()
            yield Use(edit.builder, edit.arguments, implied, place)
        yield from _inside(edit.arguments, place)
        yield from _inside(edit.value, place)


def dtypes(recipe: Architecture) -> frozenset[str]:
    """Return the torch dtypes that a recipe names, such as "float8_e4m3fn"."""
    values: list[Any] = [recipe.arguments, *(edit.arguments for edit in recipe.edits)]
    values += [edit.value for edit in recipe.edits]
    return frozenset(
        tagged
        for value in values
        for tag, tagged in _tags(value)
        if tag == "$dtype" and isinstance(tagged, str)
    )


def _inside(value: Any, place: str) -> Iterator[Use]:
    for tag, tagged in _tags(value):
        match tag, tagged:
            case "$object", str(name):
                yield Use(name, place=place)
            case "$enum", [str(name), str()]:
                yield Use(name, place=place)
            case "$partial", {"function": {"$object": str(name)}, "keywords": dict(keywords)}:
                given = tagged.get("arguments")
                count = len(given) if isinstance(given, list) else 0
                yield Use(name, keywords, place=place, positions=count, is_partial=True)
            case _:
                pass


def _tags(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each tag of an encoded value and what it holds, the inner ones too."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case list() as items:
                waiting += reversed(items)
            case dict() as items:
                yield from ((key, item) for key, item in items.items() if key.startswith("$"))
                waiting += reversed(list(items.values()))
            case _:
                pass
