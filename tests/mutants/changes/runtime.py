"""What happens while a model runs: hooks, lookups, passes, what is brought ahead, and what users change meanwhile."""

from __future__ import annotations

from tests.mutants.edits import Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["RUNTIME"]

RUNTIME = Room(
    first=(
        "test_figures",
        "test_budgets",
        "test_arguments",
        "test_broken_engines",
        "test_buffers",
        "test_user_changes",
        "test_lookups",
        "test_failures",
        "test_prefetch",
        "test_copies_and_state",
        "test_claims_and_copies",
        "test_training",
        "test_other_hooks",
        "test_pipelines",
    ),
    mutants=[
        Mutant("buffers stay on the host", "OffloadEngine.onload_residents", Drop("self.budget.retry(self, move)")),
        Mutant("buffers replaced by forward are forgotten", "OffloadEngine._recount_buffers", Body("return")),
        Mutant(
            "an exception skips the offload",
            "OffloadEngine.run",
            Replace("_1.exit(_2)", '_1.exit(_2) if __import__("sys").exc_info()[0] is None else None'),
        ),
        Mutant("a group is never offloaded", "ForwardPass._exit", Drop("_.offload()")),
        Mutant(
            "a group that was read is never offloaded",
            "ForwardPass._offload",
            Body("self._on_device.pop(group, None)"),
        ),
        Mutant("no lock", "OffloadEngine._pass", Replace("self._lock", "contextlib.nullcontext()")),
        Mutant("lookups are not watched", "watch_lookups", Drop("install(...)")),
        Mutant(
            "a returned parameter goes back to the host",
            "OffloadEngine.run",
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
        Mutant("displaced hooks are not noticed", "_Hooks.fire", Body("return True")),
        Mutant(
            "a forward put on the class later is not called",
            "GroupOffloadPlusHook._forward",
            Never("self._class_forward is not None and ..."),
        ),
        Mutant("arguments stay where they are", "arguments:to_device", Replace("send_to_device(args, ...)", "args")),
        Mutant("keywords stay where they are", "arguments:to_device", Replace("send_to_device(value, ...)", "value")),
        Mutant("a copy keeps the hooks", "plain_state", Replace("_ not in _HOOKING", '_ != "__reduce_ex__"')),
        Mutant("prefetch never happens", "Prefetcher.advance", Never("_ < self._depth")),
        Mutant(
            "what is cached is dropped without a look",
            "ForwardPass.evict_group",
            Replace("_.offload(compare=Compare.ALL)", "_.offload()"),
        ),
        Mutant("a script reads what is cached on the device", "OffloadEngine.materialize", Drop("_.evict_group(...)")),
        Mutant("iteration shows what is cached on the device", "WatchedDict._show_host", Drop("_.evict_cached()")),
        Mutant("training keeps weights on the device", "ForwardPass.begin", Drop("self.evict_group(...)")),
    ],
)
