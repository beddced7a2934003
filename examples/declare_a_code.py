"""Declares a code that the catalog does not have, looks at it, and measures what it costs.

    python examples/declare_a_code.py

A window of 8 bits slides by 2 bits per weight; one multiplication turns it into an INT8 weight. No
table, no kernel to write: the interpreter, the encoder, packing and the CPU kernels follow from it.
"""

from __future__ import annotations

import numpy as np

from unspool.decode.interpret import state_values
from unspool.encode.encode import encode
from unspool.evaluate.gaussian import gaussian
from unspool.matmul.kernel import Kernel
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import INT8
from unspool.spec.program import STATE, Instruction, Program
from unspool.spec.scale import Scale

PROGRAM = Program(
    instructions=(
        Instruction("product", "mul", (STATE, 0xCBAC1FED)),
        Instruction("masked", "and", ("product", 0x3F3F3F3F)),  # four numbers of 0 to 63
        Instruction("sum", "byte-sum", ("masked", 0)),  # nearly Gaussian around 126
        Instruction("weight", "sub", ("sum", 126)),
    ),
    outputs=(("weight", 0),),
)


def main() -> None:
    """Prints the code's values, its distortion, and a product with it."""
    code = Code(
        name="sum-of-four",
        planes=(Plane(window=8, stride=2),),
        operand=INT8,
        program=PROGRAM,
        sigma=37.0,
    )
    values = state_values(code)
    print(f"{len(values)} states, values from {values.min():g} to {values.max():g}")

    fmt = Format(name="sum-of-four", code=code, scale=Scale.parse("row-fp16"))
    weight = gaussian((64, 1024))
    kernel = Kernel(encode(weight, fmt))
    error = np.mean((weight - kernel.decode()) ** 2)
    print(f"{fmt.bits_per_weight():.3f} bits per weight, mean squared error {error:.4f}")

    x = gaussian((1, 1024), seed=1)
    print(f"product within {np.abs(kernel(x) - x @ kernel.decode().T).max():.1e} ({kernel.path})")


if __name__ == "__main__":
    main()
