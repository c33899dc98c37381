"""docs/formats.md names tests that exist, and the versions that they run with."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_is_there():
    names = set(re.findall(r"`(tests/\w+\.py)`", PAGE))
    assert len(names) > 8
    assert not [name for name in names if not (ROOT / name).exists()]


# scanpy was tried once, with other versions than those pinned, as its row says.
PINNED = "\n".join(line for line in PAGE.splitlines() if "scanpy" not in line)


def test_versions_are_those_of_the_requirements():
    pinned = re.findall(
        r"^([\w.-]+)==([\w.]+)", (ROOT / "tests" / "requirements.txt").read_text(), re.M
    )
    stated = [
        (name, version, found)
        for name, version in pinned
        for found in re.findall(rf"\b{name.replace('-', '[-.]')} (\d+\.\d[\d.]*\d)", PINNED)
    ]
    assert {"anndata", "onnxruntime", "tifffile", "scipy"} <= {name for name, *_ in stated}
    assert [row for row in stated if row[1] != row[2]] == []
