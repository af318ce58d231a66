"""The tools that everyone runs: set-up, lint rules, the adding up of results."""
import importlib.machinery
import importlib.util
import os
import resource
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def load(name):
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def setup(*arguments, **environment):
    return subprocess.run([ROOT / "scripts" / "setup", *arguments], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, check=False, env={**os.environ, **environment})


def test_install_takes_folders_with_blanks():
    make = ["make", "-n", "install", "SETUP=0", "DESTDIR=/a b", "PREFIX=/opt/c d"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "DESTDIR='/a b' cmake --install build --prefix '/opt/c d'" in done.stdout


def test_setup_is_complete_and_verifies():
    done = setup("--check", "--no-packages", "--group", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "setup: complete (build,test)\n"


def test_setup_with_nothing_to_do_is_quick_and_silent():
    def used():
        u = resource.getrusage(resource.RUSAGE_CHILDREN)
        return u.ru_utime + u.ru_stime

    before = used()
    done = setup("--no-packages", "--group", "test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert used() - before < 3


@pytest.mark.parametrize("arguments, expected", [
    (["--group", "kitchen"], "unknown group: kitchen"),
    (["--group"], "--group needs a value"),
    (["--frobnicate"], "unknown option: --frobnicate"),
])
def test_setup_refuses_with_a_reason(arguments, expected):
    done = setup(*arguments)
    assert done.returncode == 1 and expected in done.stderr


def test_setup_lists_packages():
    names = setup("--list").stdout.split()
    assert "gcc" in names and "chromium" not in names
    assert "chromium" in setup("--list", "--group", "test").stdout.split()


def test_every_line_of_the_lists_is_understood():
    for line in (ROOT / "deps" / "debian.txt").read_text().splitlines():
        words = line.split()
        if words and not line.startswith("#"):
            assert words[0] in ("build", "test", "lint", "bench")
            assert all(word.startswith(("ubuntu-22.04=", "ubuntu-24.04=")) for word in words[2:])
    for line in (ROOT / "deps" / "sources.txt").read_text().splitlines():
        words = line.split()
        if words and not line.startswith("#"):
            assert len(words) == {"wheel": 7, "sdist": 5, "module": 6, "newer": 4, "file": 4}[words[0]], line
    for path in (ROOT / "deps").glob("*-requirements.txt"):
        assert "://" not in path.read_text()


@pytest.mark.parametrize("folder, text, expected", [
    ("src", "x = strcpy(a, b);", "strcpy() is banned"),
    ("tests", "sprintf(a, b);", "sprintf() is banned"),
    ("src", "p = malloc (4);", "malloc() is banned"),
    ("backends", "p = malloc(4);", None),
    ("src", "nr_strcpy(a);", None),
    ("src", "/* strcpy(a, b) */", None),
    ("src", 'x = "strcpy(a)";', None),
    ("src", "host->free(p); t.time(0);", None),
    ("src", "/* lint: allow strcpy: shown in a test */\nstrcpy(a, b);", None),
    ("src", "/* lint: allow strcat: another one */\nstrcpy(a, b);", "strcpy() is banned"),
])
def test_banned_calls(folder, text, expected):
    lint = load("lint")
    found = lint.banned_calls(Path(folder) / "base" / "x.c", text, lint.blank(text))
    assert (found == []) if expected is None else (len(found) == 1 and expected in found[0])


def test_function_sizes():
    lint = load("lint")
    text = "static int\nf(int a,\n  int b)\n{\n    if (a) {\n    }\n}\nstruct s {\n    int x;\n};\n"
    assert list(lint.function_sizes(Path("x.c"), text)) == [(4, "f", 4)]


CMOCKA = """[==========] tests: Running 3 test(s).
[ RUN      ] one
[       OK ] one
[ RUN      ] two
[  ERROR   ] --- 1 != 2
[  FAILED  ] two
[ RUN      ] three
[  SKIPPED ] three
[==========] tests: 3 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] three
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] two

 1 FAILED TEST(S)
"""


SOME_TESTS = """
import pathlib, pytest

def tries(name):
    with open(name, "a") as f:
        f.write("x")
    return len(pathlib.Path(name).read_text())

@pytest.mark.timing
def test_at_the_second_try():
    assert tries("second") == 2, "too slow by far"

@pytest.mark.timing
def test_never():
    assert tries("never") < 0

@pytest.mark.timing
def test_with_a_fresh_fixture(tmp_path):
    assert not list(tmp_path.iterdir())
    (tmp_path / "used").touch()
    assert tries("fresh") == 3

def test_no_marker():
    assert tries("unmarked") == 2
"""


def test_tests_about_time_are_tried_again(tmp_path, monkeypatch):
    """The marker of tests/e2e/conftest.py, and that scripts/run-tests tells about it."""
    runner = load("run-tests")
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").symlink_to(ROOT / "tests" / "e2e" / "conftest.py")
    (tests / "test_some.py").write_text(SOME_TESTS)
    (tmp_path / ".deps").symlink_to(ROOT / ".deps")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "LOGS", tmp_path)
    totals = runner.pytest("x", ("tests",), 120, ())
    log = (tmp_path / "x.log").read_text()
    assert (totals.passed, totals.failed) == (2, 2), log
    seen = [(tmp_path / name).read_text() for name in ("second", "never", "fresh", "unmarked")]
    assert seen == ["xx", "xxx", "xxx", "x"]
    assert [line.split(": first failure: ")[0] for line in totals.retried] == [
        "test_some.py::test_at_the_second_try passed at the 2nd try",
        "test_some.py::test_with_a_fresh_fixture passed at the 3rd try"]
    assert "too slow by far" in totals.retried[0]
    assert all(f"timing: {line}" in log for line in totals.retried)


@pytest.mark.parametrize("status, output, expected", [
    ("fail", CMOCKA, (1, 1, 1)),
    ("run", "[       OK ] one\n[  PASSED  ] 1 test(s).\n", (1, 0, 0)),
    ("fail", "[       OK ] one\n[ RUN      ] two\nSegmentation fault\n", (1, 1, 0)),
    ("run", "5 passed, 0 failed, 2 skipped\n", (5, 0, 2)),
    ("fail", "5 passed, 0 failed\nAddressSanitizer: leak\n", (5, 1, 0)),
    ("run", "fine\n", (1, 0, 0)),
    ("fail", "", (0, 1, 0)),
    ("skipped", "SKIP: no such tool here\n", (0, 0, 1)),
])
def test_results_are_added_up(status, output, expected):
    runner = load("run-tests")
    totals = runner.Totals()
    runner.count_program(totals, "x", status, output)
    assert (totals.passed, totals.failed, len(totals.skips)) == expected
    assert len(totals.failures) == (1 if expected[1] else 0)
