"""How tests prepare scikit-learn's digits: grey, 8 by 8 pixels as they are."""

from __future__ import annotations

from typing import Any

RECORD: dict[str, Any] = {
    "kind": "image",
    "channels": 1,
    "resize": [8, 8],
    "mean": [0.3],
    "std": [0.4],
}
