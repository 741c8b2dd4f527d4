"""Which operators become torch, by onnx's own tests: `graph_operators.py` writes the table.

It stands in docs/foreign-onnx.md between two marks. A test counts when one of its inputs or outputs
holds floats; it passes when dtype, shape and values are the expected ones.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "foreign-onnx.md"
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from graph_module_models import case_fault, node_cases, operators_of
    from persistlib.errors import PersistlibError
    from persistlib.graph_modules.operators import OPERATORS

    warnings.simplefilter("ignore")
    passed: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for name, case in node_cases().items():
        kind = "expanded" if "_expanded" in name else next(operators_of(case))
        whole[kind] += 1
        try:
            passed[kind] += not case_fault(case)
        except (PersistlibError, TypeError):
            continue
    total, right = whole.total(), passed.total()
    own = sum(1 for domain, _ in OPERATORS if not domain)
    rows = [
        f"{right} of {total} tests with floats pass ({right / total:.1%}); the table has",
        f"{own} operators of ONNX and {len(OPERATORS) - own} of ONNX Runtime.",
        "Operators with a test that fails:",
        "",
        "| operator | passed | of |",
        "|---|--:|--:|",
        *(
            f"| {kind} | {passed[kind]} | {n} |"
            for kind, n in sorted(whole.items())
            if passed[kind] < n
        ),
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
