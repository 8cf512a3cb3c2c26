"""The house: the order of its rooms, their faces, and which library is used where."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache

import pytest

from pair_tools import ROOT

PACKAGE = ROOT / "dpo_pipeline"

ROOMS = [  # a room imports from the ground and from rooms before it
    *(
        "options",
        "losses",
        "storage",
        "engine",
        "sources",
        "contract",
        "layouts",
        "sums",
        "statistics",
        "rendering",
        "unpaired",
    ),
    *(
        "evaluation",
        "scoring",
        "ranking",
        "selection",
        "jobs",
        "comparison",
        "policies",
        "models",
        "report",
        "published",
    ),
    "cli",
]
DEFERRED = {
    ("comparison", "policies"),  # one call is of two policies or of several
    ("", "rendering"),  # what people read asks to be written
    ("evaluation", "report"),  # a result asks the report to draw it
}
NO_POLARS = {"errors", "columns", "roles", "defaults", "faces", "invalid_report", "__main__"}

ONLY_IN = {
    "pandera": {"contract"},
    "numpy": {"sums", "statistics", "evaluation", "comparison", "policies"},
    "pyarrow": {"storage", "sources", "layouts", "scoring"},
    "altair": {"report"},
    "jinja2": {"report"},
    "vl_convert": {"report"},
    "ray": {"engine"},
    "torch": {"sources", "models"},
    "transformers": {"models"},
    "peft": {"models"},
    "click": {"cli"},
}
MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FACE, MOST_LINES_OF_TESTS = 12, 500, 10, 600


def room_of(path):
    """Return the room that a file is in; the ground is ''."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@cache
def imports(path, *, deferred=True):
    """Return what a file imports, as (module, names), relative imports made absolute."""
    return list(imports_in(path, deferred=deferred))


def imports_in(path, *, deferred):
    package = path.relative_to(PACKAGE.parent).parent.parts
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not deferred:
            continue
        if not deferred and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module, tuple(alias.name for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value, ()
        todo += ast.iter_child_nodes(node)


def uses(path):
    """Yield the rooms that a file imports from, and what of them: '' for the face."""
    for module, names in imports(path):
        first, *rest = module.split(".")
        if first != "dpo_pipeline":
            continue
        for tail in [rest] if rest else [[name] for name in names]:
            if tail[0] in ROOMS:
                yield tail[0], ".".join(tail[1:])


FILES = sorted(PACKAGE.rglob("*.py"))
INSIDE = [path for path in FILES if path.name != "__init__.py"]
FACES = {room: PACKAGE / room / "__init__.py" for room in ROOMS}


def name_of(path):
    return str(path.relative_to(PACKAGE).with_suffix(""))


def test_every_folder_is_a_room():
    assert {room_of(path) for path in FILES} == {"", *ROOMS}
    guide = (PACKAGE.parent / "examples" / "how_it_works.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", guide, re.MULTILINE) == ROOMS


def test_a_room_imports_from_rooms_before_it_and_through_their_faces():
    wrong = []
    for path in INSIDE:
        own = room_of(path)
        allowed = ROOMS[: ROOMS.index(own)] if own else []
        is_main = path == PACKAGE / "__main__.py"
        for room, file in uses(path):
            if room == own:
                if not file and room in dict(imports(path)):
                    wrong.append(f"{name_of(path)} imports its own face")
            elif file:
                wrong.append(f"{name_of(path)} goes past the face of {room}: {file}")
            elif room not in allowed and (own, room) not in DEFERRED and not is_main:
                wrong.append(f"{name_of(path)} imports {room}")
    assert wrong == []


@pytest.mark.parametrize(("above", "below"), sorted(DEFERRED))
def test_a_deferred_edge_is_inside_functions(above, below):
    users = [path for path in INSIDE if (below, "") in set(uses(path)) and room_of(path) == above]
    assert users
    for path in users:
        modules = {module for module, _ in imports(path, deferred=False)}
        assert f"dpo_pipeline.{below}" not in modules


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_no_file_has_the_name_of_what_its_face_exports(room):
    face = importlib.import_module(f"dpo_pipeline.{room}".rstrip("."))
    folder = PACKAGE / room
    there = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert not there & set(face.__all__)


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_what_a_face_names_is_there(room):
    face = importlib.import_module(f"dpo_pipeline.{room}".rstrip("."))
    assert face.__all__
    for name in face.__all__:
        assert getattr(face, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_says_what_its_room_is_for(room):
    text = ast.get_docstring(ast.parse(FACES[room].read_text()))
    assert 1 <= len(text.splitlines()) <= MOST_LINES_OF_A_FACE


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library):
    users = {
        room_of(path)
        for path in FILES
        if any(module.split(".")[0] == library for module, _ in imports(path))
    }
    assert users == ONLY_IN[library]


def test_words_and_the_command_line_import_no_polars():
    free = [PACKAGE / f"{name}.py" for name in NO_POLARS]
    free += [*FACES.values(), PACKAGE / "__init__.py", *(PACKAGE / "cli").glob("*.py")]
    free.remove(PACKAGE / "cli" / "loss_list.py")
    for path in free:
        heavy = {"polars", "pandera", "pyarrow", "numpy"}
        found = {module.split(".")[0] for module, _ in imports(path, deferred=False)}
        assert not found & heavy, name_of(path)


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_rooms_stay_small(room):
    files = list((PACKAGE / room).glob("*.py"))
    assert len(files) <= MOST_FILES, [path.name for path in files]
    for path in files:
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_tests_mirror_the_rooms_and_stay_small():
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert {path.parent.name for path in tests} == {"tests", *ROOMS}
    for path in tests:
        assert len(path.read_text().splitlines()) <= MOST_LINES_OF_TESTS, path
