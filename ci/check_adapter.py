#!/usr/bin/env python3
"""check_adapter.py PARITY MODEL IDS STEPS [ADAPTER OPTIONS]: do the adapter's names and layouts mean what ours mean?

Captures MODEL in llama.cpp through ci/adapters/capture_llama_cpp.py and along q4k-cpu with the same ids, and has `parity
diff` compare them. Both quantise activations their own way, so values differ a little in layer 0 and more below; a wrong
name, head order, position or transposition is as far from the truth as another vector. Exit 1: a float tap of q4k-cpu is
missing, or farther than that; 3: skipped, because llama-cpp-python is not here.
"""
import json
import os
import subprocess
import sys
import tempfile

FIRST_LAYER = 0.1  # relative L2; unrelated vectors are 1.4 apart, a tap before and after RoPE about 1
OTHER_LAYERS = 0.7


def main():
    if len(sys.argv) < 5:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        import llama_cpp  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as e:
        print("SKIPPED: %s" % e)
        return 3
    parity, model, ids, steps = sys.argv[1:5]
    adapter = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adapters", "capture_llama_cpp.py")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.path.join(folder, "ours"), os.path.join(folder, "theirs.safetensors")
        subprocess.run([sys.executable, adapter, model, "-o", theirs, "--tokens", ids, "--continue", steps,
                        *sys.argv[5:]], check=True)
        subprocess.run([parity, "trace", model, "--path", "q4k-cpu", "-o", ours, "--tokens", ids, "--continue", steps,
                        "--all-logits", "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
        out = subprocess.run([parity, "diff", ours, theirs, "--all", "--json"], capture_output=True, text=True)
    diff = json.loads(out.stdout)
    bad, n, worst = [], 0, {}
    if diff["exit"] not in (0, 3):
        bad.append("parity diff: %s: %s" % (diff["verdict"], diff["why"]))
    for row in diff["taps"]:
        if "_q8" in row["tap"]:  # llama.cpp does not show what it rounds activations to
            continue
        n += 1
        layer = row["tap"].rpartition("-")[2] if "-" in row["tap"] else ""
        limit = FIRST_LAYER if layer == "0" else OTHER_LAYERS
        alone = row["n_only_a"] + row["n_only_b"]
        far = 0 if not row["n_differ"] else row["metrics"]["rel_l2"]
        if not row["n_positions"] or alone or not far <= limit:
            bad.append("%s: distance %g (at most %g) over %d positions, %d on one side alone" % (
                row["tap"], far, limit, row["n_positions"], alone))
        elif layer in ("", "0"):
            worst[row["tap"]] = far
    print("%d taps; layer 0 and outside layers: %s" % (n, " ".join("%s %.2g" % item for item in worst.items())))
    for line in bad:
        print("FAILED: " + line)
    return 1 if bad or not n else 0


if __name__ == "__main__":
    sys.exit(main())
