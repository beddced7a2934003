"""The house rules that a machine can check: what an import does, sizes, names, what is banned."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unspool"
EXAMPLES = ROOT / "examples"
PYTHON_FILES = sorted(path for folder in (SOURCE, EXAMPLES) for path in folder.rglob("*.py"))
OTHER_FILES = sorted(path for name in ("tests", "bench") for path in (ROOT / name).rglob("*.py"))
CPP_FILES = sorted(path for end in ("*.cpp", "*.hpp") for path in SOURCE.rglob(end))

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
VAGUE_NAMES = {"utils", "util", "common", "helpers", "core", "manager", "base", "misc"}
# Where somebody's machine kept something; system interfaces (proc, sys, dev) are fine.
PERSONAL_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|work|tmp|Users|opt|mnt|srv)/\w")
RUNS_STORED_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save"}
BANNED_FLAGS = {("trust_remote_code", True), ("allow_pickle", True), ("shell", True)}

# Runs in a child: whatever `import unspool` opens for writing, starts, prints or drags in.
IMPORT_PROBE = """
import json, sys, threading, time
written = []
def watch(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        written.append(str(args[0]))
    if event in ("os.mkdir", "socket.connect", "subprocess.Popen"):
        written.append(event)
sys.addaudithook(watch)
before = time.perf_counter()
import unspool
seconds = time.perf_counter() - before
heavy = sorted({"torch", "transformers", "matplotlib", "typer", "rich"} & set(sys.modules))
print(json.dumps([seconds, heavy, written, threading.active_count()]))
"""


@pytest.fixture(scope="module")
def probe() -> tuple[float, list[str], list[str], int]:
    child = [sys.executable, "-B", "-W", "error", "-c", IMPORT_PROBE]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return tuple(json.loads(done.stdout))


def test_import_is_quick(probe):
    # Measured 0.001 s bare and 0.1 s with numpy; torch alone takes over 1 s.
    assert probe[0] < 0.8


def test_import_loads_no_framework(probe):
    assert probe[1] == []


def test_import_writes_no_file_and_starts_nothing(probe):
    assert probe[2] == []
    assert probe[3] == 1


@pytest.mark.parametrize("path", PYTHON_FILES + CPP_FILES + OTHER_FILES, ids=lambda path: path.name)
def test_a_file_is_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.name)
def test_a_function_is_short_enough_to_see(path):
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_name_says_something():
    names = {path.stem for path in PYTHON_FILES + CPP_FILES} | {p.parent.name for p in PYTHON_FILES}
    assert names & VAGUE_NAMES == set()


def test_every_room_is_a_package():
    # import-linter does not look into a folder without __init__.py, so the layers would not hold.
    rooms = {path.parent for path in SOURCE.rglob("*.py")}
    assert [room.name for room in rooms if not (room / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.name)
def test_no_file_can_bring_code_with_it(path):
    assert list(_ways_to_run_stored_code(_parsed(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "exec('1')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_the_scan_sees_what_it_forbids(source):
    assert list(_ways_to_run_stored_code(ast.parse(source))) != []


def test_the_scan_leaves_model_eval_alone():
    tree = ast.parse("model.eval()\nsafetensors.torch.load(data)")
    assert list(_ways_to_run_stored_code(tree)) == []


def test_no_path_of_one_machine_is_committed():
    found = [
        f"{path}:{number}"
        for path in _committed_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PERSONAL_PATH.search(line)
    ]
    assert found == []


def _ways_to_run_stored_code(tree: ast.AST):
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.split(".")[0] in RUNS_STORED_CODE)
            case ast.ImportFrom(module=str(module), names=names):
                qualified = {module.split(".")[0], *(f"{module}.{n.name}" for n in names)}
                yield from qualified & (RUNS_STORED_CODE | BANNED_CALLS)
            case ast.Call(func=function, keywords=keywords):
                yield from {ast.unparse(function)} & BANNED_CALLS
                for flag in keywords:
                    if isinstance(flag.value, ast.Constant):
                        yield from {(flag.arg, flag.value.value)} & BANNED_FLAGS


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _committed_texts() -> list[Path]:
    """Files that git keeps or would keep, without the bundled texts (not ours) and binaries."""
    if not (ROOT / ".git").exists():
        pytest.skip("a source tree without git: no telling which files are committed")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    ours = [p for p in paths if p.is_file() and SOURCE / "data" not in p.parents]
    return [path for path in ours if b"\0" not in path.read_bytes()]
