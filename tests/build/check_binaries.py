#!/usr/bin/env python3
"""check_binaries.py BUILD-FOLDER: does the hardening asked for in cmake/NaruFlags.cmake show in the files?

Reads the programs of the build folder and the plug-ins in backends/ with readelf and fails when one of
them is not position independent, has writable relocations, an executable stack, no stack protector, no
fortified call at all, a segment that is both writable and executable, or a run path that leaves its own
folder. A plug-in must export exactly one symbol. CET marks (x86-64) are looked for in every object that
we compile: whether the linked file bears them too is decided by the distribution's start files, which
Debian 12 builds without.
"""
import platform
import re
import subprocess
import sys
from pathlib import Path

ENTRIES = {"naru-agent-": "naru_agent_entry", "naru-batching-": "naru_batching_entry", "naru-": "naru_backend_entry"}


def readelf(option, path):
    return subprocess.run(["readelf", "-W", option, str(path)], capture_output=True, text=True,
                          check=True).stdout


def exported(symbols):
    rows = (line.split() for line in symbols.splitlines())
    return [row[7].split("@")[0] for row in rows
            if len(row) >= 8 and row[4] in ("GLOBAL", "WEAK") and row[6] != "UND"
            and row[3] in ("FUNC", "OBJECT")]


def check(path, plugin):
    header, program, dynamic = readelf("-h", path), readelf("-l", path), readelf("-d", path)
    symbols = readelf("--dyn-syms", path)
    stack = re.search(r"GNU_STACK.*", program)
    run_path = re.search(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    writable_code = [line for line in program.splitlines()
                     if re.match(r"\s+LOAD\b", line) and re.search(r"\sRWE\s", line)]
    tests = {
        "position independent": re.search(r"Type:\s+DYN", header),
        "relocations read-only (RELRO)": "GNU_RELRO" in program,
        "symbols bound at start (BIND_NOW)": re.search(r"BIND_NOW|FLAGS_1.*\bNOW\b", dynamic),
        "stack not executable": stack and "RWE" not in stack.group(),
        "no segment writable and executable": not writable_code,
        "run path stays beside the file": not run_path or run_path.group(1).startswith("$ORIGIN"),
        "stack protector": "__stack_chk_fail" in symbols,
        "fortified calls": re.search(r"\b__\w+_chk\b", symbols.replace("__stack_chk_fail", "")),
    }
    if plugin:
        names = exported(symbols)
        entry = next(symbol for prefix, symbol in ENTRIES.items() if path.name.startswith(prefix))
        tests[f"exports {entry} and nothing else (has: {', '.join(names[:5])})"] = names == [entry]
        # A small plug-in may call nothing that has a fortified form.
        del tests["fortified calls"]
    else:
        tests["a program that is position independent (PIE)"] = re.search(r"FLAGS_1.*\bPIE\b", dynamic)
    return tests


def objects_without_cet(build):
    objects = sorted(str(path) for path in build.glob("**/*.o"))
    text = subprocess.run(["readelf", "-W", "-n", *objects], capture_output=True, text=True, check=True).stdout
    blocks = re.split(r"^File: ", text, flags=re.M)[1:] if len(objects) > 1 else [f"{objects[0]}\n{text}"]
    marked = {block.split("\n", 1)[0] for block in blocks if re.search(r"x86 feature:.*IBT.*SHSTK", block)}
    return [path for path in objects if path not in marked]


def main():
    build = Path(sys.argv[1])
    programs = [path for path in (build / "naru", build / "naru-backend-check", build / "examples" / "naru-seal") if path.exists()]
    plugins = sorted([*(build / "backends").glob("*.so"), *(build / "examples").glob("*.so")])
    passed = failed = 0
    for path in programs + plugins:
        for name, good in check(path, path in plugins).items():
            if good:
                passed += 1
            else:
                failed += 1
                print(f"FAILED {path.name}: {name}")
    if platform.machine() == "x86_64":
        bare = objects_without_cet(build)
        passed, failed = (passed + 1, failed) if not bare else (passed, failed + 1)
        for path in bare:
            print(f"FAILED {path}: no CET marks (IBT, SHSTK)")
    if not programs:
        print("SKIP: no program built yet")
        return 77
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
