#include "base/counters.h"

namespace standin {

Counters& counters() {
  static auto* made = new Counters;
  return *made;
}

} // namespace standin
