"""``--diff``: findings on the lines that a change adds, by git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.core.errors import LintError
from diffusers_offload_plus.lint.running.changes import changed_lines
from diffusers_offload_plus.lint.running.run import Request, roots

from ..toy import lint, places, settings, write


def git(root: Path, *arguments: str) -> None:
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *names, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose branch ``main`` holds three files; the current branch starts there."""
    git(tmp_path, "init", "-q", "-b", "main")
    write(
        tmp_path,
        {
            "src/a.py": "bad\ngood\nbad\n",
            "src/b.py": "bad\n" * 9,
            "src/sub/c.py": "class Bad:\n    x = 1\n\n\ny = 2\n",
        },
    )
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "checkout", "-q", "-b", "topic")
    return tmp_path


def added(root: Path, reference: str = "main") -> list[str]:
    return places(lint(root, diff=reference).findings)


def test_nothing_added_nothing_reported(repository: Path) -> None:
    assert added(repository) == []


def test_committed_staged_and_unstaged_lines(repository: Path) -> None:
    write(repository, {"src/a.py": "bad\nbad\ngood\nbad\n"})
    git(repository, "commit", "-q", "-a", "-m", "second")
    write(repository, {"src/a.py": "bad\nbad\ngood\nbad\nbad\n"})
    git(repository, "add", "-A")
    write(repository, {"src/a.py": "bad\nbad\ngood\nbad\nbad\nbad\n"})
    assert added(repository) == ["a.py:2 MOD901", "a.py:5 MOD901", "a.py:6 MOD901"]


def test_what_main_did_since_does_not_count(repository: Path) -> None:
    git(repository, "checkout", "-q", "main")
    write(repository, {"src/a.py": "bad\n"})
    git(repository, "commit", "-q", "-a", "-m", "removes lines on main")
    git(repository, "checkout", "-q", "topic")
    write(repository, {"src/b.py": "bad\n" * 10})
    assert added(repository) == ["b.py:10 MOD901"]


def test_new_files_untracked_or_not(repository: Path) -> None:
    write(
        repository,
        {"src/new.py": "bad\n", 'src/odd né "name".py': "bad\n", ".gitignore": "ignored.py\n", "ignored.py": "bad\n"},
    )
    assert added(repository) == ["new.py:1 MOD901", 'odd né "name".py:1 MOD901']
    git(repository, "add", "-A")
    assert added(repository) == ["new.py:1 MOD901", 'odd né "name".py:1 MOD901']


def test_a_renamed_file_is_not_new(repository: Path) -> None:
    git(repository, "mv", "src/b.py", "src/renamed.py")
    write(repository, {"src/renamed.py": "bad\n" * 9 + "wrong()\n"})
    assert added(repository) == ["renamed.py:10 MOD911"]


def test_lines_that_look_like_headers(repository: Path) -> None:
    write(repository, {"src/a.py": "'''\n++ b/src/b.py\n@@ -1 +1,9 @@\n'''\nbad\ngood\nbad\nbad"})
    git(repository, "commit", "-q", "-a", "-m", "no newline at the end")
    assert added(repository) == ["a.py:8 MOD901"]


def test_a_class_is_looked_at_when_it_changes(repository: Path) -> None:
    path = repository / "src/sub/c.py"
    path.write_text("class Bad:\n    x = 1\n\n\ny = 3\n")
    assert added(repository) == []
    path.write_text("class Bad:\n    x = 1\n    z = 1\n\n\ny = 2\n")
    assert added(repository) == ["c.py:1 MOD902"]
    path.write_text("class Bad:\n    x = 2\n\n\ny = 2\n")
    assert added(repository) == ["c.py:1 MOD902"]


def test_a_line_removed_from_a_class_changes_it(repository: Path) -> None:
    write(repository, {"src/sub/c.py": "# marker\nclass Bad:\n    x = 1\n    y = 1\n"})
    git(repository, "commit", "-q", "-a", "-m", "a class")
    git(repository, "branch", "-q", "base")
    write(repository, {"src/sub/c.py": "# marker\nclass Bad:\n    x = 1\n"})
    assert added(repository, "base") == ["c.py:2 MOD902"]
    write(repository, {"src/sub/c.py": "class Bad:\n    x = 1\n    y = 1\n"})
    assert added(repository, "base") == ["c.py:1 MOD902"]


def test_from_a_directory_below_and_through_a_link(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repository, {"src/a.py": "bad\ngood\nbad\nbad\n"})
    monkeypatch.chdir(repository / "src")
    assert added(Path()) == ["a.py:4 MOD901"]
    assert added(Path("a.py")) == ["a.py:4 MOD901"]
    link = repository.parent / f"{repository.name}-link"
    link.symlink_to(repository)
    assert added(link) == ["a.py:4 MOD901"]


def test_only_packages_of_changed_files_are_read(repository: Path) -> None:
    write(repository, {"src/a.py": "bad\nbad\ngood\nbad\n", "pkg/__init__.py": "", "pkg/sub/__init__.py": ""})
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "a package")
    git(repository, "branch", "-q", "base")
    write(repository, {"pkg/sub/new.py": "bad\n", "notes.txt": "bad\n"})
    changes = changed_lines("base", [repository])
    assert changes.below([repository]) == [repository / "notes.txt", repository / "pkg/sub/new.py"]
    assert changes.below([repository / "src"]) == []
    request = Request(paths=changes.below([repository / "pkg"]), settings=settings(), siblings=True)
    assert roots(request) == [repository / "pkg"]
    report = lint(repository, diff="base")
    assert places(report.findings) == ["new.py:1 MOD901"]
    assert list(report.files) == [str(repository / "pkg/sub/new.py")]


def test_what_the_repository_configures_is_not_run(repository: Path) -> None:
    trap = repository / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {repository}/trapped\n")
    trap.chmod(0o755)
    git(repository, "config", "diff.external", str(trap))
    git(repository, "config", "diff.x.textconv", str(trap))
    git(repository, "config", "core.fsmonitor", str(trap))
    git(repository, "config", "diff.mnemonicPrefix", "true")
    git(repository, "config", "color.ui", "always")
    write(repository, {".gitattributes": "*.py diff=x\n", "src/a.py": "bad\ngood\nbad\nbad\n"})
    assert added(repository) == ["a.py:4 MOD901"]
    assert not (repository / "trapped").exists()


@pytest.mark.parametrize("reference", ["nowhere", "--output=x", "HEAD~99", ""])
def test_an_unknown_reference(reference: str, repository: Path) -> None:
    with pytest.raises(LintError, match="has no commit of this name"):
        changed_lines(reference, [repository])


def test_no_common_commit(repository: Path) -> None:
    git(repository, "checkout", "-q", "--orphan", "other")
    git(repository, "commit", "-q", "--allow-empty", "-m", "unrelated")
    with pytest.raises(LintError, match=r"no common ancestor .* fetch-depth: 0"):
        changed_lines("main", [repository])


def test_outside_of_a_repository(tmp_path: Path) -> None:
    with pytest.raises(LintError, match="does not lie in a git repository"):
        changed_lines("main", [tmp_path])


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LintError, match="Install git"):
        changed_lines("main", [repository])
