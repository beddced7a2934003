"""Plain formats: windows equal strides; programs are the identity, a sign trick or a table."""

from __future__ import annotations

import numpy as np

from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E2M3, E3M2, E4M3, E5M2, FP16, INT8, Operand
from unspool.spec.program import STATE, Instruction, Parameter, Program, Table
from unspool.spec.scale import Scale

OCP_FP8 = "OCP 8-bit Floating Point Specification 1.0"
OCP_MX = "OCP Microscaling Formats Specification 1.0"


def _identity(operand: Operand) -> Code:
    return Code(
        name=operand.name.lower(),
        planes=(Plane(window=operand.bits, stride=operand.bits),),
        operand=operand,
        program=Program(outputs=((STATE, 0),)),
    )


def _levels(name: str, parameter: Parameter) -> Code:
    return Code(
        name=name,
        planes=(Plane(window=3, stride=3),),
        operand=parameter.operand,
        program=Program(
            instructions=(Instruction("level", "table", (parameter.name, STATE)),),
            outputs=(("level", 0),),
            parameters=(parameter,),
        ),
    )


# Sign-extends a nibble: flip its sign bit, subtract the sign bit's weight.
_INT4 = Code(
    name="int4",
    planes=(Plane(window=4, stride=4),),
    operand=INT8,
    program=Program(
        instructions=(
            Instruction("flipped", "xor", (STATE, 8)),
            Instruction("signed", "sub", ("flipped", 8)),
        ),
        outputs=(("signed", 0),),
    ),
)

# The 16 levels of QLoRA's appendix E: quantiles of a Gaussian, zero exact, largest 1.
_NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_NF4 = Code(
    name="nf4",
    planes=(Plane(window=4, stride=4),),
    operand=FP16,
    program=Program(
        instructions=(Instruction("level", "table", ("levels", STATE)),),
        outputs=(("level", 0),),
        tables=(
            Table(
                name="levels",
                entries=tuple(int(b) for b in np.array(_NF4_LEVELS, np.float16).view(np.uint16)),
            ),
        ),
    ),
)


def _format(name: str, code: Code, scale: str, source: str) -> Format:
    return Format(name=name, code=code, scale=Scale.parse(scale), source=source)


PLAIN = (
    _format("fp8-e4m3", _identity(E4M3), "row-fp16", OCP_FP8),
    _format("fp8-e5m2", _identity(E5M2), "row-fp16", OCP_FP8),
    _format("mxfp8", _identity(E4M3), "b32-e8m0", OCP_MX),
    _format("mxfp6-e2m3", _identity(E2M3), "b32-e8m0", OCP_MX),
    _format("mxfp6-e3m2", _identity(E3M2), "b32-e8m0", OCP_MX),
    _format("mxfp4", _identity(E2M1), "b32-e8m0", OCP_MX),
    _format("nvfp4", _identity(E2M1), "b16-e4m3", "NVIDIA, Introducing NVFP4, 2025"),
    _format("int8", _identity(INT8), "row-fp16", "symmetric integers, one scale per row"),
    _format("int4", _INT4, "b128-fp16", "symmetric integers, one scale per 128"),
    _format("nf4", _NF4, "b64-fp16", "Dettmers et al. 2023, QLoRA, appendix E"),
    _format(
        "lut3-row",
        _levels("lut3-row", Parameter(name="levels", length=8, operand=E4M3, scope="row")),
        "row-fp16",
        "8 levels per row, fitted by Lloyd's algorithm",
    ),
    _format(
        "lut-b",
        _levels(
            "lut-b",
            Parameter(name="levels", length=8, operand=E4M3, scope="tile", tile=(8, 64)),
        ),
        "tensor",
        "Rubin's LUT-B operand: 192 bytes of indices and 8 E4M3 levels per 8 x 64 tile",
    ),
)
