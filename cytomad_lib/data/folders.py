"""What is in a dataset's folders, beside what its layout says: for loading and for checking."""

from itertools import pairwise
from statistics import mode

from cytomad_lib.data.description import DESCRIPTION, folded
from cytomad_lib.data.errors import DatasetError, ImageFileError
from cytomad_lib.data.layouts import SPLITS, find_path
from cytomad_lib.data.stackfiles import inspect_stack, matching

AXES = {"N": "cells", "Y": "height", "X": "width"}


def compare_folders(layout, root):
    """Compare the folders on the disk with those of the layout.

    Returns three lists. The problems as (path, text): folders that hold a split as the folder of a
    group does, whose cells would be left out in silence, and names that differ in capitals only.
    The other folders that the layout does not have: figures, results, what a system leaves. And
    the folders of groups.
    """
    splits = {folded(name): name for name in layout.splits.values()}
    allowed = {}  # folder -> {name: as written} of the folders that may be in it
    for folder in layout.group_folders:
        parts = folder.split("/")
        for depth, name in enumerate(parts):
            allowed.setdefault(folded("/".join(parts[:depth])), {})[folded(name)] = name
        allowed[folded(folder)] = splits
    problems, others, waiting = [], [], [(root, "", layout.group_folders[0].count("/") + 1)]
    for parent, inside, depth in waiting:
        names, seen = allowed[inside], set()
        written = set(names.values())
        folders = (path for path in parent.iterdir() if path.is_dir())
        # Of names that differ in capitals only, the one as written comes first.
        for found in sorted(folders, key=lambda path: (path.name not in written, path.name)):
            name = folded(found.name)
            below = f"{inside}/{name}".lstrip("/")
            if name in names and name not in seen:
                seen.add(name)
                if below in allowed:
                    waiting.append((found, below, depth - 1))
            elif name in names or _has_split(found, depth, splits):
                remedy = f", or add it to {DESCRIPTION}" if layout.described else ""
                text = (
                    f"{found} is not a folder of the {layout.name} dataset, but looks like one. "
                    f"Expected beside it {listed(names.values())}; rename or move it{remedy}."
                )
                problems.append((found, text))
            elif not found.name.startswith((".", "__")):  # left by Jupyter, git or macOS
                others.append(found)
    return problems, others, [folder for folder, _, depth in waiting if depth == 0]


def _has_split(folder, depth, splits):
    """Say whether a folder holds what the folder of a group does, `depth` folders below."""
    if folder.name.startswith((".", "__", "@", "#", "$")):  # snapshots and bins of a system
        return False
    return depth > 0 and any(
        folded(path.name) in splits and path.is_dir() for path in folder.glob("/".join("*" * depth))
    )


def listed(things, most=10, separator=", "):
    """Return the first few of a list as text."""
    things = [str(thing) for thing in things]
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return separator.join(things[:most]) + more


def missing_names(layout, root):
    """Names that a description lists, and of which no folder is there; a sentence per list."""
    if not layout.described:
        return []  # a part of a published dataset will do
    texts = []
    for place, key in enumerate(("batches", "classes", "doses")):
        there = {(group.batch, group.class_name, group.dose)[place] for group in layout.groups}
        missing = [name for name in getattr(layout, key) if name not in there]
        if missing:
            own = next(names for names in layout.combinations if names[place] == missing[0])
            texts.append(
                f"{root / DESCRIPTION}: {key} has {listed(map(repr, missing))}, of which there is "
                f"no folder with cells. Expected one such as "
                f"{root / layout.folder(*own)} with its splits; add it, or take the name "
                "out of the list."
            )
    return texts


def kinds_of(layout, with_truth=False):
    """Return the kinds of file that belong together, what goes in first."""
    if with_truth and "QPI_TRUE" not in layout.contrasts:
        raise DatasetError(
            f"The {layout.name} dataset has no truth. Expected a table [truth] in its "
            f"{DESCRIPTION}; add it, or do not ask for the truth."
        )
    return (*layout.inputs, "QPI", *(["QPI_TRUE"] if with_truth else []))


def splits_present(layout, root, group):
    """Return the splits of which this group has a file, other than of the truth."""
    return [
        split
        for split in SPLITS
        if any(matching(find_path(root, group.file(split, kind))) for kind in kinds_of(layout))
    ]


def inspect_files(layout, root, group, split, with_truth, with_target):
    """Check that the files of one group and split pair up, cell by cell.

    Returns their infos by kind, and the errors found as (path, error): a loader raises the first,
    a check of the dataset lists them all. Without `with_target` it may be missing.
    """
    infos, errors = {}, []
    for kind in kinds_of(layout, with_truth):
        path, shown = find_path(root, group.file(split, kind)), layout.contrasts[kind]
        if matching(path):
            try:
                variable = group.variable(split, kind)
                infos[kind] = inspect_stack(path, variable, shown.axes, shown.tile)
            except ImageFileError as error:
                errors.append((path, error))
        elif kind != "QPI" or with_target:
            errors.append((path, DatasetError(_missing_file_text(path, kind))))
    wrong = [_pair_text(first, other) for first, other in pairwise(infos.values())]
    wrong += [(info, _square_text(info)) for info in infos.values()]
    errors += [(info.path, DatasetError(text)) for info, text in wrong if text]
    return infos, errors


def _missing_file_text(path, kind):
    there = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
    remedy = {
        "QPI": ": without it, these cells can only be predicted",
        "QPI_TRUE": ", or do not ask for the truth",
    }.get(kind, ", or remove the others")
    return (
        f"{path} is missing; beside it there is {listed(there) or 'nothing'}. Expected one file of "
        f"each kind for the same cells; add it{remedy}."
    )


def _pair_text(first, other):
    """Return the first of two files, and what is wrong where they hold different cells."""
    if first.shape != other.shape:
        return first, (
            f"{first.path} has {_shape_text(first)}, but {other.path.name} beside it has "
            f"{_shape_text(other)}. Expected the same cells in both; save both files again from "
            "the same cells."
        )
    if not first.names or not other.names or first.names == other.names:
        return first, None
    pairs = zip(first.names, other.names, strict=True)
    number, pair = next((n, p) for n, p in enumerate(pairs, 1) if p[0] != p[1])
    return first, (
        f"{first.path} and {other.path.name} beside it differ in the names of their cells, first "
        f"in cell {number}: {pair[0]!r} and {pair[1]!r}. Expected the same cells in both; add what "
        "is missing, or remove its partner."
    )


def _shape_text(info):
    height, width, cells = info.shape
    return f"{cells} cells of {height} x {width} pixels"


def _square_text(info):
    """Say what to do about images that are not square: most often, the axes are turned."""
    first, second, third = info.shape
    if first == second:
        return None
    found = f"{info.path} has {_shape_text(info)}."
    if "N" not in info.axes or info.tile or third not in (first, second):
        return f"{found} Expected square images; crop them to squares."
    lengths = dict(zip("YXN", info.shape, strict=True))
    numbers = " x ".join(str(lengths[axis]) for axis in info.axes)
    order = " x ".join(AXES[axis] for axis in info.axes)
    return (
        f"{found} Expected {order}, images being square; {numbers} looks "
        f"like {turned_text(info, 0 if third == second else 1)}."
    )


def turned_text(info, cells_axis):
    """Name the order of axes that was found, and how to turn them.

    `cells_axis` is 0 if the cells are along the height of `info`, 1 if along its width.
    """
    sides = iter("YX")
    axes = "".join("N" if axis == "YX"[cells_axis] else next(sides) for axis in info.axes)
    matlab, name = info.version in ("5", "7.3"), info.variable or "a"
    order = tuple(axes.index(axis) for axis in ("YXN" if matlab else "NYX"))
    numbers = " ".join(str(place + 1) for place in order)
    in_matlab = f"permute({name}, [{numbers}]) in MATLAB or " if matlab else ""
    return (
        f"{' x '.join(AXES[axis] for axis in axes)}. Turn the axes, {name} = {in_matlab}"
        f"numpy.transpose({name}, {order}) in Python, and save the file again, or write "
        f'axes = "{axes}" into its table of {DESCRIPTION}'
    )


def missing_split_text(root, split, group, splits, of_all):
    """Say what is missing: a split of a group, or of all of them."""
    if any(split in own for own in of_all):
        return (
            f"{find_path(root, group.folder)} has no {split} files, only {', '.join(splits)}. "
            "Expected the same splits in every group; add them, or remove the group."
        )
    return (
        f"{root}: No group has a {split} split. Expected Train and Valid for a training, and Test "
        "to judge it; take some cells of each group for it."
    )


def no_files_text(root, layout, split):
    """Return the sentence for a dataset without files of the groups asked for."""
    kind = "" if layout.described else ".mat "
    return (
        f"{root} has no {kind}files of the groups asked. Expected files such as "
        f"{root / layout.groups[0].file(split, 'BF')}; check the folder, or ask for other groups."
    )


def size_errors(infos):
    """Return (path, error) for each file whose images have not the size of most."""
    infos = list(infos)
    sizes = [info.shape[:2] for info in infos]
    usual = infos[sizes.index(mode(sizes))] if infos else None
    return [
        (
            info.path,
            DatasetError(
                f"{info.path} has {_shape_text(info)}, but {usual.path} has {_shape_text(usual)}. "
                "Expected one size in the whole dataset, since all images show the same field of "
                "view; save them all in one size."
            ),
        )
        for info in infos
        if info.shape[:2] != usual.shape[:2]
    ]


def wanted_groups(layout, batches, classes):
    """Return the groups of the layout that the caller asks for."""
    for asked, known, what in (
        (batches, layout.batches, "batch"),
        (classes, layout.classes, layout.class_term),
    ):
        if isinstance(asked, str):
            raise DatasetError(f"{asked!r} is one name. Expected a list of names: [{asked!r}].")
        for name in asked or ():
            if name not in known:
                raise DatasetError(
                    f"{name!r} is no {what} of the {layout.name} dataset. "
                    f"Expected some of {listed(known, most=20)}."
                )
    return [
        group
        for group in layout.groups
        if (batches is None or group.batch in batches)
        and (classes is None or group.class_name in classes)
    ]
