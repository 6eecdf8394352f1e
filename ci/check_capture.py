#!/usr/bin/env python3
"""check_capture.py CAPTURE...: `zstd -d` of each capture must open with the safetensors package.

Checks that every tensor is there with its shape and type, that the metadata names a schema, and that values are what
the file's bytes say. Exit 0: all opened; 1: one did not; 3: skipped, because zstd or the package is not here.
"""
import json
import shutil
import subprocess
import sys
import tempfile


def main():
    if len(sys.argv) < 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        import numpy
        from safetensors import safe_open
    except ImportError as e:
        print(f"SKIPPED: {e}")
        return 3
    if not shutil.which("zstd"):
        print("SKIPPED: no zstd program")
        return 3
    for capture in sys.argv[1:]:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as plain:
            subprocess.run(["zstd", "-q", "-d", "-f", capture, "-o", plain.name], check=True)
            raw = open(plain.name, "rb").read()
            length = int.from_bytes(raw[:8], "little")
            header = json.loads(raw[8 : 8 + length])
            header.pop("__metadata__")
            with safe_open(plain.name, framework="numpy") as f:
                assert f.metadata()["schema"] == "parity-capture-v1", f.metadata()
                names = set(f.keys())
                assert names == set(header) and names, f"{capture}: {len(names)} tensors of {len(header)}"
                for name in names:
                    t = f.get_tensor(name)
                    begin, end = header[name]["data_offsets"]
                    assert list(t.shape) == header[name]["shape"], name
                    assert numpy.ascontiguousarray(t).tobytes() == raw[8 + length + begin : 8 + length + end], name
            print(f"{capture}: {len(names)} tensors, {len(raw)} bytes: opens with safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
