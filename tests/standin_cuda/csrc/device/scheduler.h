// Runs the work of streams, in an order that CUDA allows.
//
// Work of one stream runs in its order; a wait lets the stream go on when its fence has been passed. Nothing else is
// promised, so nothing else is kept. With no seed, work runs as late as possible: when something needs it. With a
// seed, a random number of steps of random streams runs whenever the host calls, and between the steps that are
// needed; how eager the device is, and which streams it prefers, changes from time to time.
#pragma once

#include <condition_variable>
#include <mutex>
#include <random>
#include <set>

#include "device/work.h"

namespace standin {

using Lock = std::unique_lock<std::mutex>;

class Scheduler {
 public:
  std::mutex mutex; // of all state of the runtime

  // Orders from now on are those of this seed; -1: as late as possible, -2: at once.
  void seed(long long seed);

  Stream& default_stream(int device);
  Stream& create(int device, unsigned flags, int priority);
  void destroy(Lock&, Stream&); // when its work is done
  void retire(Lock&, Stream&); // it goes by itself when its work is done
  bool knows(const Stream* stream) const {
    return streams_.count(const_cast<Stream*>(stream)) != 0;
  }
  std::vector<Stream*> streams_of(int device) const;

  // Gives a stream work; where the stream is captured, to the graph.
  void issue(Lock&, Stream&, Work);
  // A point after all work of the stream.
  FencePtr record(Lock&, Stream&);
  void wait(Lock&, Stream&, const FencePtr&);

  // Runs what must have run for this to be so.
  void finish(Lock&, const FencePtr&);
  void finish(Lock&, Stream&);
  void finish(Lock&, std::vector<Stream*>);
  void finish_all(Lock&);

  // The host has called: the device may have gone on meanwhile.
  void let_time_pass(Lock&);

  // Whether work that is queued reads or writes memory of the host in this range.
  bool host_range_in_use(const void* begin, size_t bytes) const;

 private:
  bool ready(const Stream&) const;
  Stream* needed_for(const Fence&) const; // null while its next step is being taken by another thread
  Stream* random_stream();
  void step(Lock&, Stream&);
  void forget(Stream&);
  void run(Lock&, Stream&, Work&);
  void change_mood();
  void give_way_to_default(Lock&, Stream&);
  void enqueue(Lock&, Stream&, Work);

  std::map<int, Stream*> default_;
  std::set<Stream*> streams_;
  std::vector<Stream*> order_; // of creation
  std::vector<Stream*> busy_; // those with work, in the order in which they got it: so a seed means the same each time
  std::condition_variable idle_; // a host function has ended
  enum class Order { Late, AtOnce, Random } order_kind_ = Order::Late;
  std::mt19937_64 random_;
  double eagerness_ = 0; // how likely one more step is, each time the host calls
  double distraction_ = 0; // how likely another step goes before one that the host waits for
  int calls_ = 0;
  int mood_ = 0;
};

Scheduler& scheduler();

} // namespace standin
