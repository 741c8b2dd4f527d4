"""ONNX Runtime: sessions over verified bytes, where they compute, and what their outputs say."""
