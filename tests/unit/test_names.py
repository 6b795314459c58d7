"""Names of test files, which pytest imports into one space of names."""

from collections import Counter

from conftest import REPOSITORY


def test_no_two_test_files_have_one_name():
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert len(names) > 50
    assert [name for name, number in names.items() if number > 1] == []
