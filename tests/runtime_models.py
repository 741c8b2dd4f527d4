"""Models on which verdicts about releases of ONNX Runtime are tried: each asks for something else.

They are written as ONNX text. What runtimes make of them differs by release; the table is
docs/compatibility.md.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

NEWEST = 28  # the newest operator set that is tried


def model(body: str, opset: int = 17, ir: int = 8, domains: str = "") -> onnx.ModelProto:
    """Return the model of a text: the graph, and functions behind it."""
    text = f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]>\n{body}'
    return onnx.parser.parse_model(text)


def _unary(call: str, kind: str = "float", shape: str = "[2,4]") -> str:
    return f"g ({kind}{shape} x) => ({kind} y) {{ y = {call} }}"


_NET = """g (float[N,1,8,8] x) => (float[N,3] y)
<float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[2,3] v = {1,2,3,4,5,6},
 float[3] b = {1,2,3}> {
  c = Conv<pads = [1,1,1,1]>(x, w)
  r = Relu(c)
  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
  q = GlobalAveragePool(p)
  f = Flatten(q)
  g = Gemm(f, v, b)
  y = Softmax<axis = 1>(g)
}"""

_QDQ = """g (float[1,1,4,4] x) => (float[1,1,4,4] y)
<float s = {0.1}, KIND z = {0}, WEIGHT[1,1,1,1] w = {3}, WEIGHT wz = {0}> {
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  wd = DequantizeLinear(w, s, wz)
  c = Conv(d, wd)
  r = Relu(c)
  e = QuantizeLinear(r, s, z)
  y = DequantizeLinear(e, s, z)
}"""


def _qdq(kind: str, weight: str = "int8") -> str:
    return _QDQ.replace("KIND", kind).replace("WEIGHT", weight)


_LOOP = """g (int64 n, bool c, KIND[2] x) => (KIND[2] y, KIND[n,2] all) {
  y, all = Loop(n, c, x) <body = b (int64 i, bool k, KIND[2] s) => (bool m, KIND[2] t, KIND[2] o) {
    m = Identity(k)
    t = OP
    o = Identity(t)
  }>
}"""

_IF = """g (bool c, float[2,4] x) => (float[2,4] y) {
  y = If(c) <
    then_branch = t () => (float[2,4] a) { a = THEN },
    else_branch = e () => (float[2,4] b) { b = ELSE }
  >
}"""


def _if(then: str, other: str = "Neg(x)") -> str:
    return _IF.replace("THEN", then).replace("ELSE", other)


_CONSTANT_IF = """g (float[2,4] x) => (float[2,4] y) <bool c = {1}> {
  y = If(c) <
    then_branch = t () => (float[2,4] a) { a = Relu(x) },
    else_branch = e () => (float[2,4] b) { b = Swish(x) }
  >
}"""

_SCAN = """g (float[3,2] x, float[2] s) => (float[2] t, float[3,2] y) {
  t, y = Scan(s, x) <num_scan_inputs = 1, body = b (float[2] u, float[2] v)
    => (float[2] w, float[2] o) {
    w = Add(u, v)
    o = Mul(w, v)
  }>
}"""

_FUNCTION = """g (KIND[2,4] x) => (KIND[2,4] y) { y = own.Twice(x) }
<domain: "own", opset_import: ["": 17]> Twice (a) => (b) { c = OP b = Add(c, c) }"""

_NESTED = """g (float[2,4] x) => (float[2,4] y) { y = own.Outer<k = 2.0>(x) }
<domain: "own", opset_import: ["": 17, "own": 1]> Outer<k>(a) => (b) {
  c = own.Inner<alpha: float = @k>(a)
  b = Relu(c)
}
<domain: "own", opset_import: ["": 17]> Inner<alpha>(a) => (b) {
  b = LeakyRelu<alpha: float = @alpha>(a)
}"""

_MS = ', "com.microsoft": 1'
_ML = ', "ai.onnx.ml": 3'
_OWN = ', "own": 1'


def _function(call: str, kind: str = "float") -> str:
    return _FUNCTION.replace("KIND", kind).replace("OP", call)


def _loop(call: str, kind: str = "float") -> str:
    return _LOOP.replace("KIND", kind).replace("OP", call)


def models() -> dict[str, onnx.ModelProto]:
    """Return every model by name."""
    found = {f"net-opset-{o}": model(_NET, o, 10 if o > 22 else 8) for o in range(7, NEWEST + 1)}
    found |= {f"net-ir-{ir}": model(_NET, 12, ir) for ir in range(3, 15)}
    for group in (_dtypes, _quantised, _contrib, _new, _control, _functions, _faults, _limits):
        found |= group()
    return found


def _dtypes() -> dict[str, onnx.ModelProto]:
    gemm = "g (KIND[2,4] x, KIND[4,3] w, KIND[3] b) => (KIND[2,3] y) { y = Gemm(x, w, b) }"
    add = "g (KIND[2] x, KIND[2] z) => (KIND[2] y) { y = Add(x, z) }"
    cast = "g (KIND[2] x) => (float[2] y) { c = Cast<to = 1>(x) y = Relu(c) }"
    round_trip = "g (float[2] x) => (float[2] y) { c = Cast<to = TO>(x) y = Cast<to = 1>(c) }"
    nonzero = "g (float16[2,3] x) => (int64 y) { y = NonZero(x) }"
    kinds = ("float16", "bfloat16", "double", "int32")
    sums = ("int8", "int16", "uint8", "uint32", "bfloat16", "float16")
    return {
        **{f"gemm-{kind}": model(gemm.replace("KIND", kind), 13) for kind in kinds},
        **{f"add-{kind}": model(add.replace("KIND", kind), 14) for kind in sums},
        "cast-from-bfloat16": model(cast.replace("KIND", "bfloat16"), 13),
        "cast-through-float8": model(round_trip.replace("TO", "17"), 19, 9),
        "cast-through-int4": model(round_trip.replace("TO", "22"), 21, 10),
        "cast-through-float4": model(round_trip.replace("TO", "23"), 23, 11),
        "cast-through-int2": model(round_trip.replace("TO", "26"), 25, 13),
        "net-of-half": model(_NET.replace("float[", "float16["), 17),
        "net-of-double": model(_NET.replace("float[", "double["), 17),
        "net-of-bfloat16": model(_NET.replace("float[", "bfloat16["), 17),
        "nonzero-of-half": model(nonzero, 13),
        "tan-of-half": model(_unary("Tan(x)", "float16"), 13),
        "tan-of-double": model(_unary("Tan(x)", "double"), 13),
        "strings": model(_unary("StringNormalizer(x)", "string", "[4]"), 13),
    }


def _quantised() -> dict[str, onnx.ModelProto]:
    blocked = """g (float[4,2] x, int4[2,4] w) => (float y) <float[1,4] s = {1,2,3,4}> {
      d = DequantizeLinear<axis = 0, block_size = 2>(w, s)
      y = MatMul(x, d)
    }"""
    dynamic = """g (float[2,4] x) => (uint8 y, float s, uint8 z) {
      y, s, z = DynamicQuantizeLinear(x) }"""
    integer = "g (uint8[2,4] x, int8[4,2] w) => (int32[2,2] y) { y = MatMulInteger(x, w) }"
    float8 = """g (float[4] x) => (float[4] y) <float s = {0.5}, float8e4m3fn z = {0}> {
      q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s) }"""
    return {
        "qdq-uint8-opset-13": model(_qdq("uint8"), 13),
        "qdq-int8-opset-21": model(_qdq("int8"), 21, 10),
        "qdq-uint16-opset-21": model(_qdq("uint16"), 21, 10),
        "qdq-uint16-opset-13": model(_qdq("uint16"), 13),
        "qdq-weight-int4": model(_qdq("uint8", "int4"), 21, 10),
        "dequantise-blocks-of-int4": model(blocked, 21, 10),
        "quantise-float8": model(float8, 19, 9),
        "dynamic-quantisation": model(dynamic, 11),
        "matmul-integer": model(integer, 10),
    }


def _contrib() -> dict[str, onnx.ModelProto]:
    heads = """g (float[1,4,8] q) => (float[1,4,8] y) {
      y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, q, q) }"""
    bits = """g (float[2,32] x, uint8[4,1,16] w, float[4] s) => (float y) {
      y = com.microsoft.MatMulNBits<K = 32, N = 4, bits = 4, block_size = 32>(x, w, s) }"""
    skip = """g (KIND[1,2,4] x, KIND[1,2,4] s, KIND[4] w) => (KIND y) {
      y = com.microsoft.SkipLayerNormalization(x, s, w) }"""
    labels = """g (int64[4] x) => (string[4] y) {
      y = ai.onnx.ml.LabelEncoder<keys_int64s = [1,2], values_strings = ["a", "b"]>(x) }"""
    return {
        "contrib-gelu": model(_unary("com.microsoft.Gelu(x)"), 17, 8, _MS),
        "contrib-gelu-of-double": model(_unary("com.microsoft.Gelu(x)", "double"), 17, 8, _MS),
        "contrib-gelu-of-half": model(_unary("com.microsoft.Gelu(x)", "float16"), 17, 8, _MS),
        "contrib-not-imported": model(_unary("com.microsoft.QuickGelu(x)")),
        "contrib-opset-2": model(_unary("com.microsoft.Gelu(x)"), 17, 8, ', "com.microsoft": 2'),
        "contrib-attention": model(heads, 17, 8, _MS),
        "contrib-matmul-of-4-bits": model(bits, 17, 8, _MS),
        "contrib-skip-norm": model(skip.replace("KIND", "float"), 17, 8, _MS),
        "contrib-skip-norm-of-half": model(skip.replace("KIND", "float16"), 17, 8, _MS),
        "contrib-for-gpu-alone": model(_unary("com.microsoft.GemmFloat8(x, x)"), 17, 8, _MS),
        "contrib-unknown": model(_unary("com.microsoft.Wish(x)"), 17, 8, _MS),
        "ml-labels": model(labels, 17, 8, _ML),
        "custom-domain": model(_unary("own.Wish(x)"), 17, 8, _OWN),
        "custom-domain-not-used": model(_unary("Relu(x)"), 17, 8, _OWN),
    }


def _new() -> dict[str, onnx.ModelProto]:
    group = """g (float[1,4,2] x, float[N] s) => (float[1,4,2] y) {
      y = GroupNormalization<num_groups = 2>(x, s, s) }"""
    attention = """g (float[1,2,4,8] q) => (float[1,2,4,8] y) { y = Attention(q, q, q) }"""
    layer = "g (KIND[2,4] x, KIND[4] s) => (KIND[2,4] y) { y = LayerNormalization(x, s) }"
    rms = "g (float[2,4] x, float[4] s) => (float[2,4] y) { y = RMSNormalization(x, s) }"
    image = "g (uint8[N] x) => (uint8[h,w,c] y) { y = ImageDecoder(x) }"
    strings = "g (string[2] x) => (string[2] y) { y = StringConcat(x, x) }"
    return {
        "gelu-opset-20": model(_unary("Gelu(x)"), 20, 9),
        "gelu-of-half": model(_unary("Gelu(x)", "float16"), 20, 9),
        "gelu-opset-17": model(_unary("Gelu(x)"), 17),
        "group-norm-opset-18": model(group.replace("[N]", "[2]"), 18),
        "group-norm-opset-21": model(group.replace("[N]", "[4]"), 21, 10),
        "layer-norm": model(layer.replace("KIND", "float"), 17),
        "layer-norm-of-bfloat16": model(layer.replace("KIND", "bfloat16"), 17),
        "rms-norm": model(rms, 23, 10),
        "attention": model(attention, 23, 10),
        "swish": model(_unary("Swish(x)"), 24, 10),
        "image-decoder": model(image, 20, 9),
        "string-concat": model(strings, 20, 9),
        "mish": model(_unary("Mish(x)"), 18),
        "mish-of-double": model(_unary("Mish(x)", "double"), 18),
        "upsample-as-of-old": model(
            "g (float[1,1,2,2] x) => (float y) <float[4] s = {1,1,2,2}> { y = Upsample(x, s) }", 9
        ),
        "upsample-deprecated": model(
            "g (float[1,1,2,2] x) => (float y) <float[4] s = {1,1,2,2}> { y = Upsample(x, s) }", 13
        ),
    }


def _control() -> dict[str, onnx.ModelProto]:
    mapped = """g (seq(float[2]) x) => (seq(float[2]) y) {
      y = SequenceMap(x) <body = b (float[2] i) => (float[2] o) { o = Relu(i) }> }"""
    return {
        "if": model(_if("Relu(x)")),
        "if-of-what-is-new": model(_if("Gelu(x)"), 20, 9),
        "if-of-what-is-lacking": model(_if("Relu(x)", "own.Wish(x)"), 17, 8, _OWN),
        "if-constant": model(_CONSTANT_IF, 24, 10),
        "loop": model(_loop("Relu(s)")),
        "loop-of-half": model(_loop("Sin(s)", "float16")),
        "loop-of-int8": model(_loop("Add(s, s)", "int8")),
        "scan": model(_SCAN),
        "sequence-map": model(mapped, 17),
    }


def _functions() -> dict[str, onnx.ModelProto]:
    return {
        "function": model(_function("Relu(a)"), 17, 8, _OWN),
        "function-of-half": model(_function("Sin(a)", "float16"), 17, 8, _OWN),
        "function-of-int8": model(_function("Identity(a)", "int8"), 17, 8, _OWN),
        "function-of-what-is-lacking": model(_function("Gelu(a)"), 17, 8, _OWN),
        "functions-nested": model(_NESTED, 17, 8, _OWN),
    }


def _faults() -> dict[str, onnx.ModelProto]:
    dead = "g (int8[2] x) => (int8[2] y) { d = Add(x, x) y = Identity(x) }"
    folded = """g (float[2] x) => (float[2] y) <bfloat16[2] a = {1, 2}> {
      s = Add(a, a) c = Cast<to = 1>(s) y = Add(x, c) }"""
    unsorted = "g (float[2] x) => (float[2] y) { y = Neg(r) r = Relu(x) }"
    batch = """g (float[1,2,4] x, float[2] s) => (float y) {
      y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s) }"""
    recurrent = """g (float[2,3,4] x, float[1,9,4] w, float[1,9,3] r) => (float y) {
      y = GRU<hidden_size = 3, layout = 1>(x, w, r) }"""
    shapes = "g (float[2,4] x, float[3,2] w) => (float y) { y = MatMul(x, w) }"
    return {
        "dead-node": model(dead, 14),
        "folded-constants": model(folded, 14),
        "nodes-unsorted": model(unsorted),
        "dropout-of-bfloat16": model(_unary("Dropout(x)", "bfloat16"), 13),
        "identity-of-bfloat16": model(_unary("Identity(x)", "bfloat16"), 13),
        "attribute-unknown": model(_unary("Relu<speed = 2>(x)")),
        "attribute-missing": model("g (float[2] x) => (float y) { y = Concat(x, x) }"),
        "type-forbidden": model(_unary("Relu(x)", "bool")),
        "types-mixed": model("g (float[2] x, int64[2] z) => (float[2] y) { y = Add(x, z) }"),
        "type-said-wrong": model("g (float[2] x) => (int64[2] y) { y = Relu(x) }"),
        "shapes-at-odds": model(shapes),
        "input-of-nowhere": model("g (float[2] x) => (float[2] y) { y = Add(x, lost) }"),
        "batch-norm-in-training": model(batch, 15),
        "gru-batch-first": model(recurrent, 14),
    }


def _limits() -> dict[str, onnx.ModelProto]:
    """Return models that kernels refuse, or whose definition a release lacks."""
    lstm = """g (float[2,3,4] x, float[1,12,4] w, float[1,12,3] r) => (float y) {
      y = LSTM(x, w, r) }"""
    bits = """g (float[2,32] x, uint8[4,1,32] w, float[4] s) => (float y) {
      y = com.microsoft.MatMulNBits<K = 32, N = 4, bits = 8, block_size = 32>(x, w, s) }"""
    dft = "g (float[1,4,2] x) => (float y) { y = DFT<inverse = 1, onesided = 1, axis = 1>(x) }"
    fast = _unary("com.microsoft.FastGelu(x)", "double")
    quick = _unary("com.microsoft.QuickGelu(x)", "double")
    resize = 'g (float[1,1,4,4] x, float[4] s) => (float y) { y = Resize<mode = "MODE">(x, , s) }'
    return {
        "lstm-without-size": model(lstm, 14),
        "matmul-of-8-bits": model(bits, 17, 8, _MS),
        "dft-inverse-and-one-sided": model(dft, 17),
        "contrib-fast-gelu-of-double": model(fast, 17, 8, _MS),
        "contrib-quick-gelu-of-double": model(quick, 17, 8, _MS),
        "swish-opset-25": model(_unary("Swish(x)"), 25, 10),
        "softplus-of-double": model(_unary("Softplus(x)", "double"), 18),
        "resize-cubic": model(resize.replace("MODE", "cubic"), 13),
        "resize-unknown": model(resize.replace("MODE", "wish"), 13),
        "lrn-of-even-size": model(_unary("LRN<size = 4>(x)", "float", "[1,3,4,4]"), 13),
        "cast-to-a-later-type": model("g (float[2] x) => (bfloat16 y) { y = Cast<to = 16>(x) }", 9),
    }


def backend() -> dict[str, onnx.ModelProto]:
    """Return every backend test model that the installed onnx ships or makes, by name."""
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, onnx.ModelProto] = {}
    for kind in ("node", "simple", "pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            path = Path(case.model_dir or "", "model.onnx")
            if case.model is not None:
                found[f"{kind}-{case.name}"] = case.model
            elif path.exists():
                found[f"{kind}-{case.name}"] = onnx.load(path)
    for path in Path(onnx.__file__).parent.glob("backend/test/data/light/*.onnx"):
        found[f"light-{path.stem}"] = onnx.load(path)
    return found
