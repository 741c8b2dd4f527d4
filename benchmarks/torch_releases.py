"""Try files between persistlib and real releases of torch, both ways, and print a table.

    python benchmarks/torch_releases.py [--releases 2.0.1,2.6.0] [--folder DIR]

Each release is installed in an environment of its own and removed afterwards (some gigabytes and
minutes each: the usual wheels cannot be imported without the libraries for graphics cards). It
writes one state_dict as a zip archive and as the older stream, of which the names, dtypes, shapes
and bytes are compared with what is read here; then it loads what is written here with
`weights_only=True`, mapped where it can, and says the same of that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from persistlib.converters import torch_file

RELEASES = "1.13.1,2.0.1,2.1.2,2.2.2,2.3.1,2.4.1,2.5.1,2.6.0,2.7.1,2.8.0,2.9.1"
THERE = """
import hashlib, inspect, io, json, sys
import torch

def facts(state):
    rows = {}
    for name, tensor in state.items():
        held = tensor.detach().contiguous().reshape(-1)
        data = bytes(held.view(torch.uint8).tolist()) if held.numel() else b""
        rows[name] = [str(tensor.dtype)[6:], list(tensor.shape), hashlib.sha256(data).hexdigest()]
    return rows

def state():
    base = torch.arange(24.0).reshape(2, 3, 4)
    held = {"whole": base, "tied": base, "turned": base.permute(2, 0, 1), "part": base[1:, :, 1:3]}
    held |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "flags": base[0] > 5}
    held["parameter"] = torch.nn.Parameter(base + 1)
    for name in NAMES:
        kind = getattr(torch, name, None)
        if kind is None:
            continue
        try:
            held[name] = torch.tensor([1, 2, 3]).to(kind)
        except RuntimeError:
            held[name] = torch.tensor([1, 2, 3], dtype=torch.uint8).view(kind)
        try:
            torch.save(held[name], io.BytesIO())
        except KeyError:  # 2.1 computes in float8 and cannot save it
            del held[name]
    return held

NAMES = sys.argv[3].split(",")
verb, path = sys.argv[1:3]
if verb == "write":
    held = state()
    torch.save(held, path + ".zip")
    torch.save(held, path + ".stream", _use_new_zipfile_serialization=False)
    print(json.dumps(facts(held)))
else:
    options = {"weights_only": True}
    if "mmap" in inspect.signature(torch.load).parameters:
        options["mmap"] = True
    print(json.dumps(facts(torch.load(path, **options))))
"""
DTYPES = (
    "float64,float32,float16,bfloat16,int64,int32,int16,int8,uint8,bool,complex64,complex128,"
    "uint16,uint32,uint64,float8_e4m3fn,float8_e5m2,float8_e4m3fnuz,float8_e5m2fnuz,float8_e8m0fnu"
)


def facts(reader: torch_file.TorchReader) -> dict[str, list]:
    """Return what `THERE` says of a state_dict."""
    named = {entry.name: entry.name for entry in reader} | dict(reader.aliases)
    rows = {name: (reader.tensors[kept], reader.read_bytes(kept)) for name, kept in named.items()}
    return {
        name: [entry.dtype.value.torch, list(entry.shape), hashlib.sha256(data).hexdigest()]
        for name, (entry, data) in rows.items()
    }


def tried(release: str, folder: Path) -> str:
    """Return what became of one release."""
    home = folder / "venv"
    venv.create(home, with_pip=True, clear=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-cache-dir", "--only-binary", ":all:"]
    what = [f"torch=={release}", "numpy<2"]
    done = subprocess.run([*pip, *what], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not installed: {_last(done.stderr)}"

    def there(verb: str, path: Path) -> dict[str, list]:
        command = [python, "-W", "ignore", "-c", THERE, verb, path, DTYPES]
        return json.loads(subprocess.check_output(command, text=True, stderr=subprocess.PIPE))

    try:
        expected = there("write", folder / "theirs")
    except subprocess.CalledProcessError as fault:
        return f"not imported: {_last(fault.stderr)}"
    for kind in ("zip", "stream"):
        with torch_file.open_file(folder / f"theirs.{kind}") as reader:
            if facts(reader) != expected:
                return f"its {kind} is read otherwise"
            torch_file.write(reader, folder / "ours.pt")
        try:
            if there("read", folder / "ours.pt") != expected:
                return "it reads ours otherwise"
        except subprocess.CalledProcessError as fault:
            return f"it refuses ours: {_last(fault.stderr)}"
    return f"bit-equal both ways, {len(expected)} tensors"


def _last(text: str) -> str:
    return text.strip().splitlines()[-1][:160] if text.strip() else "no reason given"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", default=RELEASES)
    parser.add_argument("--folder", help="where environments are made; a disk with 10 GB free")
    options = parser.parse_args()
    print(f"| torch, Python {sys.version_info[0]}.{sys.version_info[1]} | outcome |\n|---|---|")
    for release in options.releases.split(","):
        folder = Path(tempfile.mkdtemp(prefix="persistlib-torch-", dir=options.folder))
        try:
            print(f"| {release} | {tried(release, folder)} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
