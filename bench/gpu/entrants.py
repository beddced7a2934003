"""Who takes part in the run: flagships, our other products, then other people's.

A product of ours is plugged in by an Entrant in OURS whose `make` returns a `gpu.product.Product`.
"""

from __future__ import annotations

from gpu import ours
from gpu.peers import humming, marlin, pytorch
from gpu.product import Entrant

OURS: tuple[Entrant, ...] = ours.ENTRANTS

PEERS: tuple[Entrant, ...] = (
    Entrant(name="torch bf16", make=pytorch.bf16, bits=16, peer=True, flagship=True),
    Entrant(name="torch fp8", make=pytorch.fp8, bits=8, peer=True, flagship=True),
    Entrant(
        name="torch int4", make=pytorch.int4, bits=4.25, peer=True, flagship=True, most_rows=256
    ),
    *(
        Entrant(
            name=f"humming int{bits} {activations}",
            make=humming.maker(bits, activations),
            bits=bits,
            peer=True,
        )
        for activations in ("fp8", "bfloat16")
        for bits in (2, 3, 4)
    ),
    Entrant(name="marlin int4", make=marlin.int4, bits=4.125, peer=True, most_rows=1024),
)

ENTRANTS = tuple(sorted((*OURS, *PEERS), key=lambda entrant: not entrant.flagship))
