"""Kernels that do one machine instruction over and over; a test reads their machine code.

    loop    BODY instructions under test, in CHAINS chains of which each waits for itself alone
    rate    threads * BODY * iterations / clocks of the block, one block per multiprocessor

Nothing is known to the compiler: the chains start from memory and their ends go there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu.board import STRUCT

THREADS, CHAINS, STEPS = 1024, 8, 16
BODY = CHAINS * STEPS
"""32 warps of 8 independent chains hide every latency: 64 instructions in flight per scheduler."""

ITERATIONS = 512

READ_BYTES, READ_AHEAD = 16, 8
READ_THREADS, READ_BLOCKS = 256, 4
"""Bytes of a load, loads of a turn, threads of a block, blocks of a multiprocessor. Four loads at
least are on their way before the first is waited for (a test reads the machine code): 64 KiB per
multiprocessor, where 4.8 TB/s at 1 us take 36 of each of 132, and 8 TB/s 54 of 148."""

UNLIKELY = 0x9E3779B9
"""What a thread's words must come to for it to write: so that no load can be left out."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An instruction: what of PTX becomes it, and what it is called in machine code."""

    #: of a chain's register x and two others y, z
    ptx: str
    #: stems of the opcodes it may become; the first is its name
    stems: tuple[str, ...]
    #: compute capability, as 89, from which there is such an instruction
    since: int = 80
    #: results of one instruction
    results: int = 1
    #: the type of a chain, and how PTX calls its registers
    chain: tuple[str, str] = ("unsigned", "r")


PROBES: Mapping[str, Probe] = {
    "PRMT": Probe(ptx="prmt.b32 %0, %0, %1, %2;", stems=("PRMT",)),
    "LOP3": Probe(ptx="lop3.b32 %0, %0, %1, %2, 0x6a;", stems=("LOP3",)),
    "IMAD": Probe(ptx="mad.lo.u32 %0, %0, %1, %2;", stems=("IMAD",)),
    "IMAD.WIDE": Probe(  # written as a product and a sum: mad.wide.u32 becomes three instructions
        ptx="{ .reg .u32 lo, hi; .reg .u64 t; mov.b64 {lo, hi}, %0; "
        "mul.wide.u32 t, hi, %1; add.u64 %0, t, %0; }",
        stems=("IMAD.WIDE",),
        chain=("unsigned long long", "l"),
    ),
    "IADD3": Probe(
        ptx="{ .reg .u32 t; add.u32 t, %0, %1; add.u32 %0, t, %2; }", stems=("IADD3", "IADD")
    ),
    "SHF": Probe(ptx="shf.r.wrap.b32 %0, %0, %1, %2;", stems=("SHF",)),
    "IDP": Probe(ptx="dp4a.u32.u32 %0, %0, %1, %2;", stems=("IDP", "IDP4A")),
    "HFMA2": Probe(ptx="fma.rn.f16x2 %0, %0, %1, %2;", stems=("HFMA2",), results=2),
    "F2FP.PACK": Probe(
        ptx="{ .reg .f32 a, b; mov.b32 a, %0; mov.b32 b, %1; cvt.rn.f16x2.f32 %0, a, b; }",
        stems=("F2FP",),
        results=2,
    ),
    "F2FP.UNPACK": Probe(
        ptx="{ .reg .b16 a; cvt.u16.u32 a, %0; cvt.rn.f16x2.e4m3x2 %0, a; }",
        stems=("F2FP",),
        since=89,
        results=2,
    ),
    "LDS": Probe(ptx="ld.shared.u32 %0, [%0];", stems=("LDS",)),
}


def probes(capability: tuple[int, int]) -> dict[str, Probe]:
    """The instructions that a GPU has."""
    number = 10 * capability[0] + capability[1]
    return {name: probe for name, probe in PROBES.items() if probe.since <= number}


def kernel_name(name: str) -> str:
    """The kernel of an instruction."""
    return "probe_" + name.replace(".", "_").lower()


def source(capability: tuple[int, int]) -> str:
    """All of them for a GPU, and an empty kernel."""
    empty = 'extern "C" __global__ void empty(const Arguments a) { (void)a; }\n'
    return STRUCT + empty + "".join(_kernel(*item) for item in probes(capability).items())


def read_source() -> str:
    """The kernel `read`, which loads `count` times 16 bytes and writes next to nothing."""
    return (
        STRUCT
        + f"""
extern "C" __global__ void __launch_bounds__({READ_THREADS}) read(const Arguments a) {{
    const uint4* from = (const uint4*)a.given;
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned seen = 0;
    #pragma unroll 1
    for (; i + {READ_AHEAD - 1} * step < a.count; i += {READ_AHEAD} * step) {{
        uint4 held[{READ_AHEAD}];
        #pragma unroll
        for (int j = 0; j < {READ_AHEAD}; ++j) held[j] = __ldcs(from + i + j * step);
        #pragma unroll
        for (int j = 0; j < {READ_AHEAD}; ++j)
            seen ^= held[j].x ^ held[j].y ^ held[j].z ^ held[j].w;
    }}
    #pragma unroll 1
    for (; i < a.count; i += step) {{
        const uint4 held = __ldcs(from + i);
        seen ^= held.x ^ held.y ^ held.z ^ held.w;
    }}
    if (seen == (unsigned)a.number) a.out[blockIdx.x] = seen;
}}
"""
    )


def _kernel(name: str, probe: Probe) -> str:
    """Thread 0 writes the block's clocks behind what the chains came to."""
    kind, register = probe.chain
    operands = f'"+{register}"(x[chain])'
    inputs = ' : "r"(y), "r"(z)' if "%1" in probe.ptx else ""
    memory = ' : : "memory"' if name == "LDS" else ""
    start = (
        "(unsigned)__cvta_generic_to_shared(shared + threadIdx.x)"
        if name == "LDS"
        else ("a.given[threadIdx.x + 32 * chain]")
    )
    return f"""
extern "C" __global__ void __launch_bounds__({THREADS}) {kernel_name(name)}(const Arguments a) {{
    __shared__ unsigned shared[{THREADS}];
    shared[threadIdx.x] = (unsigned)__cvta_generic_to_shared(shared + threadIdx.x);
    {kind} x[{CHAINS}];
    unsigned y = a.given[threadIdx.x], z = a.given[threadIdx.x + 32];
    for (int chain = 0; chain < {CHAINS}; ++chain) x[chain] = {start};
    __syncthreads();
    const long long before = clock64();
    #pragma unroll 1
    for (unsigned i = 0; i < (unsigned)a.number; ++i) {{
        #pragma unroll
        for (int step = 0; step < {STEPS}; ++step)
            #pragma unroll
            for (int chain = 0; chain < {CHAINS}; ++chain)
                asm volatile("{probe.ptx}" : {operands}{inputs or memory});
    }}
    __syncthreads();
    const long long after = clock64();
    {kind} sum = 0;
    for (int chain = 0; chain < {CHAINS}; ++chain) sum ^= x[chain];
    a.out[gridDim.x + blockIdx.x * {THREADS} + threadIdx.x] = (unsigned)sum;
    if (threadIdx.x == 0) a.out[blockIdx.x] = (unsigned)(after - before);
}}
"""
