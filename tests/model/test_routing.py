"""Tokens to the tiles of their experts: on a device, the arrays of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unspool.matmul.cuda.routing import Routing, most_tiles
from unspool.matmul.cuda.routing import route as defined
from unspool.model.routing import Tiles, route

EXPERTS = 6


def alike(found: Tiles, want: Routing) -> bool:
    return all(
        mine.dtype == torch.int32 and np.array_equal(mine.numpy(), getattr(want, name))
        for name, mine in found._asdict().items()
    )


EDGES = {
    "an expert without tokens": [[0, 2], [5, 2], [0, 5]],
    "all tokens to one expert": [[3]] * 21,
    "all tokens to the last": [[5]] * 16,
    "whole tiles": [[1, 4]] * 8,
    "a tile and one more": [[1, 4]] * 9,
    "one token": [[4, 1, 0]],
    "all dropped": [[-1, -1]] * 5,
    "some dropped, some no expert's": [[0, -1], [6, 3], [-7, 100], [3, 3]],
}


@pytest.mark.parametrize("tokens", [8, 16])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("edge", EDGES)
def test_edges_give_the_arrays_of_the_definition(edge, dtype, tokens):
    choices = torch.tensor(EDGES[edge], dtype=dtype)
    assert alike(route(choices, EXPERTS, tokens), defined(choices.numpy(), EXPERTS, tokens))


@pytest.mark.parametrize("seed", range(40))
def test_random_choices_give_the_arrays_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    m, top, experts = rng.integers(1, 70), rng.integers(1, 5), rng.integers(1, 20)
    tokens = 8 << rng.integers(0, 4)
    choices = rng.integers(-1, experts, (m, top))
    assert alike(
        route(torch.from_numpy(choices), experts, tokens), defined(choices, experts, tokens)
    )


def test_no_tokens_have_no_tiles():
    assert all(not len(part) for part in route(torch.zeros(0, 2, dtype=torch.int64), EXPERTS, 8))


def test_every_choice_has_one_slot_of_a_tile_of_its_expert():
    choices = torch.from_numpy(np.random.default_rng(0).integers(0, EXPERTS, (33, 2)))
    found = route(choices, EXPERTS, 8)
    taken = found.targets[found.targets >= 0]
    assert sorted(taken.tolist()) == list(range(66))
    owners = found.experts.repeat_interleave(8)[found.targets >= 0]
    assert torch.equal(owners.long(), choices.reshape(-1)[taken.long()])
    assert torch.equal(found.sources[found.targets >= 0], taken // 2)


def test_no_value_is_waited_for_and_no_shape_depends_on_one():
    """Fake tensors have no values: what asks for one, or has a shape of it, is an error."""
    with FakeTensorMode():
        found = route(torch.zeros(33, 2, dtype=torch.int64), EXPERTS, 8)
    tiles = most_tiles(66, EXPERTS, 8)
    assert [tuple(part.shape) for part in found] == [(8 * tiles,), (8 * tiles,), (tiles,)]


def test_a_compiled_model_routes_in_one_graph():
    compiled = torch.compile(route, backend="aot_eager", fullgraph=True)
    for m in (3, 33, 34):
        choices = torch.from_numpy(np.random.default_rng(m).integers(-1, EXPERTS, (m, 2)))
        assert alike(compiled(choices, EXPERTS, 8), defined(choices.numpy(), EXPERTS, 8))
