"""Weights on disk: what is written, found, mapped and read, and the buffers it passes through."""

from __future__ import annotations

from tests.mutants.edits import Always, Before, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["DISK"]

DISK = Room(
    first=(
        "test_weights_on_disk",
        "test_damaged_files",
        "test_failing_disk",
        "test_checkpoints",
        "test_directories",
        "test_shared_directory",
        "test_memory_and_budget",
        "test_reader",
        "test_staging",
        "test_loading",
        "test_store_command",
        "test_killed",
    ),
    mutants=[
        Mutant("a range on disk serves two weights", "KnownRanges._first_equal", Drop("del _")),
        Mutant("bytes on disk are not compared", "KnownRanges._first_equal", Replace("_.equals(...)", "True")),
        Mutant(
            "what was written to a mapped weight is not read",
            "MappedFile.is_private",
            Replace("bool(_.any())", "False"),
        ),
        Mutant("a file changed in place is not noticed", "MappedFile.check", Never("_ != self._stamp")),
        Mutant("badly aligned weights are used in place", "DiskSlab.__init__", Replace("all(...)", "True")),
        Mutant("weights are not used where the loader mapped them", "DiskSlab.__init__", Replace("_1 or _2", "_1")),
        Mutant(
            "weights are let go before they are on disk",
            "store_file:write_file",
            Drop("_write_all(_, view_bytes(...), ...)"),
        ),
        Mutant("weights are let go before the disk has them", "StoreDirectory.write", Drop("sync_data(...)")),
        Mutant("a copied checkpoint is used before the disk has it", "DiskAllocator._copied", Drop("sync_data(...)")),
        Mutant(
            "kept files are published before they are whole",
            "StoreDirectory.publish",
            Before("write_file(...)", "os.replace(temporary, final)\ntemporary = str(final)"),
        ),
        Mutant("the budget of host memory is ignored", "groups_in_memory", Always("_ <= budget")),
        Mutant(
            "a group on disk is read from the wrong place",
            "DiskSlab.read_into",
            Replace("offset + first - extent.offset", "offset + first - extent.offset - 1"),
        ),
        Mutant("a staging buffer is filled while it is copied from", "Staging.acquire", Drop("_.synchronize()")),
        Mutant(
            "a staging buffer is shorter than what it is to hold",
            "Staging.acquire",
            Replace("_1 < nbytes", "_1 > nbytes"),
        ),
        Mutant(
            "the thread's copy does not wait for computation",
            "CopyEngine._start_reading",
            Drop("self._wait_until_free(...)"),
        ),
        Mutant(
            "errors of reading are swallowed",
            "Reading.finish",
            Replace("_1.result()", "None if _1.exception() else _1.result()"),
        ),
        Mutant(
            "pages that are not there are not asked for",
            "MappedFile._is_in_memory",
            Replace("in_memory(...)", "True"),
        ),
        Mutant(
            "the end of a truncated file is touched", "MappedFile._is_in_memory", Replace("_ < self.size", "False")
        ),
    ],
)
