#include <torch/csrc/utils/pybind.h>

#include "device.h"
#include "memory.h"

namespace py = pybind11;
using namespace simulated;

namespace {

py::dict stats() {
  Ledger book;
  {
    Lock lock;
    book = ledger();
  }
  py::list devices;
  for (const Usage& usage : book.devices) {
    devices.append(py::make_tuple(usage.live, usage.peak));
  }
  py::dict values;
  values["live"] = book.device_total.live;
  values["peak"] = book.device_total.peak;
  values["h2d"] = book.h2d;
  values["d2h"] = book.d2h;
  values["copies"] = book.copies;
  values["pinned"] = book.pinned.live;
  values["peak_pinned"] = book.pinned.peak;
  values["races"] = book.races;
  values["race_log"] = py::tuple(py::cast(book.race_log));
  values["host_syncs"] = book.host_syncs;
  values["devices"] = devices;
  return values;
}

py::list copy_log() {
  std::vector<CopyRecord> records;
  {
    Lock lock;
    records = ledger().copy_log;
  }
  py::list log;
  for (const CopyRecord& record : records) {
    log.append(py::make_tuple(name(record.kind), record.nbytes, record.stream));
  }
  return log;
}

} // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.attr("DEVICE_COUNT") = int(kDevices);
  module.def("register_device", &register_device);
  module.def("stats", &stats);
  module.def("reset_stats", [] {
    Lock lock;
    ledger().reset();
  });
  module.def("reset_peak", [](int device) {
    Lock lock;
    ledger().devices[device].reset_peak();
  });
  module.def("trim", [] {
    Lock lock;
    memory().trim();
  });
  module.def("copy_log", &copy_log);
  module.def("set_copy_log", [](bool enabled) {
    Lock lock;
    ledger().log_copies = enabled;
    ledger().copy_log.clear();
  });
  module.def("capacity", [](int device) {
    Lock lock;
    return ledger().capacity[device];
  });
  module.def("set_capacity", [](int device, int64_t nbytes) {
    Lock lock;
    ledger().capacity[device] = nbytes;
  });
  module.def("set_allocation_hook", [](py::object function) {
    if (function.is_none()) {
      set_allocation_hook(nullptr);
      return;
    }
    // Freed only with the interpreter's lock, whoever drops it last.
    std::shared_ptr<py::object> kept(new py::object(std::move(function)), [](py::object* held) {
      py::gil_scoped_acquire locked;
      delete held;
    });
    set_allocation_hook([kept](const char* space, size_t nbytes) {
      py::gil_scoped_acquire locked;
      (*kept)(space, nbytes);
    });
  });
  module.def("link_speed", [](int link) {
    Lock lock;
    const LinkSpeed& speed = speeds().links.at(link);
    return py::make_tuple(speed.bytes_per_second, speed.latency);
  });
  module.def("set_link_speed", [](int link, double bytes_per_second, double latency) {
    Lock lock;
    speeds().links.at(link) = {bytes_per_second, latency};
  });
  module.def("compute_speed", [] {
    Lock lock;
    return py::make_tuple(speeds().launch, speeds().per_byte);
  });
  module.def("set_compute_speed", [](double launch, double per_byte) {
    Lock lock;
    speeds().launch = launch;
    speeds().per_byte = per_byte;
  });
  module.def("compute_for", [](double seconds) {
    Lock lock;
    const Lane lane = current_lane(current_device());
    scheduler().launch(lane);
    scheduler().take(lane, seconds);
  });
  module.def("host_seconds", [] {
    Lock lock;
    return scheduler().host_seconds();
  });
  module.def("take_host_seconds", [](double seconds) {
    Lock lock;
    scheduler().host_take(seconds);
  });
  module.def("default_generator", &default_generator);
  module.def("check_device", [](int device) { check_device(device); });
  module.def("set_device", [](int device) { set_current_device(device); });
  module.def("current_device", [] { return int(current_device()); });
}
