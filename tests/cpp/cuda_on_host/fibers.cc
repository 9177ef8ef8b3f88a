// Compiled without the thread sanitizer, which would take what is shared here for races of the kernels'; it is told of
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

}  // namespace

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
  unsigned waits_for = 0;       // the meeting's time after which it goes on
  std::unique_ptr<Fiber> next;  // in the list that it is in
};

namespace {

// Fibers that run no thread. To the thread sanitizer a fiber is one thread, whatever it runs, so work that need not
// wait for each other must not share one: each stream has a pool of its own, and while a graph runs nothing goes back
// to it.
class Pool {
 public:
  Pool() = default;
  ~Pool() {
    while (idle_) take();
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::unique_ptr<Fiber> take() { return idle_ ? pop(idle_) : std::make_unique<Fiber>(); }
  void give(std::unique_ptr<Fiber> fiber) { push(graphs_ > 0 ? used_ : idle_, std::move(fiber)); }

  void enter_graph() { ++graphs_; }
  void leave_graph() {
    if (--graphs_ > 0) return;
    while (used_) push(idle_, pop(used_));
  }

 private:
  // Linked lists, since memory that they took and gave back would be a race of the nodes' threads.
  static void push(std::unique_ptr<Fiber>& list, std::unique_ptr<Fiber> fiber) {
    fiber->next = std::move(list);
    list = std::move(fiber);
  }
  static std::unique_ptr<Fiber> pop(std::unique_ptr<Fiber>& list) {
    std::unique_ptr<Fiber> fiber = std::move(list);
    list = std::move(fiber->next);
    return fiber;
  }

  std::unique_ptr<Fiber> idle_;
  std::unique_ptr<Fiber> used_;
  int graphs_ = 0;
};

thread_local Pool own_pool;
thread_local Pool* pool = &own_pool;

// What the thread sanitizer knows a block's start and end by.
struct Marks {
  char starts = 0;
  char ends = 0;
};

// Runs the threads of a block in turns.
struct Scheduler {
  Watched self;
  Fiber* running = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  Marks* marks = nullptr;

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
    acquire(&scheduler().marks->starts);
    scheduler().body(scheduler().argument);
    release(&scheduler().marks->ends);
    fiber.ended = true;
    back_to_scheduler(fiber);
  }
}

}  // namespace

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

Fibers::Fibers() = default;

Fibers::~Fibers() {
  for (std::unique_ptr<Fiber>& fiber : idle_) pool->give(std::move(fiber));
}

void Fibers::run(unsigned threads, void (*body)(void*), void* context) {
  Scheduler& mine = scheduler();
  mine.body = body;
  mine.argument = context;
#ifdef ON_HOST_TSAN
  mine.self.tsan = __tsan_get_current_fiber();
#endif
  // On the heap: where a stack is used again, the sanitizer would go on with what it knew there.
  const auto marks = std::make_unique<Marks>();
  mine.marks = marks.get();
  release(&marks->starts);
  std::vector<std::unique_ptr<Fiber>> waiting;
  std::vector<std::unique_ptr<Fiber>> ended;
  for (unsigned thread = 0; thread < threads; ++thread) {
    // For the same reason it runs no other thread of the block.
    std::vector<std::unique_ptr<Fiber>>& reusable = kOneThreadEach || ended.empty() ? idle_ : ended;
    std::unique_ptr<Fiber> fiber;
    if (reusable.empty()) {
      fiber = pool->take();
    } else {
      fiber = std::move(reusable.back());
      reusable.pop_back();
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
  for (std::unique_ptr<Fiber>& fiber : ended) idle_.push_back(std::move(fiber));
  acquire(&marks->ends);
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

namespace {

// What the work of this thread comes after.
struct Ahead {
  char* const* marks = nullptr;
  std::size_t count = 0;
  void wait() const {
    for (std::size_t i = 0; i < count; ++i) acquire(marks[i]);
  }
};
thread_local Ahead ahead;
thread_local bool has_waited = false;

}  // namespace

void wait_for_those_ahead() {
  ahead.wait();
  has_waited = true;
}

void run_early(const std::function<void()>& work) {
  has_waited = false;
  work();
  if (has_waited) return;
  std::fputs("a kernel that began early did not wait for the one ahead of it\n", stderr);
  std::abort();
}

#ifdef ON_HOST_TSAN
void Apart::run(char* const* after, std::size_t count, char* mark, bool early, void (*work)(void*), void* context) {
  std::atomic<bool> ended{false};  // unseen by the sanitizer, like everything here
  threads_.emplace_back([&, after, count, mark, early, work, context, of_stream = pool] {
    pool = of_stream;  // whose thread waits meanwhile
    ahead = {after, count};
    if (!early) ahead.wait();
    work(context);
    release(mark);
    ended = true;
  });
  while (!ended) std::this_thread::yield();
}
#else
void Apart::run(char* const*, std::size_t, char*, bool, void (*work)(void*), void* context) { work(context); }
#endif

Apart::Apart() { pool->enter_graph(); }

Apart::~Apart() {
  for (std::thread& thread : threads_) thread.join();
  pool->leave_graph();
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
