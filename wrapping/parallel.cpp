#include "parallel.hpp"

#include <algorithm>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace itk_nir {

namespace {
Pool *the_pool = nullptr;
std::once_flag the_pool_once;
}  // namespace

Pool &Pool::instance() {
  // Never destroyed: joining threads while the interpreter unloads the module could block its exit.
  std::call_once(the_pool_once, [] {
    the_pool = new Pool();
#ifndef _WIN32
    // After a fork the child has none of the threads: it starts with a fresh pool.
    pthread_atfork(nullptr, nullptr, [] { the_pool = new Pool(); });
#endif
  });
  return *the_pool;
}

void Pool::work_on() {
  const auto *task = task_;
  for (int i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
    try {
      (*task)(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void Pool::worker() {
  unsigned long seen = 0;
  for (;;) {
    // The ops of a registration follow one another closely: look out for the next one a little while before sleeping.
    for (int k = 0; k < 200 && round_.load(std::memory_order_acquire) == seen; ++k) std::this_thread::yield();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (wanted_ == 0) continue;  // came too late: the others have done it all
      --wanted_;
    }
    work_on();
    active_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void Pool::run(int count, int threads, const std::function<void(int)> &task) {
  std::lock_guard<std::mutex> entry(entry_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const int helpers = std::min(threads, count) - 1;
    while (static_cast<int>(workers_.size()) < helpers) {
      workers_.emplace_back([this] { worker(); });
      workers_.back().detach();
    }
    task_ = &task;
    count_ = count;
    next_ = 0;
    wanted_ = helpers;
    active_ = helpers;
    error_ = nullptr;
    ++round_;
  }
  wake_.notify_all();
  work_on();
  {
    // Every task has been taken: whoever has not begun by now need not, and is not waited for.
    std::lock_guard<std::mutex> lock(mutex_);
    active_.fetch_sub(wanted_);
    wanted_ = 0;
  }
  while (active_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  std::lock_guard<std::mutex> lock(mutex_);
  task_ = nullptr;
  if (error_) {
    std::exception_ptr error = error_;
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

}  // namespace itk_nir
