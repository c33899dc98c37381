"""The course as a site to read: notebooks with their saved outputs, glossary, results and teaching.

Sphinx builds it, with the settings in `docs/site/conf.py`. A browser can read and search the site
without a network and without a server.

Example
-------
>>> build_site("site")                                   # site/index.html
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from cytomad_lib.course import relative_to_here
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.repository import ROOT

PAGES = ("docs/*.md", "docs/*.py", "notebooks/*.md", "notebooks/pictures/*", "Dataset/README.md")
PAGES += ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")
PACKAGES = ("sphinx", "myst_nb", "furo", "latex2mathml")  # of the extra `site`
TRY = "try/index.html"


def build_site(out, add=None, root=ROOT):
    """Build the site.

    Parameters
    ----------
    out : path
        Folder of the site; pages in it are replaced.
    add : path or None
        Folder with further files, which are copied to the top of the site. If it has a page
        `try/index.html`, the first page links to it.
    root : path
        Top folder of the kit.

    Returns
    -------
    Path
        The first page.

    Raises
    ------
    CytomadError
        If a package is missing, `add` is no folder, or a page has a link that leads nowhere.
    """
    out, root = Path(out), Path(root)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CytomadError(
            f"The site cannot be built, because these packages are missing: {', '.join(missing)}. "
            "Expected those of the extra 'site'; install them with: pip install -e '.[site]'"
        )
    if add is not None and not Path(add).is_dir():
        raise CytomadError(f"{add} is no folder. Expected one with files for the site.")
    with tempfile.TemporaryDirectory() as folder:
        source, doctrees = Path(folder) / "pages", Path(folder) / "doctrees"
        _gather(root, source, add)
        _run_sphinx(source, doctrees, out)
    if add is not None:
        shutil.copytree(add, out, dirs_exist_ok=True)
    return out / "index.html"


def _gather(root, source, add):
    """Copy what becomes a page into one folder, in the kit's own order, so that all links hold."""
    if not (root / "docs" / "site" / "conf.py").is_file():
        raise CytomadError(
            f"{relative_to_here(root)} has no docs/site/conf.py. Expected a complete copy of the "
            "kit; run the command in one."
        )
    for path in (path for pattern in PAGES for path in sorted(root.glob(pattern))):
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for path in sorted(root.glob("notebooks/[0-9]*.ipynb")):
        _copy_notebook(path, source / "notebooks" / path.name)
    (source / "_static").mkdir(parents=True)
    shutil.copyfile(root / "docs" / "site" / "site.css", source / "_static" / "site.css")
    shutil.copyfile(root / "docs" / "site" / "conf.py", source / "conf.py")
    first, contents = root / "README.md", root / "docs" / "site" / "contents.md"
    pages = [path.read_text(encoding="utf-8") for path in (first, contents)]
    if add is not None and (Path(add) / TRY).is_file():
        pages.insert(1, f'\n<p><a href="{TRY}">Try it in the browser</a></p>\n')
    (source / "index.md").write_text("".join(pages), encoding="utf-8")


def _copy_notebook(path, target):
    """Copy a notebook, with the words for folded cells and for figures where MyST-NB reads them."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # the state of the explorers, large
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        options = cell.metadata.setdefault("mystnb", {})
        tags = cell.metadata.get("tags", [])
        if cell is code[0] or "solution" in tags:
            cell.metadata["tags"] = [*tags, "hide-cell"]
            options["code_prompt_show"] = "Solution" if "solution" in tags else "For Google Colab"
        for output in cell.outputs:
            if "image/png" in output.get("data", ()):
                options["image"] = {"alt": output.metadata["image/png"]["alt"]}
    nbformat.write(notebook, target)


def _run_sphinx(source, doctrees, out):
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", doctrees, source, out], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        told = done.stderr.replace(f"{source}/", "").strip()
        raise CytomadError(
            f"The site has faults:\n{told}\nExpected pages whose links all lead somewhere; mend "
            "these pages, and build the site again."
        )
