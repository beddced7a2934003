"""Table trellises: a coded plane of one bit per step, plain planes beside it, and one table.

The table's index is a sliding window over the coded plane (low bits) and the plain bits (above).
Entry i stands in the hexadecimal digits as the operands of its lanes, lane 0 first. Each table was
trained by the command in its source (`explore.train`), on unit Gaussian weights.
"""

from __future__ import annotations

from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E2M3, Operand
from unspool.spec.program import STATE, Instruction, Program, Table
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

ROTATION = Rotation(size=128)
"""Coded formats expect near Gaussian weights; 128 divides the sizes of most models."""

LANE_BITS = 8
"""A lane's operand stands in a byte of its own in a table entry."""


def _trellis(
    name: str,
    *,
    window: int,
    plain: int = 0,
    lanes: int = 1,
    operand: Operand,
    sigma: float,
    table: str,
    source: str,
) -> Format:
    coded = Plane(window=window, stride=1)
    code = Code(
        name=name,
        planes=(coded, Plane(window=plain, stride=plain)) if plain else (coded,),
        lanes=lanes,
        tile=(8, 8 * lanes),
        operand=operand,
        program=Program(
            instructions=(Instruction("entry", "table", ("values", STATE)),),
            outputs=tuple(("entry", LANE_BITS * lane) for lane in range(lanes)),
            tables=(Table(name="values", entries=_entries(table, lanes, operand)),),
        ),
        sigma=sigma,
    )
    return Format(
        name=name, code=code, scale=Scale.parse("row-fp16"), rotation=ROTATION, source=source
    )


def _entries(table: str, lanes: int, operand: Operand) -> tuple[int, ...]:
    """One word per entry from hexadecimal digits: one per E2M1 operand, two per wider one."""
    digits = -(-operand.bits // 4)
    operands = [int(table[i : i + digits], 16) for i in range(0, len(table), digits)]
    return tuple(
        sum(bits << (LANE_BITS * lane) for lane, bits in enumerate(operands[i : i + lanes]))
        for i in range(0, len(operands), lanes)
    )


TRELLIS = (
    _trellis(
        "t1-e2m1",
        window=6,
        operand=E2M1,
        sigma=3.1897,
        table="e23db46ad32db54b976ad21fb56ae32d2ed25ba63de36ab479a62df15aa62de3",
        source="unspool train --window 6 --plain 0 --operand E2M1",
    ),
    _trellis(
        "t1.5-e2m1",
        window=4,
        plain=2,
        lanes=2,
        operand=E2M1,
        sigma=2.7784,
        table=(
            "cdebbf9baedaddbafbddab0ed9adcaee3e1a5e6a6d2a3d511b3f5a7d395d2a2db2e6d1a592c5f2d6"
            "d5b296d1b792c5e251262165724503372550653256715403"
        ),
        source="unspool train --window 4 --plain 2 --lanes 2 --operand E2M1 --starts 6 --rounds 25",
    ),
    _trellis(
        "t2-e2m1",
        window=5,
        plain=1,
        operand=E2M1,
        sigma=2.6804,
        table="ebfbcfbed9d99d0cbebefceb9d9cd9d015154851363663745151041573633647",
        source="unspool train --window 5 --plain 1 --operand E2M1",
    ),
    _trellis(
        "t2.5-e2m3",
        window=3,
        plain=4,
        lanes=2,
        operand=E2M3,
        sigma=2.7791,
        table=(
            "363937323b3b3b35393233393334353e233f2a342d3a32352b3423390034243b22390a34083a0034"
            "0934103b12330b3813391835123f123418361e371f29193b3f323b26382938023a20322e3125382a"
            "322d2925292e30252a25212e0025292f202e09250a2e01250925102f1025092d132d1a23182e1324"
            "1a24162a16211a303a0e370c3f053c0b2f0c3401360a310833022c0b2b04330f060c2204230c2602"
            "2103060c0804220c130e10030f0e09041203140e17080f0e1f0f18071a0f1c0633153d183915371e"
            "391a3314311a39142512291c2d13301925192412231f2b140c1423180314051a091c0d150a190513"
            "1913121a1316151e16191b141c1a1514"
        ),
        source="unspool train --window 3 --plain 4 --lanes 2 --operand E2M3 --starts 6 --rounds 25",
    ),
    _trellis(
        "t3-e2m3",
        window=5,
        plain=2,
        operand=E2M3,
        sigma=2.3855,
        table=(
            "3a33343f31383631303537313c343339333a3c34383131363630313734393a332d25262d232a2921"
            "21282a222e27252d252d2e262a2321292921222a262e2c25020908020c04060e0e06050c01080902"
            "09020108050c0e06060e0c0508010209111816101912141b1a14131c101518111711101613191b14"
            "141f191315101118"
        ),
        source="unspool train --window 5 --plain 2 --operand E2M3",
    ),
    _trellis(
        "t3.5-e2m3",
        window=3,
        plain=6,
        lanes=2,
        operand=E2M3,
        sigma=2.0897,
        table=(
            "383a35353538393738363b3b3c35333a343d3036303932363035323833352b3c2b392836273a2c35"
            "29352e3a2c362537253e2234203b2534223627392534213a2238053507380137053602380235073d"
            "05390c360e3b08340d35083a093409380e39133613381035133510381036123a133d1937183b1635"
            "1a35163916371b393b3136303732392f35303933382f353333333030303333303030333333303033"
            "2c33283028322c3028302c332c302932253222302232252f22302532252f22320232053005320230"
            "053002330230053208320d300d3209300c30093209300d321033142f133210301330103210301332"
            "16321a3119331730192e1632162f1d33382a3428352c392634283e2c3a2a362b322d3028302c3229"
            "3028322c3229302c2c2c2828292c2c2928282c2c2c28282c252c2229222c25282228252c2528222c"
            "022c0529052c01280529022c0228052c082c0c290c2c08290c29082c08290c2c102d1228122c1029"
            "1229102c1029122d162a1b221b2b15291a26182a15281d293a22362136253c253521382738223525"
            "322530223025332230223225322230252c25282228252c2228222c252c2228252525212222252522"
            "22222525252222250125052205250222052201250222052508250c220c2508220c22082508220c25"
            "1025122112250f2212220f2510221225142418001925152117221525152118273802340436033e05"
            "350539033b033502320130053001320530053201320530012c01280428012c0528052c012c052801"
            "250122052202250522052501250522020201050505020205050502010205050208010c050c020805"
            "0c05080108050c010f02120512010f05120510021005120215031a051e0214061903140114051a20"
            "3809350b35093908350b3b09390c37073208300c3009320c300c3208320c30082c08280c28082c0c"
            "290c2c082c0c28082508220c2208250c220c2508250c22080208050c0508020c050c0208010c0508"
            "08080c0c0c09080c0c0c0808090c0c081008120c1209100c130c1009100d120917091c091908150c"
            "1a0a1608150b17043b103613361039113712380d3d11350f33103013301033133012331033133010"
            "2c10281228102c1228122c102c12281025102112221025122112251025122210020f051205100212"
            "051202100212050f09100c130c1008130c13081008120c1010101312131010131312101010131210"
            "16101a0f1e111712191215101513180d3c17351a3715391836183a14391b351533162e1830153218"
            "311a3216331d2f152c14261a28152b1c2b172b142b1928152415271f0015271823182416221a2115"
            "0318071e04140319211c02142018051507150c1a0a160b18081b071807190b15101512181316121d"
            "111a0f160f18121517151b191b13151a18181517181c1915"
        ),
        source="unspool train --window 3 --plain 6 --lanes 2 --operand E2M3 --starts 6 --rounds 25",
    ),
    _trellis(
        "t4-e2m3",
        window=4,
        plain=3,
        operand=E2M3,
        sigma=1.9784,
        table=(
            "3a36343834383b35363d39343734353933302e312e3132303032312e312e30322c28272a272a2c29"
            "282c2a272a27292c2522212421242522222524212421222601040502050220040401020502050401"
            "070a0c090c08070a0a07090c090c0a070e11121012100e11110e10121012110e13181a1619151418"
            "1714161b151d1914"
        ),
        source="unspool train --window 4 --plain 3 --operand E2M3",
    ),
)
