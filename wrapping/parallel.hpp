// A small pool of threads. Work is cut into tasks by the shape of the data alone, never by the number of threads, and
// every task writes its own memory: results are the same bits whatever the number of threads.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace itk_nir {

class Pool {
public:
  static Pool &instance();
  // Runs task(0) … task(count - 1) on at most `threads` threads, the caller among them; returns when all are done.
  // An exception in a task is thrown here once the others have finished.
  void run(int count, int threads, const std::function<void(int)> &task);

private:
  Pool() = default;
  void worker();
  void work_on();
  std::mutex entry_;  // one parallel section at a time
  std::mutex mutex_;  // guards what follows, but for the atomics
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  const std::function<void(int)> *task_ = nullptr;
  int count_ = 0, wanted_ = 0;
  std::exception_ptr error_;
  std::atomic<int> next_{0}, active_{0};
  std::atomic<unsigned long> round_{0};
};

inline void parallel_for(int count, int threads, const std::function<void(int)> &task) {
  if (threads <= 1 || count <= 1) {
    for (int i = 0; i < count; ++i) task(i);
  } else {
    Pool::instance().run(count, threads, task);
  }
}

}  // namespace itk_nir
