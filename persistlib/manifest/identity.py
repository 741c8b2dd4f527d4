"""What identities a manifest's other fields make.

Law: upgrades, evaluations, added graphs, documents and the machine never change the `bundle_id`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.canonical import encode
from persistlib.digests import PREFIX, TensorRow, digest, weights_identity
from persistlib.dtypes import DType

if TYPE_CHECKING:
    from persistlib.manifest.schema import Manifest, Weights


def bundle_id(manifest: Manifest) -> str:
    """Return what the model is: BLAKE3 of how it is built, its interface, weights and state.

    It covers the architecture without `source`, the interface, the weights identity, the aliases
    and the state, each without the members that hold their default: a later minor version that adds
    an optional field leaves the identity as it is.
    """
    architecture, interface = manifest.architecture, manifest.interface
    weights, state = manifest.weights, manifest.state
    unsaved = {
        name: tensor.model_dump(mode="json", exclude={"file"})
        for name, tensor in state.unsaved_buffers.items()
    }
    content = {
        "architecture": architecture.model_dump(
            mode="json", exclude_defaults=True, exclude={"source"}
        ),
        "interface": interface.model_dump(mode="json", exclude_defaults=True),
        "weights": weights.identity,
        "aliases": weights.aliases,
        "state": state.model_dump(
            mode="json", exclude_defaults=True, exclude={"files", "unsaved_buffers"}
        )
        | ({"unsaved_buffers": unsaved} if unsaved else {}),
    }
    return PREFIX + digest(encode(content))


def identity_of_weights(weights: Weights) -> str:
    """Return the weights identity that the tensor records and aliases make."""
    rows = {
        record.name: TensorRow(record.name, DType[record.dtype], record.shape, record.blake3)
        for record in weights.tensors
    }
    tied = [rows[name]._replace(name=alias) for alias, name in weights.aliases.items()]
    return weights_identity([*rows.values(), *tied])
