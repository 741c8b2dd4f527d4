"""Write what is made from the code: `errors.md`, both schemas, tables of `manifest.md` and README.

`make docs` runs it; a test holds that every page is what the code says.
"""

from __future__ import annotations

import json
import re
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from persistlib.compat.fault_stories import FAULTS
from persistlib.compat.stories import STORIES
from persistlib.compat.table import RULES
from persistlib.dtypes import DType
from persistlib.errors import Code
from persistlib.formats import FORMATS, PROMISES
from persistlib.manifest import schema
from persistlib.manifest.schema import Manifest, Section
from persistlib.manifest.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.formats import Format

HERE = Path(__file__).parent
# Between these lines of manifest.md stands what `field_tables` returns.
MARKS = ("<!-- fields: made by `make docs` from the schema -->\n", "<!-- end of fields -->\n")
# And in README.md what `formats_table` returns.
FORMAT_MARKS = ("<!-- formats: made by `make docs` -->\n", "<!-- end of formats -->\n")
# And in compatibility.md what `codes_tables` returns.
CODE_MARKS = ("<!-- codes: made by `make docs` -->\n", "<!-- end of codes -->\n")

_PATTERNS = {
    TypeAdapter(kind).json_schema()["pattern"]: name
    for name, kind in {
        "identity": schema.Identity,
        "digest": schema.Digest,
        "version": schema.Version,
        "timestamp": schema.Timestamp,
        "builder": schema.Builder,
    }.items()
}

_ERRORS_HEAD = """\
# Errors

Made from `persistlib.errors.Code` by `make docs`; do not edit.

Every fault that persistlib reports has a code, a location, a reason and a remedy. A code never
changes its meaning and is never used again for another; texts may change. In Python an error is an
instance of `persistlib.errors.PersistlibError`, whose `findings` hold all that was found; on the
command line `--json` prints the same findings, and a person sees one line:

```text
PL401 digits: a folder that is not empty stands there | pass overwrite=True (--overwrite) or ...
```

A finding of severity `note` or `warning` uses the same codes and stops nothing.

"""


def errors_page() -> str:
    """Return the table of every code, and the classes that carry them."""
    head = "| code | name | raised as | what it means |\n| --- | --- | --- | --- |\n"
    rows = [
        f"| {code.identifier} | `{code.name}` | `{code.family.__name__}` | {code.title} |\n"
        for code in sorted(Code, key=lambda code: code.identifier)
    ]
    families = [
        f"- `{family.__name__}`: {(family.__doc__ or '').splitlines()[0]}\n"
        for family in dict.fromkeys(code.family for code in Code)
    ]
    return f"{_ERRORS_HEAD}{head}{''.join(rows)}\n## Classes\n\n{''.join(families)}"


def manifest_schema() -> str:
    """Return the JSON Schema of `manifest.json`, as indented JSON.

    A schema says what a field may hold; the rest that a reader checks is in `docs/manifest.md`.
    """
    root = Manifest.model_json_schema()
    for section in _sections():
        properties = root["$defs"].get(section.__name__, root)["properties"]
        summary, meanings = documented(section)
        root["$defs"].get(section.__name__, root)["description"] = summary
        for field, meaning in meanings.items():
            properties[field].pop("title", None)
            properties[field]["description"] = meaning
    root |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"persistlib manifest {VERSION}",
    }
    return json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def bare_schema() -> str:
    """Return the same schema without what is for people; `persistlib.manifest.light` reads it."""
    root = Manifest.model_json_schema()
    return json.dumps(_bare(root), separators=(",", ":"), sort_keys=True) + "\n"


def _bare(rule: Any) -> Any:
    if isinstance(rule, list):
        return [_bare(part) for part in rule]
    if not isinstance(rule, dict):
        return rule
    kept = {word: part for word, part in rule.items() if word not in {"title", "description"}}
    return {
        # The members of these two are named by the manifest, not by JSON Schema.
        word: {name: _bare(member) for name, member in part.items()}
        if word in {"properties", "$defs"}
        else part
        if word == "default"
        else _bare(part)
        for word, part in kept.items()
    }


def field_tables() -> str:
    """Return a table for each section of the manifest, the whole first."""
    root = json.loads(manifest_schema())
    return "\n".join([*(_table(section, root) for section in _sections()), _strings()])


def manifest_page() -> str:
    """Return `manifest.md` with its tables renewed."""
    before, _, rest = (HERE / "manifest.md").read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{field_tables()}\n{MARKS[1]}{after}"


def formats_table() -> str:
    """Return a table with a row for each format, and what all of them keep."""
    always = [word for word in PROMISES if all(word in row.keeps for row in FORMATS.values())]
    others = [word for word in PROMISES if word not in always]
    head = f"| format | endings | written | {' | '.join(others)} | cannot hold |\n"
    head += f"|---|---|{':-:|' * (1 + len(others))}---|\n"
    rows = [
        f"| {row.title} | {' '.join(f'`{suffix}`' for suffix in row.suffixes)} | "
        f"{' | '.join(_mark(is_so) for is_so in _promises(row, others))} | {_lacking(row)} |\n"
        for row in FORMATS.values()
    ]
    kept = "; ".join(PROMISES[word] for word in always)
    return f"{head}{''.join(rows)}\nAll keep: {kept}.\n"


def _promises(row: Format, words: list[str]) -> list[bool]:
    return [row.is_written, *(word in row.keeps for word in words)]


def _mark(is_so: bool) -> str:
    return "✓" if is_so else ""


def _lacking(row: Format) -> str:
    return ", ".join(dtype.name for dtype in DType if not row.holds(dtype))


def readme_page() -> str:
    """Return `README.md` with its table of formats renewed."""
    before, _, rest = (
        (HERE.parent / "README.md").read_text(encoding="utf-8").partition(FORMAT_MARKS[0])
    )
    _, _, after = rest.partition(FORMAT_MARKS[1])
    return f"{before}{FORMAT_MARKS[0]}\n{formats_table()}\n{FORMAT_MARKS[1]}{after}"


def codes_tables() -> str:
    """Return the rules in their order with the codes of each, and the long story of each code."""
    head = "| rule | codes | reads |\n| --- | --- | --- |\n"
    rows = [
        f"| `compat.{rule.judge}` | {', '.join(code.identifier for code in rule.codes)} | "
        f"{'the structure of the graphs' if rule.walks else 'manifest or header'} |\n"
        for rule in RULES
    ]
    stories = [
        f"### {code.identifier}: {code.title}\n\n{story.means}\n\n- verdict: {story.grade}\n"
        f"- what helps: {story.mends}\n- known from: {story.known}\n"
        for code, story in sorted(
            {**STORIES, **FAULTS}.items(), key=lambda item: item[0].identifier
        )
    ]
    return f"{head}{''.join(rows)}\n" + "\n".join(stories)


def compatibility_page() -> str:
    """Return `compatibility.md` with its tables of rules and codes renewed."""
    before, _, rest = (HERE / "compatibility.md").read_text("utf-8").partition(CODE_MARKS[0])
    _, _, after = rest.partition(CODE_MARKS[1])
    return f"{before}{CODE_MARKS[0]}\n{codes_tables()}\n{CODE_MARKS[1]}{after}"


def documented(section: type[Section]) -> tuple[str, dict[str, str]]:
    """Return a section's summary and what its docstring says of each field."""
    summary, _, attributes = cleandoc(section.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return summary, {field: " ".join(meaning.split()) for field, meaning in entries}


def _sections() -> Iterator[type[Section]]:
    """Yield the manifest's class, then the others in the order of the schema."""
    yield Manifest
    for kind in vars(schema).values():
        if isinstance(kind, type) and issubclass(kind, Section) and kind not in (Section, Manifest):
            yield kind


def _table(section: type[Section], root: dict[str, Any]) -> str:
    described = root["$defs"].get(section.__name__, root)
    head = "| field | holds | default | meaning |\n| --- | --- | --- | --- |\n"
    rows = [
        f"| `{field}` | {_kind(value)} | {_default(value)} | {value['description']} |\n"
        for field in section.model_fields
        if (value := described["properties"][field])
    ]
    return f"### {section.__name__}\n\n{described['description']}\n\n{head}{''.join(rows)}"


def _strings() -> str:
    rows = [f"- {name}: `{pattern}`\n" for pattern, name in _PATTERNS.items()]
    return f"### Strings\n\n{''.join(rows)}"


def _default(value: dict[str, Any]) -> str:
    match value:
        case {"default": dict(default)} if default:
            return "its own defaults"
        case {"default": default}:
            return f"`{json.dumps(default)}`"
        case _:
            return "required"


def _kind(value: dict[str, Any]) -> str:
    """Return in words what a schema admits."""
    match value:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            kind = "any JSON value" if name == "JsonValue" else f"[{name}](#{name.lower()})"
        case {"anyOf": choices}:
            kind = " or ".join(_kind(choice) for choice in choices)
        case {"const": only}:
            kind = f"`{only}`"
        case {"enum": choices}:
            kind = "a dtype" if "F32" in choices else ", ".join(f"`{c}`" for c in choices)
        case {"items": items}:
            kind = f"list of {_kind(items)}"
        case {"additionalProperties": values}:
            kind = f"map to {_kind(values)}"
        case {"pattern": pattern}:
            kind = f"[{_PATTERNS[pattern]}](#strings)"
        case {"minimum": least}:
            kind = f"integer ≥ {least}"
        case _:
            kind = str(value["type"])
    return kind


PAGES = {
    "errors.md": errors_page,
    "manifest.schema.json": manifest_schema,
    "manifest.md": manifest_page,
    "../README.md": readme_page,
    "compatibility.md": compatibility_page,
    "../persistlib/manifest/schema.json": bare_schema,
}


def main() -> None:
    """Write every page beside this script."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
