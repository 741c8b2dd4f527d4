"""Pictures of a run, for people: curves, confusion, learning rates; drawn without a window."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from persistlib import publish
from persistlib.errors import missing_extra
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.files import StrPath

_INK, _TRAIN, _VALID = "#333333", "#9aa5b1", "#0b6bcb"
_COLOURS = {"train": _TRAIN, "valid": _VALID}
_WORDS = {"train": "training", "valid": "held out"}
_DPI = 150
_NUMBERED = 20  # classes whose counts are written into the picture
_NAMED = 50  # classes whose names are


def curves(history: Sequence[Mapping[str, float]], path: StrPath) -> None:
    """Draw each metric over the epochs, training and held out in one panel.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetError: the file cannot be written.
    """
    sides = [key.partition("_") for row in history for key in row if "_" in key]
    metrics = list(dict.fromkeys(metric for _, _, metric in sides))
    figure, axes = _panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for side, colour in _COLOURS.items():
            key = f"{side}_{metric}"
            rows = [row for row in history if key in row]
            epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
            if rows:
                mark = "o" if len(rows) <= 30 else ""
                axis.plot(epochs, values, mark + "-", color=colour, ms=3, label=_WORDS[side])
        axis.set_title(metric.replace("_", " "), loc="left", color=_INK)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
    _save(figure, path)


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], path: StrPath) -> None:
    """Draw a confusion matrix, rows the true class, each shaded by its share of the row.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetError: the file cannot be written.
    """
    size = len(counts)
    edge = min(max(3.5, 0.42 * size + 2), 14)
    figure, (axis,) = _panels(1, width=edge, height=edge)
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= _NUMBERED:
        for row, numbers in enumerate(counts):
            for column, number in enumerate(numbers):
                colour = "white" if shares[row][column] > 0.6 else _INK
                text = {"ha": "center", "va": "center", "fontsize": 7}
                if number:
                    axis.text(column, row, f"{number}", color=colour, **text)
    if size <= _NAMED:
        shown = [_short(label) for label in labels]
        axis.set_xticks(range(size), shown, rotation=90 if max(map(len, shown)) > 2 else 0)
        axis.set_yticks(range(size), shown)
    right = sum(row[index] for index, row in enumerate(counts))
    total = sum(map(sum, counts))
    axis.set_title(f"{right} of {total} held-out samples are right", loc="left", color=_INK)
    axis.set_xlabel("answer")
    axis.set_ylabel("true class")
    axis.spines[:].set_visible(False)
    _save(figure, path)


def rates(lrs: Sequence[float], losses: Sequence[float], chosen: float, path: StrPath) -> None:
    """Draw the loss over the learning rates that were tried, and the one that is suggested.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetError: the file cannot be written.
    """
    figure, (axis,) = _panels(1, width=6)
    axis.plot(lrs, losses, color=_VALID)
    axis.axvline(chosen, color=_INK, lw=0.8, ls="--")
    axis.annotate(
        f" {chosen:.1e}", (chosen, 1), xycoords=("data", "axes fraction"), va="top", color=_INK
    )
    axis.set_xscale("log")
    low, start = min(losses), losses[0]
    axis.set_ylim(low - 0.1 * (start - low), start + 0.5 * (start - low))
    axis.set_title("loss while the learning rate rises", loc="left", color=_INK)
    axis.set_xlabel("learning rate")
    _save(figure, path)


def _panels(count: int, *, width: float = 4.5, height: float = 3.4) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, side by side."""
    if not is_importable("matplotlib"):
        raise missing_extra("matplotlib", "finetune", "drawing")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=_INK)
    return figure, axes


def _save(figure: Any, path: StrPath) -> None:
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A class may be named in a script that the font lacks: then boxes stand for it.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        # Without the release of matplotlib: the same picture is the same bytes.
        figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    with publish.file(path) as out:
        out.write(data.getvalue())


def _short(label: str) -> str:
    # A dollar sign would begin a formula.
    plain = label.replace("$", r"\$")
    return plain if len(plain) <= 16 else f"{plain[:15]}…"
