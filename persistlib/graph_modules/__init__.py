"""ONNX graphs as trainable torch modules: `GraphModule`, and what makes a bundle of a file.

Law: a module made from a graph computes what the graph computes, and holds the graph's weights bit
for bit. Building it from its configuration runs nothing but the operators of `operators`.
"""

from __future__ import annotations

from persistlib.graph_modules.module import GraphModule

__all__ = ["GraphModule"]
