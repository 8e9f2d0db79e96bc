// Events that several processes know: a page of memory that they share says what has happened.
//
// A device of another process does not go on because this one waits. So what comes before such an event runs when the
// event is recorded: between processes nothing is late.
#pragma once

#include "device/scheduler.h"

namespace standin {

struct SharedEvent;

// The page of an event, made if it has none yet, as a descriptor that another process can open.
int share_event(Lock& lock, Event& event);
SharedEvent* open_shared_event(int descriptor);
void close_shared_event(SharedEvent* event);

// The event is recorded after all work of the stream, which has run when this returns.
void record_shared(Lock& lock, Event& event, Stream& stream);
bool has_happened(const SharedEvent& event);

} // namespace standin
