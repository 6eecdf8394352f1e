"""Alternates `parity bench` with llama-cpp-python on one model and prints both, and the median of the paired ratios.

usage: bench_beside.py PROGRAM MODEL THREADS
"""
import json
import statistics
import subprocess
import sys
import time

import llama_cpp

ROUNDS, PREFILL, DECODE = 5, 512, 64


def ours(program, model, threads, prefill, path="q4k-cpu", steps=DECODE):
    out = subprocess.run([program, "bench", model, "--paths", path, "--prefill", str(prefill), "--steps", str(steps),
                          "--runs", "1", "--threads", str(threads), "--json"],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def theirs(llm, ids, prefill):
    """Prompt then single tokens, logits of the last one only, as llama-bench does it."""
    best = None
    for _ in range(2):  # the first one warms up, as ours does
        llm.reset()
        start = time.perf_counter()
        llm.eval(ids[:prefill])
        middle = time.perf_counter()
        for i in range(DECODE):
            llm.eval([ids[prefill + i]])
        end = time.perf_counter()
        best = prefill / (middle - start), DECODE / (end - middle)
    return best


def main():
    program, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    llm = llama_cpp.Llama(model_path=model, n_threads=threads, n_threads_batch=threads, n_ctx=PREFILL + DECODE + 8,
                          n_batch=512, logits_all=False, verbose=False)
    text = b"A ring buffer keeps the last n samples without moving memory. " * 80
    ids = llm.tokenize(text)[:PREFILL + DECODE]
    rows = []
    for i in range(ROUNDS):
        a, b = ours(program, model, threads, PREFILL), theirs(llm, ids, PREFILL)
        short, short_b = ours(program, model, threads, 78), theirs(llm, ids, 78)
        rows.append((a["prefill_tok_s"], b[0], a["decode_tok_s"], b[1], short["prefill_tok_s"], short_b[0]))
        print("round %d: prefill %d: ours %.1f, llama.cpp %.1f tok/s; decode: ours %.2f, llama.cpp %.2f tok/s; "
              "prefill 78: ours %.1f, llama.cpp %.1f" % (i + 1, PREFILL, *rows[-1]), flush=True)
    for name, x, y in (("prefill %d" % PREFILL, 0, 1), ("decode", 2, 3), ("prefill 78", 4, 5)):
        print("%-12s ours %.2f tok/s, llama.cpp %.2f tok/s, ratio %.2f (median of %d pairs)" % (
            name, statistics.median(r[x] for r in rows), statistics.median(r[y] for r in rows),
            statistics.median(r[x] / r[y] for r in rows), ROUNDS))
    f32 = ours(program, model, threads, 256, "f32", 0)
    print("f32 prefill 256: %.1f tok/s, %.0f GFLOP/s = %.0f %% of the measured FMA ceiling of %.0f; read ceiling %.1f GB/s" % (
        f32["prefill_tok_s"], f32["prefill_gflop_s"], 100 * f32["prefill_gflop_s"] / f32["fma_gflop_s"],
        f32["fma_gflop_s"], f32["read_gb_s"]))
    print("llama-cpp-python %s" % llama_cpp.__version__)


if __name__ == "__main__":
    main()
