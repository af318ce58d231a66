"""docs/models.md: its curl lines, run as they stand, and the options it names."""

import re
import shlex
import subprocess

from conftest import EXAMPLES, NARU, ROOT

TEXT = (ROOT / "docs" / "models.md").read_text()


def test_the_documents_lines(server):
    s = server("--model-control-mode", "explicit", models=[EXAMPLES / "models"])
    lines = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    assert len(lines) == 11
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000", s.url))
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *words[1:]], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_options_and_their_defaults():
    help_text = subprocess.run([NARU, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    for option in set(re.findall(r"`--([a-z-]+)", TEXT)):
        assert f"--{option.removeprefix('no-')}" in help_text, option
    config = subprocess.run([NARU, "serve", "--print-config"], capture_output=True, text=True, check=True).stdout
    shown = dict(re.findall(r"^([a-z0-9-]+): (.*?)  # default$", config, re.M))
    for option, said in re.findall(r"`--([a-z-]+)` \((\d+ s|[\d,]+)\)", TEXT):
        assert shown[option].strip('"') == said.replace(" ", "").replace(",", ""), option
