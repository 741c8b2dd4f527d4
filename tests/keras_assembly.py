"""Keras files as releases wrote them that cannot be installed here, put together with h5py."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Weights = dict[str, np.ndarray]


def drawn(*shape: int) -> np.ndarray:
    """Return values that tell every element, and every array, from others."""
    return np.random.default_rng(abs(hash(shape)) % 2**32).standard_normal(shape).astype("<f4")


def layer(kind: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """Return a layer's configuration as Keras 2 writes it."""
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {
        "class_name": kind,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": nodes,
    }


def model(*layers: Any, kind: str = "Functional", name: str = "model_1") -> dict[str, Any]:
    """Return a model's configuration as Keras 2 writes it."""
    return {"class_name": kind, "config": {"name": name, "layers": [*layers]}, "name": name}


def legacy(
    path: Path,
    layers: Mapping[str, Weights],
    *,
    config: Any = None,
    version: str | None = "2.4.0",
    pieces: int = 0,
) -> Path:
    """Write an `.h5` file: names are fixed-length byte strings, which h5py makes of bytes.

    Args:
        path: where.
        layers: weights of each layer, by name in its group.
        config: the model's configuration; None for weights alone.
        version: Keras' version; None for Keras 1, which says none.
        pieces: into how many attributes each list of layers goes; 0 for one.
    """
    with h5py.File(path, "w") as file:
        group = file if config is None else file.create_group("model_weights")
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            file.attrs["model_config"] = text.encode()
        if version is not None:
            for said in (file, group):
                said.attrs["keras_version"] = version.encode()
                said.attrs["backend"] = b"tensorflow"
        names = [name.encode() for name in layers]
        if pieces:
            for number, piece in enumerate(np.array_split(np.asarray(names), pieces)):
                group.attrs[f"layer_names{number}"] = piece
        else:
            group.attrs["layer_names"] = names
        for name, weights in layers.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in weights.items():
                inner.create_dataset(weight, data=array)
    return path


def stored(path: Path, variables: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Path:
    """Write a `.weights.h5` file: variables by path, layers' own names by theirs."""
    with h5py.File(path, "w") as file:
        for place, name in names.items():
            file.create_group(f"{place}/vars").attrs["name"] = name
        for place, array in variables.items():
            file.create_dataset(place, data=array)
    return path


def archive(
    path: Path,
    weights: Path,
    config: Any,
    *,
    more: Mapping[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a `.keras` archive."""
    text = config if isinstance(config, str) else json.dumps(config)
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        file.writestr("config.json", text)
        file.writestr("model.weights.h5", weights.read_bytes())
        for name, data in (more or {}).items():
            file.writestr(name, data)
    return path
