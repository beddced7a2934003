// Memory for prepared matrices, in large blocks of 2 MiB pages shared by many layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace unspool {

// A piece of a block, zeroed, at a multiple of 64 bytes; the block lives as long as its pieces.
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t bytes);  // throws std::bad_alloc
  uint8_t* bytes() const { return at_; }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<void> whole_;
  uint8_t* at_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace unspool
