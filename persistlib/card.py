"""The model card: a README that people edit, of which only the marked part is ours."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistlib.manifest.schema import Manifest

BEGIN = "<!-- persistlib: begin; rewritten by every save -->"
END = "<!-- persistlib: end -->"


def render(manifest: Manifest, previous: str | None = None) -> str:
    """Return the card's text.

    Args:
        manifest: what the card is about; it names no digest, so the manifest may list it.
        previous: the card that stood there; what people wrote outside the marks is kept.
    """
    ours = f"{BEGIN}\n{_facts(manifest)}{END}\n"
    if previous is not None and BEGIN in previous and END in previous:
        before, _, rest = previous.partition(BEGIN)
        after = rest.partition(END)[2].removeprefix("\n")
        return before + ours + after
    if previous is not None:
        return f"{previous.rstrip()}\n\n{ours}"
    return _front_matter(manifest) + f"# {manifest.name or 'Model'}\n\n" + ours


def _front_matter(manifest: Manifest) -> str:
    lines = ["library_name: persistlib"]
    if manifest.license:
        lines.append(f"license: {json.dumps(manifest.license.lower())}")
    return "---\n" + "\n".join(lines) + "\n---\n"


def _facts(manifest: Manifest) -> str:
    weights, interface = manifest.weights, manifest.interface
    sizes = [math.prod(record.shape) for record in weights.tensors if record.role == "parameter"]
    rows = [
        ("architecture", f"`{manifest.architecture.builder}`"),
        ("edits", str(len(manifest.architecture.edits)) if manifest.architecture.edits else ""),
        ("parameters", f"{sum(sizes):,} in {len(sizes)} tensors"),
        ("inputs", ", ".join(f"`{i.name}` {i.dtype} {_shape(i.shape)}" for i in interface.inputs)),
        (
            "outputs",
            ", ".join(f"`{o.name}` {o.dtype} {_shape(o.shape)}" for o in interface.outputs),
        ),
        ("classes", str(len(interface.labels)) if interface.labels else ""),
        ("license", manifest.license or ""),
    ]
    if manifest.training is not None:
        metrics = manifest.training.metrics
        rows.append(("measured", ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())))
        data = manifest.training.data
        rows.append(("trained on", data.name if data else ""))
    rows += [(a.relation.replace("-", " "), a.source) for a in manifest.lineage]
    table = "".join(f"| {_cell(key)} | {_cell(value)} |\n" for key, value in rows if value)
    return (
        f"| | |\n|---|---|\n{table}\n"
        '```python\nimport persistlib\n\nmodel = persistlib.load(".")\n```\n'
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(extent) for extent in shape) + "]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
