"""The trainer and the search find what they should on a small budget, the same every time."""

import numpy as np

from unspool.explore.search import FORMS, search
from unspool.explore.train import Effort, Trellis, train
from unspool.spec.code import Plane
from unspool.spec.operand import E2M1, E2M3

SMALL = Effort(starts=4, rounds=12, rings=192, final_rings=512, final_rounds=6)
TRELLIS = Trellis(planes=(Plane(window=4, stride=1), Plane(window=1, stride=1)), lanes=1, steps=64)


def test_a_trained_trellis_beats_every_scalar_code_of_its_rate() -> None:
    trained = train(TRELLIS, E2M1, effort=SMALL)
    assert trained.bits.shape == (32, 1)
    assert trained.mse < 0.0905  # E8 lattice; the best scalar code of 2 bits has .1175


def test_training_is_repeatable() -> None:
    first, second = (train(TRELLIS, E2M3, effort=SMALL, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.bits, second.bits)
    assert first.sigma == second.sigma


def test_pairs_train_too() -> None:
    planes = (Plane(window=3, stride=1), Plane(window=2, stride=2))
    trained = train(Trellis(planes=planes, lanes=2, steps=64), E2M1, effort=SMALL)
    assert trained.bits.shape == (32, 2)
    assert trained.mse < 0.1902  # Lloyd-Max at 1.585 bit; this one has 1.5


def test_search_reports_the_best_so_far_and_its_code() -> None:
    seen: list[float] = []
    found = search(2, FORMS["E4M3"], trials=3, progress=lambda trial, mse: seen.append(mse))
    assert seen == sorted(seen, reverse=True)
    assert found.code.name == "m2-e4m3"
    assert 0.07 < found.mse < 0.1
