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
  std::unique_lock<std::mutex> lock(mutex_);
  unsigned long seen = 0;
  for (;;) {
    wake_.wait(lock, [&] { return round_ != seen && wanted_ > 0; });
    seen = round_;
    --wanted_;
    lock.unlock();
    work_on();
    lock.lock();
    if (--active_ == 0) done_.notify_one();
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
    wanted_ = active_ = helpers;
    error_ = nullptr;
    ++round_;
  }
  wake_.notify_all();
  work_on();
  std::exception_ptr error;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return active_ == 0; });
    wanted_ = 0;
    task_ = nullptr;
    error = error_;
    error_ = nullptr;
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace itk_nir
