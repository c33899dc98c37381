"""The kit's address on GitHub, and what is made from it.

The address is in one place: `Repository` under `[project.urls]` in `pyproject.toml`. As long as it
is not there, no badge is shown, and the notebooks ask for an uploaded `kit.zip` on Google Colab.
Anybody can register an address that nobody owns, and would then run code in every student's Colab.

Example
-------
>>> find_repository()                                    # None
>>> set_repository("https://github.com/OWNER/NAME")      # notebooks, README, CITATION.cff
"""

import re
import tomllib
from pathlib import Path

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_text

ROOT = Path(__file__).parents[1]
ADDRESS = r"https://github\.com/[\w-]+/[\w.-]+"
BADGES = re.compile(r"\[Open in Binder\]\([^)]+\) · \[Open in Colab\]\([^)]+\)\n\n")
BADGES_IN_TABLE = re.compile(r" \(\[Binder\]\([^)]+\), \[Colab\]\([^)]+\)\)")
NOTEBOOK_IN_TABLE = re.compile(r"(?<=^\| )\[[^]]+\]\((notebooks/[^)]+\.ipynb)\)", re.M)


def find_repository(root=ROOT):
    """Return the kit's address on GitHub.

    Parameters
    ----------
    root : path
        Top folder of the kit.

    Returns
    -------
    str or None
        Such as `"https://github.com/OWNER/NAME"`; None if no address is set.
    """
    return _project(root).get("urls", {}).get("Repository")


def find_release(root=ROOT):
    """Return the tag of the kit's version, such as `"v0.1.0"`, which Colab fetches."""
    return f"v{_project(root).get('version', '')}"


def _project(root):
    try:
        return tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        return {}  # installed as a package, without the notebooks


def first_cell(repository=None, release=None):
    """Return the first code cell of every notebook, which installs the kit on Google Colab.

    Parameters
    ----------
    repository : str or None
        Such as `"https://github.com/OWNER/NAME"`. None: the student uploads `kit.zip`.
    release : str or None
        The tag that is fetched from the repository; by default that of the kit's version.

    Returns
    -------
    str
        Running the cell twice is harmless, also after a restart; outside Colab it does nothing.
    """
    source = "a release of the kit" if repository else "the kit from kit.zip, which you upload"
    tag = release or find_release()
    # After a restart of the kernel, the folder kit/ is still there, but not the working folder.
    fetch = f"!test -d kit || git clone -q --depth 1 --branch {tag} {repository} kit"
    upload = """from google.colab import files

    os.path.isfile("kit.zip") or files.upload()  # choose kit.zip
    !unzip -qn kit.zip"""
    return f"""\
# On Google Colab: install {source}. Elsewhere: nothing.
import os
import sys

if "google.colab" in sys.modules and not os.path.isdir("../cytomad_lib"):
    {fetch if repository else upload}
    %cd kit/notebooks
    %pip install -q ..
    sys.path.insert(0, "..")"""


def badges(notebook, repository=None):
    """Return the addresses that open a notebook in Binder and in Colab.

    Parameters
    ----------
    notebook : str
        Path in the repository, such as `"notebooks/00_start_here.ipynb"`.
    repository : str or None
        As in `first_cell`.

    Returns
    -------
    dict of str to str
        Empty without a repository.
    """
    if repository is None:
        return {}
    name = repository.removeprefix("https://github.com/")
    return {
        "Binder": f"https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/{notebook}",
        "Colab": f"https://colab.research.google.com/github/{name}/blob/main/{notebook}",
    }


def set_repository(address, root=ROOT):
    """Write the kit's address everywhere: `pyproject.toml`, notebooks, `README.md`, `CITATION.cff`.

    Parameters
    ----------
    address : str or None
        Such as `"https://github.com/OWNER/NAME"`. None removes the address.
    root : path
        Top folder of the kit.

    Returns
    -------
    list of Path
        The files that were changed; none if they have this address already.

    Raises
    ------
    CytomadError
        If the address is not that of a repository on GitHub, or the kit is not complete.
    """
    if address is not None:
        address = address.strip().removesuffix("/").removesuffix(".git")
        if not re.fullmatch(ADDRESS, address):
            raise CytomadError(
                f"The repository's address is {address!r}. Expected one on GitHub, such as "
                "https://github.com/OWNER/NAME, because Binder and Colab open it from there; "
                "none removes the address."
            )
    root = Path(root)
    changes = {"pyproject.toml": _in_project, "CITATION.cff": _in_citation, "README.md": _in_readme}
    notebooks = sorted(path.name for path in root.glob("notebooks/[0-9]*.ipynb"))
    missing = [name for name in changes if not (root / name).is_file()]
    if missing or not notebooks:
        raise CytomadError(
            f"The kit has {len(notebooks)} notebooks, and these files are missing: "
            f"{', '.join(missing) or 'none'}. Expected a complete copy of the kit; run the command "
            "in one."
        )
    changes |= {f"notebooks/{name}": _in_notebook for name in notebooks}
    changed = [_rewrite(root, name, change, address) for name, change in changes.items()]
    return [path for path in changed if path]


def _rewrite(root, name, change, address):
    """Change a file, and return its path; None if it stays as it is."""
    before = (root / name).read_text(encoding="utf-8")
    after = change(before, name, address)
    if after == before:
        return None
    write_text(root / name, after)
    return root / name


def _in_project(text, name, address):
    heading, before = "[project.urls]\n", "[project.scripts]\n"
    text = re.sub(r'^Repository = "[^"]*"\n', "", text, flags=re.M)
    text = text.replace(f"{heading}\n", "")  # a section without entries
    if not address:
        return text
    if heading not in text:
        text = text.replace(before, f"{heading}\n{before}", 1)
    return text.replace(heading, f'{heading}Repository = "{address}"\n', 1)


def _in_citation(text, name, address):
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.M)
    line = f'repository-code: "{address}"\n' if address else ""
    return re.sub(r"^(license: .*\n)", lambda found: found[1] + line, text, count=1, flags=re.M)


def _in_readme(text, name, address):
    def with_badges(found):
        links = ", ".join(f"[{host}]({url})" for host, url in badges(found[1], address).items())
        return found[0] + (f" ({links})" if links else "")

    return NOTEBOOK_IN_TABLE.sub(with_badges, BADGES_IN_TABLE.sub("", text))


def _in_notebook(text, name, address):
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    title, first = notebook.cells[0], next(c for c in notebook.cells if c.cell_type == "code")
    # Words, because the pictures of badges would come from the network each time a page is read.
    links = [f"[Open in {host}]({url})" for host, url in badges(name, address).items()]
    heading, rest = without_badges(title.source).split("\n\n", 1)
    title.source = "\n\n".join([heading, *([" · ".join(links)] if links else []), rest])
    first.source = first_cell(address)
    return nbformat.writes(notebook) + "\n"


def without_badges(source):
    """Return a notebook's title cell without its links to Binder and Colab."""
    return BADGES.sub("", source)
