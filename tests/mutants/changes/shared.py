"""Host memory that processes share: who fills it, who may have it, and who answers for it."""

from __future__ import annotations

from tests.mutants.edits import After, Always, Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["SHARED"]

SHARED = Room(
    first=(
        "test_shared_memory",
        "test_ranks",
    ),
    mutants=[
        Mutant("what a rank wrote is not what travels", "SharedSlab.in_memory", Replace("_.is_private(...)", "False")),
        # Not of files: shared memory is a memfd.
        Mutant(
            "a rank's writes are written to the shared memory",
            "_map_privately",
            Replace(
                "mmap.MAP_PRIVATE",
                'mmap.MAP_SHARED if "memfd" in os.readlink(f"/proc/self/fd/{descriptor}") else mmap.MAP_PRIVATE',
            ),
        ),
        Mutant("bytes offered by others are not compared", "SharedAllocator._share", Never("not _.holds(...)")),
        Mutant(
            "the content does not decide who shares",
            "SharedAllocator._content_name",
            Drop("_.update(view_bytes(...))"),
        ),
        Mutant("layouts do not decide who shares", "SharedAllocator._content_name", Drop("_.update(_.encode())")),
        Mutant("memory is used before it is filled", "SharedAllocator._join", Drop("_.wait(...)")),
        Mutant("nobody is told that memory is filled", "SharedAllocator._finish", Drop("_.announce()")),
        Mutant(
            "memory is not filled anew when who filled it is gone",
            "SharedAllocator._join",
            Replace("continue", 'raise NotShared("gone") from None'),
        ),
        Mutant("a standing process is waited for for ever", "Offer.wait", Never("time.monotonic() > _")),
        Mutant(
            "the name dies with the process that made the memory",
            "server:Member._run",
            Replace("self._take_over()", "False"),
        ),
        Mutant("a forked child keeps the name", "server:_close_all", Drop("_.close()")),
        Mutant("anybody is trusted", "_require_own", Body("return")),
        Mutant(
            "memory has a name after the last weight is gone",
            "SharedAllocator._join",
            Drop("weakref.finalize(...).atexit = _"),
        ),
        Mutant(
            "all weights are held until all have moved",
            "SharedAllocator.store",
            After(
                "self._groups.pop(...)",
                """
    held = vars(self).setdefault("held", [])
    held.append(group)
    if not self._groups:
        held.clear()
""",
            ),
        ),
        Mutant("unchanged buffers are written", "SharedSlab.write", Always("not torch.equal(...)")),
        Mutant("shared memory is not reserved", "SharedMemory.reserve", Drop("os.posix_fallocate(...)")),
        Mutant(
            "memory left in control groups is not looked at", "SharedMemory.reserve", Never("_ is not None and ...")
        ),
        Mutant("a refused reservation is an error", "SharedMemory.reserve", Replace("raise _ from _", "raise")),
        Mutant(
            "shared memory can be cut short",
            "SharedMemory.create",
            Replace("fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK", "fcntl.F_SEAL_GROW"),
        ),
        Mutant("shared memory can be changed", "SharedMemory.forbid_writing", Body("return")),
        Mutant("the limit on locked memory is not named", "lockable", Replace("lockable_bytes()", "None")),
        Mutant("registered memory stays registered", "registered", Drop("weakref.finalize(...).atexit = _")),
        Mutant(
            "weights stay in shared memory after disable",
            "ParamGroup.to_plain_memory",
            Replace('_1 != "host"', '_1 not in ("host", "shared host")'),
        ),
        Mutant(
            "shared weights are copied to compute on the CPU", "CopyEngine._start", Never("_ and storage.is_aligned")
        ),
    ],
)
