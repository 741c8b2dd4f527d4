"""Images become inputs in one way, whatever they come as; what cannot be read is named."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from persistlib import preprocessing
from persistlib.errors import PersistlibError
from persistlib.images import read_image
from persistlib.preprocessing import ImagePreprocessing, Size, apply, parse

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def photo(height: int = 61, width: int = 87, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_record_reads_back_as_it_was_written() -> None:
    for record in (
        ImagePreprocessing(),
        ImagePreprocessing(1, 16.0, 96, None, "nearest", (0.5,), (0.25,)),
        ImagePreprocessing(resize=Size(20, 30), crop=Size(10, 30)),
    ):
        assert parse(record.to_dict()) == record


def test_a_record_that_names_only_size_and_normalisation_is_an_rgb_image() -> None:
    record = parse({"resize": 96, **IMAGENET})
    assert (record.channels, record.scale, record.size) == (3, 255.0, (96, 96))


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"kind": "audio"}, "kind"),
        ({"resiez": 96}, "resiez"),
        ({"channels": 2}, "channels"),
        ({"channels": True}, "channels"),
        ({"channels": 1, "mean": [0.0, 0.0, 0.0]}, "mean"),
        ({"scale": 0}, "scale"),
        ({"scale": "255"}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"resize": 0}, "resize"),
        ({"resize": 96.0}, "resize"),
        ({"resize": [96]}, "resize"),
        ({"resize": 10**9}, "resize"),
        ({"resize": 96, "crop": 97}, "crop"),
        ({"resize": [96, 20], "crop": [20, 96]}, "crop"),
        ({"interpolation": "BILINEAR"}, "interpolation"),
        ({"interpolation": ["bilinear"]}, "interpolation"),
        ({"mean": [0, 0, float("inf")]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"std": [1, 1, 0]}, "std"),
        ({"std": []}, "std"),
    ],
)
def test_a_malformed_record_is_refused_by_key(record: dict[str, Any], key: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        parse(record)
    assert (caught.value.code, caught.value.location) == ("PL708", f"preprocessing.{key}")


def test_every_fault_of_a_record_is_reported() -> None:
    with pytest.raises(PersistlibError) as caught:
        parse({"scale": -1, "colour": 1, "resize": "x"})
    assert {f.location.rpartition(".")[2] for f in caught.value.findings} == {
        "scale",
        "colour",
        "resize",
    }


def test_eight_bit_images_become_bit_for_bit_what_torchvision_makes_of_them() -> None:
    pytest.importorskip("torchvision")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST):
        for height, width in ((61, 87), (87, 61), (300, 301), (8, 8), (33, 33)):
            theirs = ImageClassification(
                crop_size=28, resize_size=33, interpolation=mode, **IMAGENET
            )
            image = photo(height, width)
            record = {"resize": 33, "crop": 28, "interpolation": mode.value, **IMAGENET}
            ours = apply([image], record)[0]
            assert np.array_equal(ours, theirs(Image.fromarray(image)).numpy()), (mode, height)


def test_file_pillow_image_and_array_are_the_same_image(tmp_path: Path) -> None:
    for channels in (1, 3):
        pixels = photo(20, 30, channels)
        path = tmp_path / f"{channels}.png"
        Image.fromarray(pixels).save(path)
        records: list[dict[str, Any]] = [{"resize": 16}, {"channels": 1, "resize": [9, 40]}, {}]
        for record in records:
            forms: list[Any] = [path, str(path), Image.open(path), pixels, read_image(path)]
            results = [apply([form], record) for form in forms]
            assert all(np.array_equal(results[0], other) for other in results)


def test_values_of_another_range_are_divided_by_their_own_scale() -> None:
    digit = np.arange(64).reshape(8, 8) % 17.0
    grey = apply([digit], {"channels": 1, "scale": 16})
    assert np.array_equal(grey[0, 0], (digit / 16).astype(np.float32))
    rgb = apply([digit], {"channels": 3, "scale": 16, "resize": 24})
    assert rgb.shape == (1, 3, 24, 24)
    assert np.array_equal(rgb[0, 0], rgb[0, 2])
    assert float(rgb.min()) >= 0.0
    assert float(rgb.max()) <= 1.0


def test_numbers_with_fractions_keep_them_through_a_resize() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float64).reshape(8, 8)
    fine = apply([ramp], {"channels": 1, "scale": 1, "resize": 32})
    assert len(np.unique(fine)) > 256
    colour = np.stack([ramp, ramp * 2, ramp * 3], axis=2)
    planes = apply([colour], {"scale": 1})[0]
    assert np.allclose(planes[2], planes[0] * 3)
    assert np.allclose(apply([colour], {"channels": 1, "scale": 1})[0, 0], ramp * 1.815)


def test_the_aspect_is_kept_and_the_centre_is_cut() -> None:
    stripes = np.zeros((10, 40), np.uint8)
    stripes[:, 15:25] = 255
    result = apply([stripes], {"channels": 1, "resize": 10})
    assert result.shape == (1, 1, 10, 10)
    assert result.min() == 1.0


def test_no_images_make_an_empty_batch() -> None:
    assert apply([], {"resize": [5, 7]}).shape == (0, 3, 5, 7)


def test_images_of_different_shapes_without_a_resize_are_refused_by_index() -> None:
    with pytest.raises(PersistlibError, match="5 x 5 pixels, where the first has 4 x 4") as caught:
        apply([photo(4, 4), photo(5, 5)], {})
    assert (caught.value.code, caught.value.location) == ("PL708", "image 1")
    with pytest.raises(PersistlibError, match="smaller than the crop"):
        apply([photo(4, 4)], {"crop": 5})


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    pixels = photo(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_kind_of_pillow_image_is_grey_or_colour(mode: str) -> None:
    rgb = Image.fromarray(photo(6, 5))
    base = rgb.convert("P") if mode == "PA" else rgb
    image = Image.frombytes("LAB", (5, 6), photo(6, 5).tobytes()) if mode == "LAB" else None
    assert apply([image or base.convert(mode)], {}).shape == (1, 3, 6, 5)


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(photo(6, 5)).quantize(8)
    palette.info["transparency"] = bytes([0] * 8)
    palette.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (6, 5, 3)


def test_sixteen_bit_grey_becomes_eight_bit(tmp_path: Path) -> None:
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name).ravel(), np.arange(256))


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(photo(50, 50)).save(good)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["float.tif", "cut.png", "empty.png", "text.png", "script.eps", "folder.png"]
    for name in [*names, "pipe.png", "absent.png", "a\0b.png"]:
        with pytest.raises(PersistlibError) as caught:
            apply([tmp_path / name], {"resize": 8})
        assert caught.value.code == "PL707"
        assert name[:1] in caught.value.location


def test_any_changed_byte_gives_pixels_or_our_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(photo(12, 9)).save(path)
        data = path.read_bytes()
        for position in rng.integers(0, min(len(data), 200), 60):
            mutant = bytearray(data)
            mutant[position] ^= int(rng.integers(1, 256))
            path.write_bytes(mutant)
            try:
                outcome = read_image(path).dtype.name
            except PersistlibError as fault:
                outcome = fault.code
            assert outcome in {"uint8", "PL707"}


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ppm"
    bomb.write_bytes(b"P6 60000 60000 255\n" + bytes(100))
    with pytest.raises(PersistlibError, match=r"beyond|exceeds") as caught:
        read_image(bomb)
    assert caught.value.code == "PL707"
    with pytest.raises(PersistlibError, match="long and thin"):
        apply([np.zeros((1, 200_000), np.uint8)], {"resize": 4000})


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((3, 0), np.uint8),
        np.zeros((3, 3), bool),
        np.full((3, 3), np.nan),
        np.zeros((3, 3), complex),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(PersistlibError) as caught:
        apply([array], {})
    assert caught.value.code == "PL707"


def test_something_else_altogether_is_refused() -> None:
    with pytest.raises(PersistlibError, match="int"):
        apply([3], {})  # type: ignore[list-item]


def test_importing_loads_neither_torch_nor_pillow() -> None:
    code = (
        f"import sys, {preprocessing.__name__}; bad = {{'torch', 'PIL.Image', 'sklearn'}};"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
