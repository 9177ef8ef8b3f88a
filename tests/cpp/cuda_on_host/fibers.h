// The threads of one block of a CUDA kernel, as fibers: one thread of the CPU runs them in turns, each until it ends or
// waits for others. Races among them are found by the thread sanitizer all the same, which takes each for a thread.
// Here is also what else that sanitizer must not look into.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace on_host {

// Where threads wait until all of them have come.
struct Meeting {
  unsigned expected = 0;  // threads that have not ended
  unsigned arrived = 0;
  unsigned times = 0;  // how often all have met
  char met[2] = {};    // what the thread sanitizer knows this time and the next by
};

struct Fiber;

// Those of one kernel.
class Fibers {
 public:
  Fibers();
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Runs body(context) on `threads` fibers, and returns when all have ended. It aborts where all that are left wait for
  // such as never come.
  void run(unsigned threads, void (*body)(void*), void* context);

 private:
  std::vector<std::unique_ptr<Fiber>> idle_;
};

// Of the fiber that calls, in a body.
unsigned this_fiber();
void meet(Meeting& meeting);
void leave(Meeting& meeting);  // for good: nobody waits for this fiber there any more

// Runs work one after the other, but to the thread sanitizer each on a thread of its own, which waits for nothing but
// what it names: so that it finds what else should have been waited for. Destroying it waits for all.
class Apart {
 public:
  Apart();
  ~Apart();
  Apart(const Apart&) = delete;
  Apart& operator=(const Apart&) = delete;

  // Runs work(context) after the work whose marks are in `after`; `mark` is its own. early: it waits for that itself.
  void run(char* const* after, std::size_t count, char* mark, bool early, void (*work)(void*), void* context);

 private:
  std::vector<std::thread> threads_;
};

// Runs work that waits for what is ahead of it by wait_for_those_ahead; aborts where it does not.
void run_early(const std::function<void()>& work);
void wait_for_those_ahead();

// A number below `sides`: what may come in any order, or late, comes so.
unsigned roll(unsigned sides);

}  // namespace on_host
