"""ONNX Runtime's MatMulNBits at 2 and 4 bits: the optional packages `onnxruntime` and `onnx`.

Copies are nodes of one graph that all read the same activations: a session per copy would have
threads of its own, which spin after each run on the cores that the next one wants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from unspool.evaluate.products import copies

FORMATS = {
    "2-bit b128": (2, 128),
    "2-bit b32": (2, 32),
    "4-bit b128": (4, 128),
    "4-bit b32": (4, 32),
}
"""Name -> bits per code, columns per scale."""

INT8_ACTIVATIONS = 4
"""`accuracy_level`: activations are rounded to int8."""

OPSET, IR_VERSION = 21, 10
DOMAIN = "com.microsoft"


class OnnxWeights:
    """Copies of a random matrix: a peer's `unspool.evaluate.products.Weights`."""

    def __init__(self, name: str, n: int, k: int, *, hot: bool = False) -> None:
        """Draws codes and scales; sessions are made for each thread count."""
        self.bits, self.block = FORMATS[name]
        self.format, self.path, self.n, self.k = f"onnxruntime {name}", "MatMulNBits", n, k
        rng, blocks = np.random.default_rng(0), -(-k // self.block)
        bytes_per_block = self.block * self.bits // 8
        self.codes = rng.integers(0, 256, (n, blocks, bytes_per_block), np.uint8)
        self.scales = rng.uniform(0.5, 1.0, (n, blocks)).astype(np.float32)
        self.nbytes = self.codes.nbytes + self.scales.nbytes
        self.products_per_call = copies(self.nbytes, hot=hot)
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}

    def product(self, x: np.ndarray, threads: int) -> Callable[[], object]:
        """A function that multiplies x [m, k] with every copy."""
        if threads not in self._sessions:
            self._sessions[threads] = self._session(threads)
        session = self._sessions[threads]
        binding = session.io_binding()
        binding.bind_cpu_input("x", np.ascontiguousarray(x))
        for place in range(self.products_per_call):
            binding.bind_output(f"y{place}")
        return lambda: session.run_with_iobinding(binding)

    def result(self, x: np.ndarray, threads: int = 1) -> np.ndarray:
        """The product with the first copy, float32 [m, n]."""
        return self._session(threads).run(["y0"], {"x": x})[0]

    def dense(self) -> np.ndarray:
        """The weight that the codes stand for, float32 [n, k]."""
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        codes = self.codes[..., None] >> shifts & (1 << self.bits) - 1
        codes = codes.reshape(self.n, -1, self.block).astype(np.float32) - (1 << self.bits - 1)
        return (codes * self.scales[..., None]).reshape(self.n, -1)[:, : self.k]

    def rotation(self, x: np.ndarray, threads: int) -> None:
        """There is none."""

    def close(self) -> None:
        """Drops all sessions."""
        self._sessions.clear()

    def _session(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        model = self._model().SerializeToString()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _model(self) -> object:
        nodes, weights, outputs = [], [], []
        for place in range(self.products_per_call):
            weights.append(numpy_helper.from_array(self.codes, f"codes{place}"))
            weights.append(numpy_helper.from_array(self.scales, f"scales{place}"))
            outputs.append(_tensor(f"y{place}", ["m", self.n]))
            nodes.append(self._node(place))
        graph = helper.make_graph(
            nodes, "products", [_tensor("x", ["m", self.k])], outputs, weights
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)

    def _node(self, place: int) -> object:
        return helper.make_node(
            "MatMulNBits",
            ["x", f"codes{place}", f"scales{place}"],
            [f"y{place}"],
            domain=DOMAIN,
            K=self.k,
            N=self.n,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=INT8_ACTIVATIONS,
        )


def _tensor(name: str, shape: list[str | int]) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
