"""What happens while a model runs: hooks, doors, passes, what is brought ahead, and what users change meanwhile."""

from __future__ import annotations

from tests.mutants.edits import Always, Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["RUNTIME"]

RUNTIME = Room(
    first=(
        "test_figures",
        "test_budgets",
        "test_inputs",
        "test_broken_engines",
        "test_buffers",
        "test_user_changes",
        "test_entry_doors",
        "test_failures",
        "test_copies_and_state",
        "test_claims_and_copies",
        "test_training",
        "test_other_hooks",
        "test_pipelines",
    ),
    mutants=[
        Mutant("buffers are not carried", "OffloadEngine._onload_residents", Drop("self.carried.to_device(...)")),
        Mutant("buffers replaced by forward are forgotten", "OffloadEngine._recount_buffers", Body("return")),
        Mutant(
            "an exception skips the offload",
            "OffloadEngine._run_frame",
            Replace("_1.exit(_2)", '_1.exit(_2) if __import__("sys").exc_info()[0] is None else None'),
        ),
        Mutant("a group is never offloaded", "Passes._offload", Drop("_.offload(...)")),
        Mutant("no lock", "OffloadEngine._pass", Replace("self._lock", "contextlib.nullcontext()")),
        Mutant("doors are not opened", "open_doors", Drop("install(...)")),
        Mutant(
            "a returned parameter goes back to the host",
            "OffloadEngine._run_frame",
            Replace("valid_output(_1, ...)", "_1"),
        ),
        Mutant("structure changes are not noticed", "OffloadEngine._begin", Replace("_.unchanged(...)", "True")),
        Mutant(
            "a module put in place of another is not noticed",
            "_Part._weights_and_tree",
            Replace("map(_, self.dicts)", 'map(itemgetter("_parameters", "_buffers"), self.dicts)'),
        ),
        Mutant("a weight put in place of another is not noticed", "_Contents.same", Replace("all(...)", "True")),
        Mutant("removed hooks are not put back", "Attachment.restore", Body("return")),
        Mutant("inputs stay where they are", "to_device", Never("_elsewhere(...)")),
        Mutant("a copy keeps the hooks", "plain_state", Replace("_ not in _HOOKING", '_ != "__reduce_ex__"')),
        Mutant("prefetch never happens", "Window.advance", Always("not self._depth")),
        Mutant(
            "what is kept is dropped without a look",
            "Passes.bring_home",
            Replace("_.offload(compare=True)", "_.offload()"),
        ),
        Mutant("a script reads what is kept on the device", "OffloadEngine.serve", Drop("_.bring_home(...)")),
        Mutant("iteration shows what is kept on the device", "WatchedDict._show_host", Drop("_.evict_kept()")),
        Mutant("training keeps weights on the device", "Passes.begin", Drop("self.evict_all()")),
    ],
)
