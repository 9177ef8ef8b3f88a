#pragma once

namespace trt_moe {

// Remembers the process that made it. A fork has none of its parent's threads: what needs them can neither run there
// nor be taken down.
class ForkMark {
 public:
  ForkMark() noexcept;
  bool forked() const noexcept;
  // Throws Error(kDevice) in a fork.
  void expect_not_forked() const;

 private:
  unsigned forks_;  // before it was made
};

}  // namespace trt_moe
