"""Files of torch, assembled by hand: what torch.save would never write, or no longer writes."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TENSOR = "torch._utils\n_rebuild_tensor_v2"
DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key: str = "0", numel: int = 4, kind: str = "torch\nFloatStorage") -> bytes:
    named = text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(numel)
    return b"(" + named + b"tQ"


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    *,
    held: bytes | None = None,
) -> bytes:
    """Return the opcodes of a float32 tensor."""
    view = number(offset) + numbers(shape) + numbers(strides) + b"\x89" + DICT
    return f"c{TENSOR}\n(".encode() + (held or storage()) + view + b"tR"


def dictionary(*pairs: bytes) -> bytes:
    return b"}(" + b"".join(pairs) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def archive(
    records: Mapping[str, bytes], root: str = "x", method: int = zipfile.ZIP_STORED
) -> bytes:
    """Return a plain zip of the records."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as out:
        for name, data in records.items():
            out.writestr(zipfile.ZipInfo(f"{root}/{name}"), data, method)
    return raw.getvalue()


def checkpoint(body: bytes, **records: bytes) -> bytes:
    """Return an archive whose pickle is `body`, with one storage of four floats."""
    floats = struct.pack("<4f", 1, 2, 3, 4)
    return archive({"data.pkl": pickled(body), "data/0": floats, "version": b"3\n"} | records)


def stream(body: bytes, keys: tuple[str, ...], data: bytes) -> bytes:
    """Return a file as torch wrote it before 1.6."""
    head = pickled(number(0x1950A86A20F9469CFC6C)) + pickled(number(1001)) + pickled(b"}")
    listed = pickled(b"](" + b"".join(text(key) for key in keys) + b"e")
    return head + pickled(body) + listed + data


def placed(folder: Path, data: bytes, name: str = "x.pt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
