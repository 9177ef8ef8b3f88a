// Compiled without the thread sanitizer, which would take what is shared here for races of the kernel's; it is told of
// the fibers, and who waits for whom, by its interface.
#include "fibers.h"

#include <ucontext.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#ifdef ON_HOST_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef ON_HOST_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace on_host {

namespace {

constexpr std::size_t kStack = std::size_t{1} << 18;

struct Stack {
  const void* bottom = nullptr;
  std::size_t bytes = 0;
};

// A context, and what it is to the sanitizers.
struct Watched {
  ucontext_t context{};
  Stack stack;
  void* fake_stack = nullptr;  // the address sanitizer's
  void* tsan = nullptr;
};

#ifdef ON_HOST_TSAN
constexpr bool kOneThreadEach = true;
#else
constexpr bool kOneThreadEach = false;
#endif

void release([[maybe_unused]] void* at) {
#ifdef ON_HOST_TSAN
  __tsan_release(at);
#endif
}

void acquire([[maybe_unused]] void* at) {
#ifdef ON_HOST_TSAN
  __tsan_acquire(at);
#endif
}

// Called on `here` once it runs (again). Returns the stack that ran before.
Stack arrived([[maybe_unused]] Watched& here) {
  Stack before;
#ifdef ON_HOST_ASAN
  __sanitizer_finish_switch_fiber(here.fake_stack, &before.bottom, &before.bytes);
#endif
  return before;
}

Stack switch_to(Watched& from, Watched& to) {
#ifdef ON_HOST_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack.bottom, to.stack.bytes);
#endif
#ifdef ON_HOST_TSAN
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&from.context, &to.context);
  return arrived(from);
}

struct Fiber {
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  std::unique_ptr<std::byte[]> memory{new std::byte[kStack]};
  Watched self;
  unsigned thread = 0;
  bool ended = true;
  const Meeting* waits_at = nullptr;
  unsigned waits_for = 0;  // the meeting's time after which it goes on
};

// All fibers that run no thread. Its lock is one that the thread sanitizer does not see: kernels do not wait for each
// other because of it.
class Pool {
 public:
  std::unique_ptr<Fiber> take() {
    while (busy_.test_and_set(std::memory_order_acquire)) {
    }
    std::unique_ptr<Fiber> fiber;
    if (!idle_.empty()) {
      fiber = std::move(idle_.back());
      idle_.pop_back();
    }
    busy_.clear(std::memory_order_release);
    return fiber ? std::move(fiber) : std::make_unique<Fiber>();
  }

  void give(std::unique_ptr<Fiber> fiber) {
    while (busy_.test_and_set(std::memory_order_acquire)) {
    }
    idle_.push_back(std::move(fiber));
    busy_.clear(std::memory_order_release);
  }

 private:
  std::atomic_flag busy_;
  std::vector<std::unique_ptr<Fiber>> idle_;
};

Pool& pool() {
  static Pool& all = *new Pool;  // never destroyed: the process may end while a kernel runs
  return all;
}

// Runs the threads of a block in turns.
struct Scheduler {
  Watched self;
  Fiber* running = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  char starts = 0;  // what the thread sanitizer knows the block's start and end by
  char ends = 0;

  void resume(Fiber& fiber) {
    running = &fiber;
    switch_to(self, fiber.self);
    running = nullptr;
  }
};

// A fiber goes on on another thread in a later block, so its scheduler must be looked up anew: no compiler may keep it.
[[gnu::noipa]] Scheduler& scheduler() {
  thread_local Scheduler of_thread;
  return of_thread;
}

void back_to_scheduler(Fiber& fiber) {
  const Stack before = switch_to(fiber.self, scheduler().self);
  scheduler().self.stack = before;
}

void run_bodies() {
  Fiber& fiber = *scheduler().running;
  scheduler().self.stack = arrived(fiber.self);
  for (;;) {
    acquire(&scheduler().starts);
    scheduler().body(scheduler().argument);
    release(&scheduler().ends);
    fiber.ended = true;
    back_to_scheduler(fiber);
  }
}

Fiber::Fiber() {
  getcontext(&self.context);
  self.context.uc_stack.ss_sp = memory.get();
  self.context.uc_stack.ss_size = kStack;
  self.context.uc_link = nullptr;
  makecontext(&self.context, run_bodies, 0);
  self.stack = {memory.get(), kStack};
#ifdef ON_HOST_TSAN
  self.tsan = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef ON_HOST_TSAN
  __tsan_destroy_fiber(self.tsan);
#endif
}

}  // namespace

void run_fibers(unsigned threads, void (*body)(void*), void* context) {
  Scheduler& mine = scheduler();
  mine.body = body;
  mine.argument = context;
#ifdef ON_HOST_TSAN
  mine.self.tsan = __tsan_get_current_fiber();
#endif
  release(&mine.starts);
  std::vector<std::unique_ptr<Fiber>> waiting;
  std::vector<std::unique_ptr<Fiber>> ended;
  for (unsigned thread = 0; thread < threads; ++thread) {
    // To the thread sanitizer a fiber is one thread, so there it runs no other of the same block.
    std::unique_ptr<Fiber> fiber;
    if (kOneThreadEach || ended.empty()) {
      fiber = pool().take();
    } else {
      fiber = std::move(ended.back());
      ended.pop_back();
    }
    fiber->thread = thread;
    fiber->ended = false;
    mine.resume(*fiber);
    (fiber->ended ? ended : waiting).push_back(std::move(fiber));
  }
  while (!waiting.empty()) {
    std::vector<std::unique_ptr<Fiber>> still;
    bool progress = false;
    for (std::unique_ptr<Fiber>& fiber : waiting) {
      if (fiber->waits_at->times != fiber->waits_for) {
        mine.resume(*fiber);
        progress = true;
      }
      (fiber->ended ? ended : still).push_back(std::move(fiber));
    }
    if (!progress) {
      std::fputs("all threads of a block that are left wait, for such as have ended or wait elsewhere\n", stderr);
      std::abort();
    }
    waiting.swap(still);
  }
  for (std::unique_ptr<Fiber>& fiber : ended) pool().give(std::move(fiber));
  acquire(&mine.ends);
}

unsigned this_fiber() { return scheduler().running->thread; }

namespace {

void all_met(Meeting& meeting) {
  meeting.arrived = 0;
  ++meeting.times;
}

}  // namespace

void meet(Meeting& meeting) {
  char& met = meeting.met[meeting.times % 2];
  release(&met);
  if (++meeting.arrived == meeting.expected) {
    all_met(meeting);
  } else {
    Fiber& fiber = *scheduler().running;
    fiber.waits_at = &meeting;
    fiber.waits_for = meeting.times;
    back_to_scheduler(fiber);
  }
  acquire(&met);
}

void leave(Meeting& meeting) {
  release(&meeting.met[meeting.times % 2]);
  --meeting.expected;
  if (meeting.expected > 0 && meeting.arrived == meeting.expected) all_met(meeting);
}

#ifdef ON_HOST_TSAN
void Apart::run(char* const* after, std::size_t count, char* mark, void (*work)(void*), void* context) {
  std::atomic<bool> ended{false};  // unseen by the sanitizer, like everything here
  threads_.emplace_back([&, after, count, mark, work, context] {
    for (std::size_t i = 0; i < count; ++i) acquire(after[i]);
    work(context);
    release(mark);
    ended = true;
  });
  while (!ended) std::this_thread::yield();
}
#else
void Apart::run(char* const*, std::size_t, char*, void (*work)(void*), void* context) { work(context); }
#endif

Apart::~Apart() {
  for (std::thread& thread : threads_) thread.join();
}

unsigned roll(unsigned sides) {
  static std::atomic<unsigned> seeds{0};
  thread_local unsigned state = 2654435761U * ++seeds;
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state % sides;
}

}  // namespace on_host
