"""Names parse back, declarations survive JSON, bits are counted to the last one."""

import json

import pytest

from unspool.errors import DeclarationError
from unspool.spec.catalog import DEFAULTS, FORMATS, parse
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E4M3
from unspool.spec.program import STATE, Program
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

EVERY = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@EVERY
def test_a_name_parses_back(fmt: Format) -> None:
    assert parse(fmt.name) == fmt


@EVERY
def test_a_declaration_survives_json(fmt: Format) -> None:
    again = Format.from_json(json.loads(json.dumps(fmt.to_json())))
    assert (again.code, again.scale, again.rotation) == (fmt.code, fmt.scale, fmt.rotation)
    assert again.content_hash == fmt.content_hash


@EVERY
def test_a_format_says_where_it_comes_from(fmt: Format) -> None:
    assert fmt.source


def test_no_two_formats_share_a_hash() -> None:
    assert len({fmt.content_hash for fmt in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("scale", ["row-fp16", "b128-fp16", "b32-e8m0", "b16-e4m3", "tensor"])
@pytest.mark.parametrize("rotation", ["raw", "h64", "h128-both", "h32-out-s7"])
def test_a_varied_name_parses_back(scale: str, rotation: str) -> None:
    varied = FORMATS["nvfp4"].vary(scale=Scale.parse(scale), rotation=Rotation.parse(rotation))
    assert parse(varied.name) == varied


def test_varying_twice_keeps_the_first_variation_in_the_name() -> None:
    once = FORMATS["nvfp4"].vary(scale=Scale.parse("b32-e8m0"))
    assert once.vary(rotation=Rotation.parse("h64")).name == "nvfp4:b32-e8m0:h64"


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("mxfp4", 4 + 8 / 32),
        ("mxfp8", 8 + 8 / 32),
        ("nvfp4", 4 + 8 / 16 + 32 / 4096**2),
        ("int4", 4 + 16 / 128 + 32 / 4096**2),
        ("lut-b", 3 + 64 / 512 + 32 / 4096**2),
        ("lut3-row", 3 + (16 + 64) / 4096 + 32 / 4096**2),
        ("t2-e2m1", 2 + 16 / 4096 + 32 / 4096**2),
    ],
)
def test_bits_per_weight_count_everything(name: str, bits: float) -> None:
    assert FORMATS[name].bits_per_weight(4096, 4096) == pytest.approx(bits, rel=1e-12)


def test_a_way_back_to_the_entry_still_parses_back() -> None:
    back = parse("t2-e2m1:b128-fp16").vary(scale=Scale.parse("row-fp16"))
    assert parse(back.name) == back
    assert back.content_hash == FORMATS["t2-e2m1"].content_hash


def test_padding_counts() -> None:
    fmt = FORMATS["t2-e2m1"]
    assert fmt.padded(9, 130) == (16, 256)
    assert fmt.stored_bits(9, 130) == 16 * 256 * 2 + 16 * 16 + 32


@pytest.mark.parametrize("bits", DEFAULTS)
def test_the_default_of_a_rate_has_that_rate(bits: float) -> None:
    assert FORMATS[DEFAULTS[bits]].code.bits_per_weight == bits


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvfp", "allowed: nvfp4"),
        ("nvfp4:b16-e5m2", "no such scale"),
        ("nvfp4:h63", "power of two"),
        ("nvfp4:h64:h128", "a part is said twice"),
        ("nvfp4:b32-e8m0:b16-e4m3", "a part is said twice"),
        ("nvfp4:tensor-fp16", "no such scale"),
        ("t2-e2m1:b2-fp16:h1", "no power of two"),
        ("t2-e2m1:b32-e8m0", "scales that can be zero"),
        ("m2-e4m3:tensor", "scales that can be zero"),
    ],
)
def test_a_wrong_name_is_refused_with_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        parse(name)


@pytest.mark.parametrize("missing", ["name", "code", "scale", "rotation"])
def test_an_incomplete_declaration_is_refused(missing: str) -> None:
    data = FORMATS["nvfp4"].to_json()
    del data[missing]
    with pytest.raises(DeclarationError, match=f"not a declaration.*{missing}"):
        Format.from_json(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 2}, "lanes and program outputs differ"),
        ({"tile": (3, 5)}, "not whole 32-bit words"),
        ({"planes": (Plane(window=20, stride=8), Plane(window=16, stride=8))}, "does not fit"),
        ({"sigma": 0.0}, "sigma is not positive"),
        ({"program": Program(outputs=((STATE, 28),))}, "an operand is cut"),
    ],
)
def test_a_code_that_cannot_exist_is_refused(change: dict[str, object], message: str) -> None:
    facts: dict[str, object] = {
        "name": "x",
        "planes": (Plane(window=8, stride=8),),
        "operand": E4M3,
        "program": Program(outputs=((STATE, 0),)),
    }
    with pytest.raises(DeclarationError, match=message):
        Code(**(facts | change))  # type: ignore[arg-type]


def test_a_window_shorter_than_its_stride_is_refused() -> None:
    with pytest.raises(DeclarationError, match="window 1, stride 2"):
        Plane(window=1, stride=2)
