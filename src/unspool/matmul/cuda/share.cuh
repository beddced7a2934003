// Stream-k: every block takes the same number of units, wherever they begin and end.
//
//   units   row block 0: stage 0 1 2 ... | row block 1: stage 0 1 2 ... | ...
//   blocks  <----- 0 ----->|<----- 1 ----->|<----- 2 ----->|
//
// A row block that several blocks share is summed by the last of them to arrive, in the order of
// the blocks: the result depends on the number of blocks, not on who came when, nor on m.
#ifndef UNSPOOL_SHARE
#define UNSPOOL_SHARE

namespace unspool {

struct Share {
    int first, last;  // units [first, last)
};

// units * blocks < 2**31 (checked by the host): a 64-bit division would be a call.
UNSPOOL_DEVICE Share share_of(int block, int blocks, int units) {
    return {int(word(units) * word(block) / word(blocks)),
            int(word(units) * word(block + 1) / word(blocks))};
}

// The block that has a unit; the inverse of share_of.
UNSPOOL_DEVICE int owner_of(int unit, int blocks, int units) {
    return int((word(unit + 1) * word(blocks) - 1) / word(units));
}

// The part of a share that lies in one row block: stages [first, last).
struct Stretch {
    int row_block, first, last;
};

UNSPOOL_DEVICE Stretch stretch_at(int unit, const Share& share, int stages) {
    const int row_block = unit / stages, first = unit - row_block * stages;
    const int left = share.last - unit;
    return {row_block, first, first + left < stages ? first + left : stages};
}

// Which of the slots in flight a unit has, and how often they have gone round (its parity).
struct Turn {
    int slot, round;
};

UNSPOOL_DEVICE void advance(Turn& turn) {
    if (++turn.slot == slots) turn.slot = 0, turn.round ^= 1;
}

// Where a block leaves its part of a row block: it has two such at most, its first and its last.
UNSPOOL_DEVICE int partial_of(int block, int blocks, int units, int stages, int row_block) {
    const Share share = share_of(block, blocks, units);
    return 2 * block + (share.first / stages == row_block ? 0 : 1);
}

}  // namespace unspool

#endif
