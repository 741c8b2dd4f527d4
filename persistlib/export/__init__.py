"""Modules as ONNX graphs, each with the proof that it computes the same."""
