"""Every bit pattern of every operand means what two other libraries say it means."""

import gfloat
import gfloat.formats as formats
import ml_dtypes
import numpy as np
import pytest

from unspool.errors import DeclarationError
from unspool.spec.operand import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    INT8,
    OPERANDS,
    Operand,
)

ML_DTYPES = {
    E2M1: ml_dtypes.float4_e2m1fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E3M2: ml_dtypes.float6_e3m2fn,
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E8M0: ml_dtypes.float8_e8m0fnu,
    INT8: np.int8,
    FP16: np.float16,
    BF16: ml_dtypes.bfloat16,
}
GFLOAT = {
    E2M1: formats.format_info_ocp_e2m1,
    E2M3: formats.format_info_ocp_e2m3,
    E3M2: formats.format_info_ocp_e3m2,
    E4M3: formats.format_info_ocp_e4m3,
    E5M2: formats.format_info_ocp_e5m2,
    E8M0: formats.format_info_ocp_e8m0,
    FP16: formats.format_info_binary16,
    BF16: formats.format_info_bfloat16,
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("operand", ML_DTYPES, ids=lambda o: o.name)
def test_every_code_point_agrees_with_ml_dtypes(operand: Operand) -> None:
    dtype = "uint8" if operand.bits <= 8 else "uint16"
    theirs = np.arange(1 << operand.bits).astype(dtype).view(ML_DTYPES[operand])
    np.testing.assert_array_equal(operand.values(), theirs.astype(np.float64))


@pytest.mark.parametrize("operand", GFLOAT, ids=lambda o: o.name)
def test_every_code_point_agrees_with_gfloat(operand: Operand) -> None:
    theirs = gfloat.decode_ndarray(GFLOAT[operand], np.arange(1 << operand.bits))
    np.testing.assert_array_equal(operand.values(), theirs)


def test_minus_zero_is_kept() -> None:
    assert np.signbit(E2M1.values()[8])


def test_largest_values_are_the_data_sheets() -> None:
    largest = {name: operand.largest for name, operand in OPERANDS.items()}
    assert largest == {
        "E2M1": 6.0,
        "E2M3": 7.5,
        "E3M2": 28.0,
        "E4M3": 448.0,
        "E5M2": 57344.0,
        "INT8": 127.0,
        "FP16": 65504.0,
        "BF16": float.fromhex("0x1.fep127"),
    }


def test_an_operand_wider_than_16_bits_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"too many bits.*found 17"):
        Operand(name="E8M8", exponent_bits=8, mantissa_bits=8, bias=127)
