"""What is packed: all that is tracked is in the source archive."""

import fnmatch
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What setuptools packs by itself, and what is of use in a repository alone.
BY_ITSELF = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
NOT_PACKED = {".ci", ".github", ".gitignore"}


def is_packed(path, rules):
    """Whether a file of the repository is in the archive, as MANIFEST.in says."""
    first = path.split("/")[0]
    if path in BY_ITSELF or first == "jaxsp":
        return True
    grafted = first in rules.get("graft", ())
    return grafted or any(fnmatch.fnmatch(path, p) for p in rules.get("include", ()))


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="there is no repository, as where the archive is tested",
)
def test_all_that_is_tracked_is_in_the_source_archive():
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    rules: dict[str, list[str]] = {}
    for word, *patterns in (
        line.split() for line in lines if line[:1] not in ("", "#")
    ):
        rules.setdefault(word, []).extend(patterns)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]
    wanted = [path for path in tracked if path.split("/")[0] not in NOT_PACKED]
    assert "tests/conftest.py" in wanted
    assert [path for path in wanted if not is_packed(path, rules)] == []
