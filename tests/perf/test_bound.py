"""The bound: every resource by hand, what it grows with, and what has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.machine import machine
from unspool.encode.encode import encode
from unspool.errors import DeclarationError
from unspool.matmul.cuda.arrange import arrange
from unspool.matmul.cuda.recipe import recipe
from unspool.perf import bound as bounds
from unspool.perf.bound import COUNTED, ESTIMATED, LOOP, RECORDED, Instructions, bound, weight_bytes
from unspool.perf.device import DEVICES, LAUNCH_SECONDS, OF_TARGET, device
from unspool.perf.loop import count_loop
from unspool.perf.toolchain import toolchain, why_not
from unspool.spec.catalog import FORMATS, parse

counting = pytest.mark.skipif(bool(why_not()), reason=why_not() or "counting works")

N = K = 8192
WEIGHTS = N * K
H200, B200, RTX5090 = DEVICES["h200"], DEVICES["b200"], DEVICES["rtx5090"]
FREE = Instructions(total=0, alu=0, fma=0, cvt=0, lds=0, source=COUNTED)

#: H200's s2-e4m3 at 8 tokens of one term: what is needed so often that it binds, and the seconds
H200_CLOCKS = 132 * 1.98e9
BINDING = [
    ({}, "memory", (WEIGHTS / 4 + 4 * N + 2 * 8 * (N + K)) / 4.8e12),
    ({"total": 8.0}, "issue", 8 * WEIGHTS / (128 * H200_CLOCKS)),
    ({"alu": 4.0}, "alu", 4 * WEIGHTS / (64 * H200_CLOCKS)),
    ({"fma": 4.0}, "fma", 4 * WEIGHTS / (128 * H200_CLOCKS)),
    ({"cvt": 4.0}, "cvt", 4 * WEIGHTS / (64 * H200_CLOCKS)),
    # weights to shared memory and back; 8 bytes of activations per column, to it and four times
    # back per 256 rows; a look-up per weight
    ({"lds": 1.0}, "shared", WEIGHTS * (2 / 4 + 5 * 8 / 256 + 4) / (128 * H200_CLOCKS)),
]


@pytest.mark.parametrize(("more", "binds", "seconds"), BINDING)
def test_every_resource_binds_where_it_is_needed_longest(more, binds, seconds):
    found = bound(FORMATS["s2-e4m3"], H200, n=N, k=K, m=8, activations="fp8",
                  instructions=replace(FREE, **more))  # fmt: skip
    assert found.binds == binds
    assert found.seconds == pytest.approx(seconds + LAUNCH_SECONDS, rel=1e-12)
    memory = BINDING[0][2]
    assert found.fraction == pytest.approx(memory / seconds, rel=1e-12)


def test_tensor_units_bind_at_many_tokens_and_every_term_is_a_column():
    seconds = {
        name: bound(FORMATS["s2-e4m3"], RTX5090, n=N, k=K, m=256, activations=name)
        for name in ("fp8", "fp8x2", "fp8x3", "float16", "int8")
    }
    one = 2 * WEIGHTS * 256 / 419e12
    assert {found.binds for found in seconds.values()} == {"tensor"}
    for name, factor in (("fp8", 1), ("fp8x2", 2), ("fp8x3", 3), ("float16", 419 / 210),
                         ("int8", 419 / 838)):  # fmt: skip
        assert seconds[name].resources["tensor"] == pytest.approx(factor * one, rel=1e-12)


def test_packed_fp4_products_have_the_rate_of_fp4():
    found = bound(FORMATS["m2-e2m1"], RTX5090, n=N, k=K, m=8, activations="fp4")
    assert found.resources["tensor"] == pytest.approx(2 * WEIGHTS * 8 / 1676e12, rel=1e-12)


def test_mma_sync_takes_issue_slots_of_its_own():
    # m16n8k32 over a warp: 32 thread instructions for 512 weights and 8 tokens
    found = bound(FORMATS["s2-e4m3"], RTX5090, n=N, k=K, m=16, activations="fp8",
                  instructions=FREE)  # fmt: skip
    wanted = WEIGHTS * 2 * 32 / 512 / (128 * 170 * 2.41e9)
    assert found.resources["issue"] == pytest.approx(wanted, rel=1e-12)


def test_decoding_repeats_with_every_tile_of_tokens():
    one, two = (bound(FORMATS["s2-e4m3"], B200, n=N, k=K, m=m) for m in (1, 512))
    tiles = two.resources["alu"] / one.resources["alu"]
    assert tiles == 512 / 32  # two sums per column of 64 columns, of two terms
    assert two.resources["issue"] == pytest.approx(tiles * one.resources["issue"])


def test_more_bits_take_longer():
    names = ("s2-e4m3", "s3-e4m3", "s4-e4m3", "mxfp6-e2m3", "fp8-e4m3")
    for gpu in DEVICES.values():
        found = [bound(FORMATS[f], gpu, n=N, k=K, m=1, instructions=FREE) for f in names]
        assert [b.binds for b in found] == ["memory"] * len(names)
        assert [b.seconds for b in found] == sorted({b.seconds for b in found})


def test_no_product_is_bounded_below_one_of_fewer_tokens():
    for fmt in map(parse, ("m2-e4m3-quick", "mxfp4")):
        for gpu in DEVICES.values():
            seconds = [bound(fmt, gpu, n=N, k=K, m=m).seconds for m in (1, 16, 128, 1024)]
            assert seconds == sorted(seconds)


@pytest.mark.parametrize("name", ["s2-e4m3", "mxfp4", "lut3-row", "lut-b", "t3-e2m3"])
@pytest.mark.parametrize("target", ["sm90", "sm120"])
def test_the_bytes_are_those_that_a_kernel_reads(name, target):
    fmt, shape = FORMATS[name], (300, 520)
    made = recipe(fmt, machine(target))
    weight = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    arranged = arrange(encode(weight, fmt), made)
    read = arranged.units.nbytes + arranged.row_scales.nbytes + arranged.levels.nbytes
    assert weight_bytes(made, *shape) == read


@pytest.mark.parametrize("spelled", ["RTX 4090", "rtx-4090", "RTX4090"])
def test_a_device_has_one_name_however_it_is_spelled(spelled):
    assert device(spelled) is DEVICES["rtx4090"]


def test_a_device_that_is_not_there_is_told_which_are():
    with pytest.raises(DeclarationError, match="no such GPU; found MI300X; allowed: h100, h200"):
        device("MI300X")
    assert all(DEVICES[name].target == target for target, name in OF_TARGET.items())


@pytest.mark.parametrize(
    ("name", "asked", "reason"),
    [
        ("nf4", {"activations": "fp8"}, "do not multiply the code's values as 8-bit floats"),
        ("s2-e4m3", {"activations": "fp4"}, "as packed E2M1"),
        ("s2-e4m3", {"activations": "int2"}, "no such activations"),
        ("s2-e4m3", {"n": 10**6, "k": 10**6}, "do not fit on the GPU"),
        ("s2-e4m3", {"m": 0}, "a product of nothing"),
    ],
)
def test_what_no_kernel_does_is_refused_with_the_reason(name, asked, reason):
    with pytest.raises(DeclarationError, match=reason):
        bound(FORMATS[name], H200, **{"n": N, "k": K, "m": 1, **asked})


def test_a_bound_says_whence_its_instructions_are():
    fmt = FORMATS["m2-e4m3-quick"]
    assert bound(fmt, H200, n=N, k=K, m=1).instructions.source == RECORDED
    varied = bound(parse("m2-e4m3-quick:h64"), H200, n=N, k=K, m=1)
    assert varied.instructions == bound(fmt, H200, n=N, k=K, m=1).instructions
    other = replace(fmt, code=replace(fmt.code, tile=(8, 32)))  # the same name, another code
    found = bound(other, H200, n=N, k=K, m=1)
    assert found.instructions.source == ESTIMATED
    assert found.to_json()["instructions"]["source"] == ESTIMATED


@pytest.mark.parametrize("name", ["m2-e4m3", "int8", "s4-e4m3", "t2.5-e2m3", "t3-e2m3"])
def test_estimates_are_near_what_is_recorded(name):
    # over the catalog and sm89 to sm120: 1.2 % too few (int8) to 20.3 % too many (t2.5-e2m3), where
    # ptxas puts the shift of an index into the address of its look-up
    made = recipe(FORMATS[name], machine("sm89"))
    recorded = bounds.recorded(made)
    assert recorded is not None
    assert 0.987 <= bounds.estimated(made).total / recorded.total <= 1.204


@counting
@pytest.mark.slow
def test_a_whole_loop_is_bounded_no_lower_than_its_decoder():
    made = recipe(FORMATS["s3-e4m3"], machine("sm90"), "fp8")
    loop = count_loop(made, 8, toolchain())
    counted = bounds.of_loop(loop, bounds.known(made))
    assert counted.source == LOOP
    assert counted.total == loop.total
    assert counted.alu > bounds.known(made).alu
    found, decoder = (
        bound(made.format, H200, n=N, k=K, m=8, activations="fp8", instructions=given)
        for given in (counted, None)
    )
    assert all(found.resources[name] >= decoder.resources[name] for name in found.resources)
