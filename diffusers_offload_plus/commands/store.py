"""``offload-plus store``: list, verify and clean a disk store."""

from __future__ import annotations

import argparse

from ..offload.formatting import format_bytes
from . import CommandError
from .arguments import DIRECTORY, FLAG, add_options

__all__ = ["add_arguments", "run"]

ACTIONS = {
    "list": "the stored models, with their sizes and files",
    "verify": "read every file and compare it with its checksums (exit code 1 if one is wrong)",
    "gc": "remove files that no stored model needs and no process uses, those of killed processes included",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Lists, verifies or cleans a directory that `enable_group_offload(..., offload_to_disk_path=DIR, keep=True)` "
        "has written. "
        "Exit code: 0; 1 if something is wrong with the store; 2 on wrong arguments."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_options(action, [("directory", DIRECTORY, "the store")])
        if name == "gc":
            add_options(action, [("--dry-run", FLAG, "say what would go, and leave it")])


def run(arguments: argparse.Namespace) -> int:
    """Run the action."""
    directory = arguments.directory.expanduser().resolve()
    if not directory.is_dir():
        raise CommandError(
            f"DIR must be an existing directory, got '{arguments.directory}'. "
            "Give what was passed as `offload_to_disk_path`."
        )
    if arguments.action == "list":
        return _list(str(directory))
    if arguments.action == "verify":
        return _verify(str(directory))
    return _collect(str(directory), dry_run=arguments.dry_run)


def _list(directory: str) -> int:
    from ..offload.stores.disk.maintenance import Problem, kept_models

    found = list(kept_models(directory))
    for kept in found:
        if isinstance(kept, Problem):
            print(kept)
            continue
        missing = f", MISSING: {', '.join(kept.missing)}" if kept.missing else ""
        files = f"{len(kept.objects)} file{'s' if len(kept.objects) != 1 else ''}"
        size = f"{format_bytes(kept.nbytes)} in {files}"
        print(f"{kept.label} ({kept.model}): {size}, stored on {kept.created}{missing}")
        for name in kept.objects:
            print(f"    objects/{name}")
    if not found:
        print("nothing is stored here")
    return int(any(isinstance(kept, Problem) or kept.missing for kept in found))


def _verify(directory: str) -> int:
    from ..offload.stores.disk.maintenance import Problem, verify

    wrong = whole = 0
    for found in verify(directory):
        if isinstance(found, Problem):
            wrong += 1
            print(found)
        else:
            whole += 1
            print(f"{found}: whole")
    print(f"{whole} whole, {wrong} wrong")
    if wrong:
        print("Wrong files are never used: weights are compared before they are mapped. Delete them, and run `gc`.")
    return int(wrong > 0)


def _collect(directory: str, *, dry_run: bool) -> int:
    from ..offload.stores.disk.maintenance import collect_garbage

    total = 0
    for path, size in collect_garbage(directory, remove=not dry_run):
        total += size
        print(f"{'would remove' if dry_run else 'removed'} {path} ({format_bytes(size)})")
    print(f"{'would free' if dry_run else 'freed'} {format_bytes(total)}")
    return 0
