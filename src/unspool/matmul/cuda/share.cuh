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

UNSPOOL_DEVICE Share share_of(int block, int blocks, int units) {
    const long long all = units;
    return {int(all * block / blocks), int(all * (block + 1) / blocks)};
}

// The block that has a unit; the inverse of share_of.
UNSPOOL_DEVICE int owner_of(int unit, int blocks, int units) {
    return int(((unit + 1LL) * blocks - 1) / units);
}

// Where a block leaves its part of a row block: it has two such at most, its first and its last.
UNSPOOL_DEVICE int partial_of(int block, int blocks, int units, int stages, int row_block) {
    const Share share = share_of(block, blocks, units);
    return 2 * block + (share.first / stages == row_block ? 0 : 1);
}

}  // namespace unspool

#endif
