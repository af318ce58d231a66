"""The layer rules hold in this tree, and the check sees what it is there to see."""
import shutil
from pathlib import Path

import check
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("rule", ["includes", "names", "guards", "links"])
def test_tree_keeps(rule):
    assert check.check(ROOT)[rule] == []


def tree(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "tests" / "layers").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests" / "layers" / "layers.txt", tmp_path / "tests" / "layers")
    return check.check(tmp_path)


def header(guard, body=""):
    return f"/* A header. */\n#ifndef {guard}\n#define {guard}\n{body}\n#endif\n"


GOOD = {
    "include/naru/tensor.h": header("NARU_TENSOR_H"),
    "src/base/mem.h": header("NR_BASE_MEM_H", '#include "naru/tensor.h"'),
    "src/io/loop.h": header("NR_IO_LOOP_H", '#include "base/mem.h"'),
    "src/codec/json.c": '#include "base/mem.h"\n#include "proto/service.pb-c.h"\n',
    "cmd/naru/command.h": header("NARU_COMMAND_H"),
    "cmd/serve/serve.c": '#include "naru/command.h"\n#include "io/loop.h"\n',
    "cmd/serve/serve.h": header("NARU_SERVE_SERVE_H"),
    "cmd/naru/main.c": '#include "serve/serve.h"\n',
}


def test_a_tree_in_order_has_no_breach(tmp_path):
    assert not any(tree(tmp_path, GOOD).values())


@pytest.mark.parametrize("name, text, expected", [
    ("src/base/up.c", '#include "io/loop.h"\n', "src/base must not include src/io"),
    ("src/io/side.c", '#include "naru/tensor.h"\n', "src/io must not include include"),
    ("src/http/over.c", '#include "proto/service.pb-c.h"\n', "src/http must not include src/codec"),
    ("cmd/bench/other.c", '#include "serve/serve.h"\n', "cmd/bench must not include cmd/serve"),
    ("backends/identity/inside.c", '#include "base/mem.h"\n', "backends/identity must not include src/base"),
    ("src/io/spaced.c", '  #  include   "http/none.h"\n', "is found nowhere"),
    ("src/cellar/new.c", "int x;\n", "no row of layers.txt covers src/cellar"),
    ("src/io/out.c", '#include "../../../outside.h"\n', "is found nowhere"),
])
def test_breach_of_an_include_is_found(tmp_path, name, text, expected):
    breaches = tree(tmp_path, {**GOOD, name: text})["includes"]
    assert len(breaches) == 1 and expected in breaches[0] and breaches[0].startswith(name)


def test_an_include_in_a_comment_is_none(tmp_path):
    files = {**GOOD, "src/base/said.c": '/*\n#include "io/loop.h"\n*/\n'}
    assert tree(tmp_path, files)["includes"] == []


def test_same_name_twice_is_found(tmp_path):
    assert "mem.h" in tree(tmp_path, {**GOOD, "src/io/mem.h": header("NR_IO_MEM_H")})["names"][0]


@pytest.mark.parametrize("text", [header("NR_MEM_H"), "/* none */\n", "#ifndef NR_BASE_MEM_H\n#define OTHER\n#endif\n"])
def test_wrong_guard_is_found(tmp_path, text):
    assert len(tree(tmp_path, {**GOOD, "src/base/mem.h": text})["guards"]) == 1


def test_link_against_the_table_is_found(tmp_path):
    lists = "naru_folder(base USES)\nnaru_folder(io USES base http LIBS z)\n"
    assert "src/io links src/http" in tree(tmp_path, {**GOOD, "CMakeLists.txt": lists})["links"][0]
