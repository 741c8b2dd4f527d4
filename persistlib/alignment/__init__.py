"""An ONNX file that others exported, given back to a named torch architecture.

Law: the module computes what the file computes, tried in ONNX Runtime at two batch sizes where the
batch is free; every tensor is said to be the file's own bits, an equivalent, or not in the file.

The file's operators with weights are matched with the architecture's own, one by one in the order
of its forward pass, by where they stand in the data flow, by the shapes of their weights, and by
what goes in and comes out on one seeded input. Names are a hint and prove nothing: an optimising
exporter leaves a weight its name and multiplies BatchNorm into it.
"""
