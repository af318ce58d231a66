#!/usr/bin/env python3
"""The direction of the stairs: reads every #include of the tree and fails on a breach.

Four rules; check() returns the breaches of each:
  1. every #include "..." of include/, src/, cmd/, backends/ and examples/ names a header that its folder's row
     in layers.txt allows, and that exists (or is made at build time);
  2. base names of source files are unique: two arena.c (or arena.h) would be confused in logs, in
     stack traces and in conversation. Public headers are left out, they are named naru/NAME;
  3. every header is guarded by a macro named after its path;
  4. every row of src/ agrees with the USES of its naru_folder() line in CMakeLists.txt.

With --root DIR another tree is checked by the same rules. test_layers.py plants breaches and looks
whether each is found.
"""
import fnmatch
import re
import sys
from pathlib import Path

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)
COMMENT = re.compile(r"/\*.*?\*/", re.S)
GUARD = re.compile(r"^[ \t]*#[ \t]*ifndef[ \t]+(\w+)\s*\n[ \t]*#[ \t]*define[ \t]+(\w+)", re.M)


def read_table(path):
    """Returns {folder: set of allowed folders} and [(pattern, folder)] of generated headers."""
    rows, generated = {}, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        left, separator, right = line.partition(":")
        if not separator:
            sys.exit(f"{path}:{number}: no ':' in this row")
        left = left.strip()
        if left.startswith("generated "):
            generated.append((left.split()[1], full(right.strip())))
        else:
            rows[left] = {full(name) for name in right.split()} | {left}
    return rows, generated


def full(name):
    """Rows name the folders of src/ without src/."""
    return name if name == "include" or name.split("/")[0] in ("cmd", "backends") else f"src/{name}"


def room(path):
    """The row that a file of the tree belongs to: include, src/NAME, cmd/NAME or backends/NAME."""
    parts = path.parts
    if parts[0] == "include":
        return "include"
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def allowed_by(rows, folder):
    """The most exact row: cmd/naru before cmd; a plug-in or a command also owns its own folder."""
    for key in (folder, folder.split("/")[0]):
        if key in rows:
            return rows[key] - {"cmd", "backends"} | {folder} | ({"cmd"} if key == "cmd/naru" else set())
    return None


def permits(allowed, target):
    return target in allowed or ("cmd" in allowed and target.startswith("cmd/"))


def resolve(root, source, name, generated):
    """Where an include leads: (row, None) or (None, why not)."""
    for pattern, folder in generated:
        if fnmatch.fnmatch(name, pattern):
            return folder, None
    for base in (source.parent, root / "include", root / "src", root / "cmd"):
        candidate = (base / name).resolve()
        if candidate.is_file():
            try:
                return room(candidate.relative_to(root)), None
            except ValueError:
                return None, f'"{name}" lies outside the tree'
    return None, f'"{name}" is found nowhere (system and third-party headers take <>)'


def check(root):
    """Returns {rule: [breach, ...]}."""
    rows, generated = read_table(root / "tests" / "layers" / "layers.txt")
    breaches, guards, by_name = [], [], {}
    sources = sorted(path for folder in ("include", "src", "cmd", "backends", "examples")
                     for path in (root / folder).glob("**/*") if path.suffix in (".c", ".h", ".cc"))
    for path in sources:
        relative = path.relative_to(root)
        folder = room(relative)
        allowed = allowed_by(rows, folder)
        text = COMMENT.sub(lambda m: "\n" * m.group().count("\n"), path.read_text(errors="replace"))
        if allowed is None:
            breaches.append(f"{relative}: no row of layers.txt covers {folder}")
            continue
        for match in INCLUDE.finditer(text):
            where = f"{relative}:{text.count(chr(10), 0, match.start()) + 1}"
            target, problem = resolve(root, path, match.group(1), generated)
            if problem:
                breaches.append(f"{where}: {problem}")
            elif not permits(allowed, target):
                breaches.append(f'{where}: {folder} must not include {target} ("{match.group(1)}")')
        if relative.parts[0] in ("src", "cmd"):
            by_name.setdefault(relative.name, []).append(str(relative))
        if path.suffix == ".h":
            guards += guard_breach(relative, text)
    names = [f"two files are called {name}: {', '.join(where)}"
             for name, where in sorted(by_name.items()) if len(where) > 1]
    return {"includes": breaches, "names": names, "guards": guards, "links": cmake_breaches(root, rows)}


def guard_breach(relative, text):
    top, *parts = relative.parts
    stem = re.sub(r"[^A-Za-z0-9]+", "_", "_".join(parts)).upper()
    if top in ("include", "cmd"):  # naru/tensor.h, serve/banner.h: NARU_TENSOR_H, NARU_SERVE_BANNER_H
        want = stem if stem.startswith("NARU_") else f"NARU_{stem}"
    else:
        want = f"NR_BACKENDS_{stem}" if top == "backends" else f"NR_{stem}"
    match = GUARD.search(text)
    if not match or match.group(1) != match.group(2):
        return [f"{relative}: no include guard (expected {want})"]
    if match.group(1) != want:
        return [f"{relative}: include guard {match.group(1)}, expected {want}"]
    return []


def cmake_breaches(root, rows):
    breaches = []
    lists = root / "CMakeLists.txt"
    if not lists.is_file():
        return []
    for name, rest in re.findall(r"naru_folder\((\w+)([^)]*)\)", lists.read_text()):
        uses = re.search(r"\bUSES\b((?:\s+(?!LIBS\b)\w+)*)", rest)
        linked = {f"src/{word}" for word in (uses.group(1).split() if uses else ())}
        permitted = rows.get(f"src/{name}")
        if permitted is None:
            breaches.append(f"CMakeLists.txt: src/{name} has no row in layers.txt")
        elif linked - permitted:
            breaches.append(f"CMakeLists.txt: src/{name} links {', '.join(sorted(linked - permitted))}, "
                            "which its row does not allow")
    return breaches


def main():
    root = Path(__file__).resolve().parent.parent.parent
    if sys.argv[1:2] == ["--root"]:
        root = Path(sys.argv[2]).resolve()
    result = check(root)
    for breaches in result.values():
        for breach in breaches:
            print(breach)
    failed = sum(1 for breaches in result.values() if breaches)
    print(f"{len(result) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
