"""Ways to break the engine, as text replacements; the suite must notice every one."""

from __future__ import annotations

import dataclasses

__all__ = ["MUTANTS", "Mutant"]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Replace ``old`` (which occurs once) by ``new`` in a file of ``diffusers_offload_plus/offload``."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("onload does nothing", "group.py", "            self._loans.append(loan)\n        self.state = State.ONLOADED\n", "            self._loans.append(loan)\n        self.state = State.ONLOADED\n        self.offload()\n"),
    Mutant("the parameter is not re-pointed", "group.py", "            repoint(loan.entry.tensor, device)\n", ""),
    Mutant("views are one alignment off", "stores/layout.py", "        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT\n", "        offset += max(0, -(-nbytes // ALIGNMENT) - 1) * ALIGNMENT\n"),
    Mutant("the last tensor of a slab is not copied", "stores/host.py", "            _copy_bytes(source, home)\n", "            if source is not sources[-1]:\n                _copy_bytes(source, home)\n"),
    Mutant("no wait before a read", "transfer.py", "        current.wait_event(self._event)\n", ""),
    Mutant("no wait before an overwrite", "transfer.py", "            self._stream.wait_stream(compute) if free is None else self._stream.wait_event(free)\n", ""),
    Mutant("freed before it was used", "transfer.py", "            self.slab.record_stream(current)\n", "            pass\n"),
    Mutant("a prefetch is dropped while under way", "transfer.py", "        if not self._side_owned:\n            self.wait()\n", "        return\n"),
    Mutant("a shared tensor moves with its first unit only", "inventory.py", "                users.setdefault(id(tensor), set()).add(index)\n", "                users.setdefault(id(tensor), {index})\n"),
    Mutant("ties are not seen", "inventory.py", "        for i in overlapping[1:]:\n", "        for i in overlapping[:0]:\n"),
    Mutant("buffers are not carried", "engine.py", "            self.carried.to_device()\n", ""),
    Mutant("buffers replaced by forward are forgotten", "engine.py", "        if self.moves and self.structure.buffers_changed(below):\n", "        if False:\n"),
    Mutant("offload does not restore", "group.py", "                    repoint(loan.entry.tensor, loan.host)\n", "                    pass\n"),
    Mutant("an in-place write on the device is dropped", "group.py", "elif loan.entry.is_buffer or loan.version is None or _version(tensor) != loan.version:", "elif False:"),
    Mutant("bytes are not compared", "group.py", "        if compare:\n", "        if False:\n"),
    Mutant("re-pointed on the device: dropped", "group.py", "                self._adopt(loan)\n", "                repoint(tensor, loan.host)\n"),
    Mutant("re-pointed on the host: not noticed", "group.py", "        return tensor.numel() == 0 or self.home.offset_of(tensor) is not None\n", "        return True\n"),
    Mutant("written under a prefetch: not noticed", "group.py", "if self._transfer is not None and self._copied != self._versions():", "if False:"),
    Mutant("an exception skips the offload", "engine.py", "        finally:\n            passes.exit(depth)\n", "        finally:\n            if __import__(\"sys\").exc_info()[0] is None:\n                passes.exit(depth)\n"),
    Mutant("a group is never offloaded", "passes.py", "            group.offload(compare=compare)\n", "            pass\n"),
    Mutant("no lock", "engine.py", "        with self._lock:\n            self._owner = threading.get_ident()\n", "        with contextlib.nullcontext():\n            self._owner = threading.get_ident()\n"),
    Mutant("doors are not opened", "doors.py", "            install(module, watched, parkable, engine)\n", "            pass\n"),
    Mutant("a returned parameter goes back to the host", "engine.py", "            return valid_output(forward(*args, **kwargs), self._managed)\n", "            return forward(*args, **kwargs)\n"),
    Mutant("structure changes are not noticed", "engine.py", "        if not self._built or not self.structure.unchanged(entry, self.intact, self.root):\n", "        if not self._built:\n"),
    Mutant("removed hooks are not put back", "hook.py", "        if self.stale:\n            self._refresh()\n", "        pass\n"),
    Mutant("only root parameters of wrappers are re-pointed", "tensors.py", "            setattr(tensor, name, getattr(value, name))\n", "            pass\n"),
    Mutant("inputs stay where they are", "inputs.py", "        if _elsewhere(value, device):\n", "        if False:\n"),
    Mutant("a copy keeps the hooks", "copying.py", 'if name not in _HOOKING', 'if name != "__reduce_ex__"'),
    Mutant("pinned memory is kept after disable", "group.py", "        if self.home.tier != \"host\":\n", "        if self.home.tier == \"disk\":\n"),
    Mutant("prefetch never happens", "window.py", "        if not self._depth:\n            return self.ahead\n", "        return self.ahead\n"),
    Mutant("saved weights are kept", "saved.py", "        if group is None:\n", "        if True:\n"),
    Mutant("gradients stay on the device", "saved.py", "        landed = fresh.to(tensor.device)\n", "        return\n"),
    Mutant("a range on disk serves two weights", "stores/matching.py", "                    del candidates[index]\n", ""),
    Mutant("bytes on disk are not compared", "stores/matching.py", "if offset + nbytes <= file.size and file.equals(address, offset, nbytes):", "if offset + nbytes <= file.size:"),
    Mutant("what was written to a mapped weight is not read", "stores/mapped_file.py", "        return bool((swapped | (present & ~of_file)).any())\n", "        return False\n"),
    Mutant("a file changed in place is not noticed", "stores/mapped_file.py", "        if found != self._stamp:\n", "        if False:\n"),
    Mutant("badly aligned weights are used in place", "stores/disk.py", "        return self.offset % COMPUTE_ALIGNMENT == 0\n", "        return True\n"),
    Mutant("weights are let go before they are on disk", "stores/store_file.py", "            _write_all(descriptor, view_bytes(content.bytes), offset)\n", "            pass\n"),
    Mutant("kept files are published before they are whole", "stores/directory.py", "                write_file(descriptor, str(final), plan, contents)\n", "                os.replace(temporary, final)\n                temporary = str(final)\n                write_file(descriptor, str(final), plan, contents)\n"),
    Mutant("the budget of host memory is ignored", "plan.py", "        if held + nbytes <= room and (held + nbytes) * total <= room * passed:\n", "        if True:\n"),
    Mutant("a group on disk is read from the wrong place", "stores/disk.py", "                run = Piece(run.file, run.offset, distance + piece.nbytes)\n", "                run = Piece(run.file, run.offset, distance + piece.nbytes - 1)\n"),
    Mutant("a staging buffer is filled while it is copied from", "staging.py", "            event.synchronize()\n", ""),
    Mutant("the thread's copy does not wait for computation", "transfer.py", "        self._stream.wait_event(before)\n", ""),
    Mutant("what is kept is dropped without a look", "passes.py", "                group.offload(compare=True)\n", "                group.offload()\n"),
    Mutant("what is kept was re-pointed: not noticed", "group.py", "            if all(self._on_loan(entry.tensor) for entry in self.spec.entries):\n", "            if True:\n"),
    Mutant("a script reads what is kept on the device", "engine.py", "                    self.passes.bring_home(group)\n", "                    pass\n"),
    Mutant("iteration shows what is kept on the device", "doors.py", "        if self.engine.passes.keeps and not _only_looked_at():\n", "        if False:\n"),
    Mutant("memory that somebody holds is reused", "transfer.py", "        if not held_alone(transfer.slab):\n", "        if False:\n"),
    Mutant("memory is reused before it is free", "transfer.py", "self._stream.wait_stream(compute) if free is None else self._stream.wait_event(free)", "self._stream.wait_stream(compute) if free is None else None"),
    Mutant("the device budget is not kept", "device_budget.py", "        return max(0, self.limit - self.scratch - sum(member.fixed_bytes for member in self._members))\n", "        return 2 * self.limit\n"),
    Mutant("nobody makes room", "device_budget.py", "        if self.limit is None or self.slots.has(nbytes) or self._short(nbytes) <= 0:\n", "        if True:\n"),
    Mutant("training keeps weights on the device", "passes.py", "            if self.compare:\n                self.evict_all()\n", ""),
    Mutant("weights are let go before the disk has them", "stores/directory.py", "        sync_data(file.fileno(), where)  # last: the disk writes while the rest is done\n", ""),
    Mutant("a copied checkpoint is used before the disk has it", "stores/disk_placement.py", "            sync_data(descriptor, path)\n", ""),
    Mutant("what was read past the cache is not moved into place", "stores/direct.py", "            if shift:\n", "            if False:\n"),
    Mutant("the end of a range read past the cache is left out", "stores/mapped_file.py", "((0, start), (stop, target.numel()))", "((0, start),)"),
    Mutant("a staging buffer is shorter than what it is to hold", "staging.py", "buffer.numel() < nbytes:", "buffer.numel() > nbytes:"),
    Mutant("what is in the cache is read past it", "stores/direct.py", " or in_memory(address, nbytes) > 0.5:\n", ":\n"),
    Mutant("ranges never get back into the cache", "stores/direct.py", "        return missed % THROUGH_CACHE != 0\n", "        return True\n"),
    Mutant("a file system that refuses is asked again", "stores/direct.py", "                self._refused = True  # the descriptor stays: others may be reading\n", ""),
    Mutant("a fork in the middle of a direct read is not noticed", "stores/direct.py", "            if forks != _forks:\n                break\n", ""),
    Mutant("the disk's errors are taken for a refusal", "stores/direct.py", "                if error.errno not in _REFUSALS:\n                    raise\n", ""),
    Mutant("errors of reading are swallowed", "reader.py", "                    return self.future.result()\n", "                    return None if self.future.exception() else self.future.result()\n"),
    Mutant("what a rank wrote is not what travels", "stores/shared_host.py", "if registered is None or self._memory.view.is_private(self._offset, self.nbytes):", "if registered is None:"),
    Mutant("a rank's writes are written to the shared memory", "stores/mapped_file.py", "    flags = mmap.MAP_PRIVATE | _NORESERVE\n", "    flags = mmap.MAP_SHARED if os.get_blocking(descriptor) and \"memfd\" in os.readlink(f\"/proc/self/fd/{descriptor}\") else mmap.MAP_PRIVATE | _NORESERVE\n"),
    Mutant("bytes offered by others are not compared", "stores/shared_host.py", "            elif not memory.view.equals(extent.start, offset + extent.offset, extent.nbytes):\n", "            elif False:\n"),
    Mutant("the content does not decide who shares", "stores/shared_host.py", "                whole.update(bytes_at(extent.start, extent.nbytes))\n", "                pass\n"),
    Mutant("layouts do not decide who shares", "stores/shared_host.py", "                whole.update(shape.encode())\n", "                pass\n"),
    Mutant("memory is used before it is filled", "stores/shared_host.py", "            found.wait(memory.reserved)\n", ""),
    Mutant("nobody is told that memory is filled", "stores/shared_host.py", "        if self._fills:\n            part.announce()\n", ""),
    Mutant("memory is not filled anew when who filled it is gone", "stores/shared_host.py", "            return None  # somebody has to fill memory anew\n", "            raise NotShared(\"gone\") from None\n"),
    Mutant("a standing process is waited for for ever", "stores/meeting.py", "            elif time.monotonic() > deadline:\n", "            elif False:\n"),
    Mutant("the name dies with the process that made the memory", "stores/steward.py", "            self._forget(connection)\n            self._succeed(part)\n", "            self._forget(connection)\n"),
    Mutant("a forked child keeps the name", "stores/steward.py", "        _STEWARD.abandon()\n", ""),
    Mutant("anybody is trusted", "stores/steward.py", "    return bool(user == os.geteuid() and process != 0)\n", "    return True\n"),
    Mutant("memory is kept by name after the last weight is gone", "stores/shared_host.py", "                weakref.finalize(self._memory, self._part.release).atexit = False\n", ""),
    Mutant("shared memory is not reserved", "stores/shared_memory.py", "            os.posix_fallocate(self.descriptor, offset, nbytes)\n", "            pass\n"),
    Mutant("room in control groups is not looked at", "stores/shared_memory.py", "        if room is not None and room < nbytes + MARGIN:\n", "        if False:\n"),
    Mutant("shared memory can be cut short", "stores/shared_memory.py", "fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)", "fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)"),
    Mutant("shared memory can be changed", "stores/shared_memory.py", "            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)\n", "            return\n"),
    Mutant("a refused reservation is an error", "stores/shared_memory.py", "            raise NotShared(f\"{nbytes} bytes of shared memory cannot be reserved: {_explain(error)}\") from error\n", "            raise\n"),
    Mutant("all weights are held until all have moved", "stores/shared_host.py", "        self._groups.pop(key, None)\n        if not self._groups:\n", "        self._groups[key] = self._groups[key]._replace(nbytes=0) if key in self._groups else _Group([], 0, 0)\n        if not any(group.nbytes for group in self._groups.values()):\n"),
    Mutant("unchanged buffers are written", "stores/shared_host.py", "        if not torch.equal(target, host):\n", "        if True:\n"),
    Mutant("the limit on locked memory is not named", "transfer.py", "            limit = lockable_bytes()\n", "            limit = None\n"),
    Mutant("registered memory stays registered", "staging.py", "    weakref.finalize(array, unregister).atexit = False\n", ""),
    Mutant("weights keep their shared home after disable", "group.py", "        if self.home.tier != \"host\":\n", "        if self.home.tier not in (\"host\", \"shared host\"):\n"),
    Mutant("shared weights are copied to compute on the CPU", "transfer.py", "        if self.uses_in_place(home):\n            return Transfer(torch.empty(0, dtype=torch.uint8))\n", ""),
]  # fmt: skip
