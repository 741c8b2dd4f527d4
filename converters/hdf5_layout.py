"""The words of persistlib's HDF5 layout, version 1, which docs/hdf5.md describes.

Law: a file whose major version is another is refused by name; a newer minor version may only add
what an older reader can leave out.
"""

from __future__ import annotations

# Attributes of the root group.
FORMAT, VERSION, METADATA = "persistlib_format", "persistlib_version", "metadata"
KIND, NUMBER = "weights", "1.0"
# Attributes of a dataset: the dtype's name, the shape where the dataset is flat, the tensor's place
# in the order, and which of a tied tensor's names, sorted, is its own.
DTYPE, SHAPE, ORDER, PRIMARY = "dtype", "shape", "index", "primary"
