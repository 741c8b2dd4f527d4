"""A fitted estimator as the last layer of a model, proved on every sample at hand.

Law: a layer that is given answers as the estimator on all rows it was proved on: each class that
is predicted is the same, probabilities (or, without them, scores; of a regressor, predictions)
differ by no more than the bound of the layer's dtype. The layer is of the model's dtype where that
holds, else of float64, and where that does not hold either it is an error. What the estimator
answers is what it says of the features in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from persistlib.architecture.wide_linear import WideLinear
from persistlib.dtypes import of_torch
from persistlib.errors import Code, error
from persistlib.training import affine
from persistlib.training.affine import SHARES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from persistlib.training.affine import Affine

# The most that probabilities may differ; scores and numbers, relative to their spread. Where all
# are nearly the same, a spread is lost in the estimator's own rounding: it counts as no less than
# this part of the largest.
BOUNDS = {torch.float64: 1e-9}
_BOUND = 1e-5
_LEAST = 1e-5
_ROWS = 4096  # that are looked at together


class Fused(NamedTuple):
    """A layer, and how near it is.

    Attributes:
        layer: what takes the place of the last layer.
        dtype: of its weights, as the manifest spells it.
        difference: the largest, as the bound counts it.
        rows: that it was proved on.
    """

    layer: nn.Module
    dtype: str
    difference: float
    rows: int


def fuse(estimator: Any, form: Affine, rows: torch.Tensor, *, pooled: bool) -> Fused:
    """Return the layer that answers as an estimator does.

    Args:
        estimator: fitted.
        form: what it computes.
        rows: features, as the layer is given them.
        pooled: whether they are maps, of which the mean goes in.

    Raises:
        TrainingError: no layer answers the same.
    """
    tries = [nn.Linear, WideLinear] if rows.dtype is not torch.float64 else [nn.Linear]
    flat = _pooled(rows) if pooled else rows
    faults: list[str] = []
    for kind in tries:
        linear = _linear(form, kind, rows)
        links = [nn.LogSigmoid()] if form.link == SHARES else []
        found = _compared(nn.Sequential(linear, *links), estimator, form, flat)
        if isinstance(found, float):
            before = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else []
            parts = (*before, linear, *links)
            layer = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
            known = of_torch(str(linear.weight.dtype))
            return Fused(layer, known.name if known else "", found, len(flat))
        faults.append(f"in {linear.weight.dtype}: {found}".replace("torch.", ""))
    remedy = "scale the features (StandardScaler in a Pipeline), or fit it with a smaller C"
    reason = "; ".join(faults)
    raise error(Code.CLASSIFIER_DIFFERS, affine.named(estimator), reason, remedy)


def rows_of(features: torch.Tensor, path: str) -> tuple[NDArray[np.float64], bool]:
    """Return features as an estimator is given them, and whether they were maps.

    Args:
        features: (samples, numbers), or maps of (samples, channels, height, width), whose mean
            over height and width is taken.
        path: of the layer that they go into.

    Raises:
        TrainingError: they are neither, or not finite.
    """
    is_pooled = features.ndim == 4
    if features.ndim not in {2, 4} or not features.is_floating_point():
        shape = " x ".join(map(str, features.shape[1:]))
        reason = f"{features.dtype} of {shape} a sample go in, no row of numbers"
        raise error(Code.HEAD_UNKNOWN, path, reason, "name another layer with at=")
    parts = (_pooled(part) if is_pooled else part for part in _parts(features))
    flat = torch.cat([part.cpu().double() for part in parts])
    if not bool(flat.isfinite().all()):
        reason = "what goes in is not finite for some samples"
        raise error(Code.DATA_INVALID, path, reason, "look at the samples, and at the weights")
    return flat.numpy(), is_pooled


@torch.no_grad()
def _pooled(maps: torch.Tensor) -> torch.Tensor:
    return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _parts(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield rows, some at a time."""
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _linear(form: Affine, kind: Any, rows: torch.Tensor) -> Any:
    """Return a linear layer with the weights of an estimator, rounded to its dtype."""
    outputs, width = form.weight.shape
    place = {} if kind is WideLinear else {"dtype": rows.dtype}
    linear = kind(width, outputs, **place)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(form.weight))
        linear.bias.copy_(torch.from_numpy(form.bias))
    return linear.eval()


@torch.no_grad()
def _compared(layer: nn.Module, estimator: Any, form: Affine, rows: torch.Tensor) -> float | str:
    """Return how far a layer's answers are from an estimator's, or in what they differ."""
    outputs = torch.cat([layer(part.cpu()) for part in _parts(rows)])
    wide = rows.cpu().double().numpy()
    bound = BOUNDS.get(outputs.dtype, _BOUND)
    given = outputs.double().numpy()
    if not np.isfinite(given).all():
        return "outputs are not finite"
    if form.classes is not None:
        expected = estimator.predict(wide)
        answers = np.asarray(form.classes, dtype=expected.dtype)[outputs.argmax(1).numpy()]
        if wrong := int(np.sum(answers != expected)):
            return f"{wrong} of {len(wide)} predictions differ"
    difference = max(_differences(estimator, form, wide, given), default=0.0)
    if not difference <= bound:
        return f"answers differ by {difference:.1e}, more than {bound:.0e}"
    return difference


def _differences(
    estimator: Any, form: Affine, wide: NDArray[np.float64], given: NDArray[np.float64]
) -> Iterator[float]:
    """Yield the largest difference of what the outputs mean: probabilities, scores, numbers."""
    if not len(wide):
        return
    if form.link is not None:
        # Both links: the shares are the softmax of the logarithms that the layer gives.
        shares = torch.from_numpy(given).softmax(1).numpy()
        yield float(np.abs(shares - estimator.predict_proba(wide)).max())
        return
    if form.classes is None:
        expected = np.reshape(estimator.predict(wide), given.shape)
    else:
        scores = estimator.decision_function(wide)
        expected = np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
    spread = max(float(np.ptp(expected)), _LEAST * float(np.abs(expected).max())) or 1.0
    yield float(np.abs(given - expected).max()) / spread
