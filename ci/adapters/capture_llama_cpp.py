#!/usr/bin/env python3
"""capture_llama_cpp.py MODEL -o FILE --tokens 1,2,3 [options]: what llama.cpp computes, op by op, in a safetensors file.

llama.cpp asks a callback before each node of its graph whether it wants to see it and calls again when the node is done.
Read are all ops that `parity` has a tap for, at every position of the prompt and of the decode steps after it; the rows
of a prompt's micro-batches are joined. The run is made without a callback too and both runs' logits go into the file as
hashes: different ones mean that watching changed the result. Needs llama-cpp-python (tried: 0.3.36) and numpy.
"""
import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile

import llama_cpp as L
import numpy as np

# (node name, operation; None: any) -> our tap. Qcur names the product, the sum with the bias, their reshaped view (after
# both) and the rotated result. A product with attn_output.weight is attn_out, whatever it is called.
NODES = {(name, None): name for name in "attn_norm kqv_out attn_out ffn_inp ffn_norm ffn_gate ffn_up ffn_swiglu ffn_out "
         "l_out result_norm result_output".split()}
NODES.update({(x + "cur", op): x + "cur" for x in "QKV" for op in ("RESHAPE", "VIEW")})
NODES.update({("Qcur", "ROPE"): "Qcur_rope", ("Kcur", "ROPE"): "Kcur_rope", ("ffn_gate_par", None): "ffn_swiglu",
              ("embd", "GET_ROWS"): "inp_embd", ("inp_embd", "GET_ROWS"): "inp_embd"})
TYPES = {"f32": ("F32", "<f4", 0), "f16": ("F16", "<f2", 1), "bf16": ("BF16", "<u2", 30), "i32": ("I32", "<i4", 26)}


class Tensor(ctypes.Structure):  # struct ggml_tensor of ggml.h; Capture checks its size against the library's
    _fields_ = [
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p), ("pad", ctypes.c_char * 8)]


class Capture:
    """Tensors in a spool file in order of arrival; a prompt's rows have their place from its first micro-batch on."""
    def __init__(self, n_prompt):
        folder = os.environ.get("LLAMA_CPP_LIB_PATH", os.path.join(os.path.dirname(L.__file__), "lib"))
        names = [n for n in os.listdir(folder) if "ggml-base" in n and n.endswith((".so", ".dylib", ".dll"))]
        self.g = g = ctypes.CDLL(os.path.join(folder, names[0]))
        g.ggml_op_name.restype = g.ggml_type_name.restype = ctypes.c_char_p
        g.ggml_nbytes.restype = g.ggml_tensor_overhead.restype = ctypes.c_size_t
        g.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        if g.ggml_tensor_overhead() != ctypes.sizeof(Tensor) + 32:  # 32: the allocator's own header
            sys.exit("this libggml has another struct ggml_tensor: %d bytes" % (g.ggml_tensor_overhead() - 32))
        self.n_prompt, self.spool, self.header, self.facts, self.cache = n_prompt, tempfile.TemporaryFile(), {}, {}, {}
        self.rewritten, self.error, self.end, self.pos0, self.pos1 = [], None, 0, 0, 0

    def read(self, t):
        """The tensor's values, slowest index first, whatever its strides; and its type's name in safetensors."""
        name = self.g.ggml_type_name(t.type).decode()
        if name not in TYPES:
            raise ValueError("%s is %s: not a type that this adapter reads" % (t.name.decode(), name))
        raw = np.empty(self.g.ggml_nbytes(ctypes.byref(t)), np.uint8)
        self.g.ggml_backend_tensor_get(ctypes.byref(t), raw.ctypes.data, 0, raw.nbytes)
        return np.ndarray(tuple(t.ne[::-1]), TYPES[name][1], raw, 0, tuple(t.nb[::-1]))[0], TYPES[name][0]

    def put(self, tap, layer, rows, dtype, is_cache):
        """Rows pos0:pos1, in the prompt's one tensor or a decode step's; of a cache all rows from position 0 on."""
        p0, p1 = (0, self.n_prompt) if self.pos1 <= self.n_prompt else (self.pos0, self.pos1)
        key = "%s@%d:%d" % (tap if layer < 0 else "%s-%d" % (tap, layer), p0, p1)
        if key not in self.header:
            shape = [p1 if is_cache else p1 - p0, *rows.shape[1:]]
            begin, self.end = self.end, self.end + shape[0] * rows[0].nbytes
            self.header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, self.end]}
            ne = " ".join("ne%d=%d" % (i, n) for i, n in enumerate(rows.shape[:0:-1]))
            self.facts["tap:" + tap] = "op=%s dtype=%s %s" % (tap, dtype, ne)
        skip = 0 if is_cache else (self.pos0 - p0) * rows[0].nbytes
        self.spool.seek(self.header[key]["data_offsets"][0] + skip)
        self.spool.write(np.ascontiguousarray(rows).tobytes())

    def wanted(self, t):
        """[(tap, layer, tensor, how a cache's axes go to position first)] of what to read once this node is done."""
        name, op, out = t.name.decode(), self.g.ggml_op_name(t.op).decode(), []
        sources = [Tensor.from_address(s) for s in t.src if s]
        if op in ("FLASH_ATTN_EXT", "MUL_MAT"):
            for s in sources:
                if m := re.search(r"cache_([kv])_l(\d+)", s.name.decode()):
                    turned = op == "MUL_MAT" and m[1] == "v"  # no flash attention: V is kept with positions fastest
                    out.append((m[1].upper() + "_cache", int(m[2]), s, (2, 0, 1) if turned else (1, 0, 2)))
        if m := op == "MUL_MAT" and re.fullmatch(r"blk\.(\d+)\.attn_output\.weight", sources[0].name.decode()):
            out.append(("attn_out", int(m[1]), t, None))
        elif m := re.fullmatch(r"([A-Za-z_]+)(?:-(\d+))?", name):
            if tap := NODES.get((m[1], op)) or NODES.get((m[1], None)):
                out.append((tap, int(m[2] or -1), t, None))
        return out

    def take(self, tap, layer, t, axes):
        if tap == "inp_embd":
            self.pos0, self.pos1 = self.pos1, self.pos1 + t.ne[1]
        values, dtype = self.read(t)
        if axes:  # as attention reads them; a row that is there must stay what it was
            rows = values.transpose(axes)[:self.pos1].copy()
            before = self.cache.get((tap, layer), rows[:0])
            if before.tobytes() != rows[:len(before)].tobytes():
                self.rewritten.append("%s-%d@%d:%d" % (tap, layer, self.pos0, self.pos1))
            self.cache[tap, layer] = rows
            if self.pos1 >= self.n_prompt:
                self.put(tap, layer, rows, dtype, True)
            return
        if tap.endswith("_rope"):
            pos = list(self.read(Tensor.from_address(t.src[1]))[0].ravel())
            assert pos == list(range(self.pos0, self.pos1)), "%s-%d has positions %s" % (tap, layer, pos)
        self.put(tap, layer, values.reshape(self.pos1 - self.pos0, -1), dtype, False)  # raises where rows are missing

    def callback(self, pointer, ask, _):
        try:
            wanted = self.wanted(Tensor.from_address(pointer))
            for item in [] if ask else wanted:
                self.take(*item)
            return bool(wanted)
        except Exception as e:  # ctypes would print it and go on
            self.error = self.error or e
            return bool(ask)  # false after a node: llama.cpp stops

    def write(self, path):
        head = json.dumps({"__metadata__": self.facts, **self.header}).encode()
        with open(path + ".part", "wb") as f:
            f.write(len(head).to_bytes(8, "little") + head)
            self.spool.seek(0)
            shutil.copyfileobj(self.spool, f)
        os.replace(path + ".part", path)


def run(model, a, prompt, steps, n_greedy, callback):
    """Prompt, given decode steps, greedy ones: all ids and the logits, a row a position."""
    c, n = L.llama_context_default_params(), len(prompt) + len(steps) + n_greedy
    c.n_ctx, c.n_batch, c.n_ubatch = n, len(prompt), min(a.ubatch or len(prompt), len(prompt))
    c.n_threads = c.n_threads_batch = a.threads
    c.type_k = c.type_v = TYPES[a.kv][2]
    c.flash_attn_type, c.cb_eval = int(a.flash_attn == "on"), callback or c.cb_eval
    c = L.llama_init_from_model(model, c)
    batch, ids, logits = L.llama_batch_init(n, 0, 1), [], []
    for tokens in [prompt] + [[t] for t in steps] + [None] * n_greedy:
        tokens = tokens or [int(logits[-1].argmax())]
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, len(ids) + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if L.llama_decode(c, batch) != 0:
            break
        shape = len(tokens), L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
        ids, logits = ids + tokens, logits + list(np.ctypeslib.as_array(L.llama_get_logits(c), shape).copy())
    L.llama_batch_free(batch)
    L.llama_free(c)
    return ids, logits


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("-o", "--output", required=True)
    p.add_argument("--tokens", required=True, help="the prompt's ids")
    p.add_argument("--continue", dest="steps", default="", help="decode steps with these ids")
    p.add_argument("-n", "--decode", type=int, default=0, help="then so many of llama.cpp's own greedy choice")
    p.add_argument("--ubatch", type=int, default=0, help="micro-batch (0: the prompt in one)")
    p.add_argument("--flash-attn", choices=("on", "off"), default="on")
    p.add_argument("--kv", choices=("f16", "f32", "bf16"), default="f16")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--gpu-layers", type=int, default=0)
    p.add_argument("--no-repack", action="store_true", help="weights stay in the file's layout")
    a = p.parse_args()
    prompt, steps = [int(t) for t in a.tokens.split(",")], [int(t) for t in a.steps.split(",") if t]
    quiet = L.llama_log_callback(lambda level, text, _: level == 4 and sys.stderr.buffer.write(text) and None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    mp = L.llama_model_default_params()
    mp.n_gpu_layers, mp.use_extra_bufts = a.gpu_layers, not a.no_repack
    model = L.llama_model_load_from_file(a.model.encode(), mp) or sys.exit("llama.cpp cannot load " + a.model)
    ids, plain = run(model, a, prompt, steps, a.decode, None)
    capture = Capture(len(prompt))
    _, seen = run(model, a, prompt, ids[len(prompt):], 0, L.ggml_backend_sched_eval_callback(capture.callback))
    if capture.error or len(seen) != len(ids) or not ids:
        sys.exit("not captured: %s" % (capture.error or "llama_decode failed"))
    hashes = [hashlib.sha256(np.stack(x).tobytes()).hexdigest()[:16] for x in (seen, plain)]
    sha = hashlib.file_digest(open(a.model, "rb"), "sha256").hexdigest()
    capture.facts.update({
        "schema": "parity-capture-v1", "writer": "capture_llama_cpp.py", "model_sha256": sha,
        "model_path": os.path.basename(a.model), "token_ids": ",".join(map(str, ids)), "n_prompt": str(len(prompt)),
        "positions": "0:%d" % len(ids), "path": "llama.cpp", "schedule": "prefill", "chunk": str(a.ubatch),
        "knobs": "threads=%d ubatch=%d flash_attn=%s kv=%s repack=%s gpu_layers=%d" % (
            a.threads, a.ubatch, a.flash_attn, a.kv.upper(), "off" if a.no_repack else "on", a.gpu_layers),
        "variants": L.llama_print_system_info().decode().strip(), "logits_hash": hashes[0], "aa_hash": hashes[1],
        "build": "llama-cpp-python %s numpy %s" % (L.__version__, np.__version__),
        "cache_rows_rewritten": " ".join(capture.rewritten) or "none"})
    capture.write(a.output)
    far = max(float(np.abs(s - q).max()) for s, q in zip(seen, plain))
    print("%s: %d positions, %d of the prompt; %d tensors; logits with and without the callback: %s" % (
        a.output, len(ids), len(prompt), len(capture.header),
        "the same bits" if hashes[0] == hashes[1] else "up to %g apart" % far))


if __name__ == "__main__":
    main()
