"""Every option of `naru serve`: in the documents as --help says it, and in a test. Here are those that no other
file is about."""

import json
import re
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import NARU, PICTURES, ROOT, wait_until
from plugin_models import model, repository
from rawhttp import ask

X = [("INPUT0", "FP32", [1])]


def help_text():
    return subprocess.run([NARU, "serve", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout


def options():
    """{option: default as --help prints it, or None}."""
    found, name = {}, None
    for line in help_text().splitlines():
        option = re.match(r"  --([a-z0-9-]+)", line)
        if option:
            name = option[1]
            found[name] = ""
        elif line and line[0] != " ":
            name = None
        if name:
            found[name] += " " + line.strip()
    defaults = {k: re.search(r"\[([^\[\]]*)\]\s*$", v) for k, v in found.items()}
    return {k: v[1] if v else None for k, v in defaults.items()}


# --- documents ----------------------------------------------------------------------------------


def test_the_page_is_what_help_says():
    page = (ROOT / "docs" / "options.md").read_text()
    assert page.split("```text\n")[1].split("```")[0] == help_text(), "write the new --help into docs/options.md"


def test_limits_of_models_and_pictures():
    """docs/limits.md: the tables without a column of tests name options that exist, with their defaults."""
    known, rows = options(), {}
    for line in (ROOT / "docs" / "limits.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        named = re.match(r"`--([a-z0-9-]+)`$", cells[1]) if line.startswith("|") and len(cells) == 4 else None
        if named:
            rows[named[1]] = cells[2]
    assert rows == {name: known[name] for name in rows}
    assert {"model-memory-budget", "model-wait", "gallery-max-bytes", "exit-timeout", "repository-quiet"} <= set(rows)


def test_every_option_is_met_in_a_test():
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "e2e").glob("*.py"))
    unmet = {o for o in options() if not re.search(rf"--(no-)?{o}(?![a-z0-9-])", tests)}
    assert not unmet


# --- options that no other file is about --------------------------------------------------------


def get(one, path):
    return urllib.request.urlopen(one.url + path, timeout=60).read()


@pytest.fixture
def repo(tmp_path):
    return repository(tmp_path / "repo", m=model("identity", X))


def test_ports_that_are_not_wanted(server, repo):
    """--no-allow-http, --no-allow-grpc, --no-allow-metrics: nobody listens there."""
    for off, left in (("http", {"grpc", "metrics"}), ("grpc", {"http", "metrics"}), ("metrics", {"http", "grpc"})):
        one = server(f"--no-allow-{off}", models=[repo])
        assert set(one.ports) == left
        port = one.ports[sorted(left)[0]]
        assert ask(port, "GET", "/v2/health/live").status == 200
    done = subprocess.run([NARU, "serve", str(repo), "--no-allow-http", "--no-allow-grpc", "--no-allow-metrics",
                           "--no-keep-gallery"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78 and done.stderr.count("\n") <= 3


def test_name_of_the_server(server, repo):
    assert json.loads(get(server("--id", "edge-7", models=[repo]), "/v2"))["name"] == "edge-7"
    assert json.loads(get(server(models=[repo]), "/v2"))["name"] == "naru"


def test_log_verbose_is_debug(server, repo):
    assert "level=debug" in server("--log-verbose", 1, models=[repo]).log()
    assert "level=debug" not in server("--log-verbose", 0, models=[repo]).log()


def test_folder_of_plug_ins(server, tmp_path):
    """--backend-directory comes before the plug-ins beside the program."""
    mine = tmp_path / "mine"
    mine.mkdir()
    plugin = ROOT / "build" / "backends" / "naru-identity.so"
    (mine / "naru-identity.so").write_bytes(b"no plug-in")
    repo = repository(tmp_path / "repo", m=model("identity", X))
    one = server("--backend-directory", mine, models=[repo])
    assert any("m version 1: NOT ready: cannot load backend" in line for line in one.banner), one.banner
    (mine / "naru-identity.so").write_bytes(plugin.read_bytes())
    assert any("m version 1: ready" in line for line in server("--backend-directory", mine, models=[repo]).banner)


def test_another_configuration_by_name(server, tmp_path):
    repo = repository(tmp_path / "repo", m=model("identity", X), other=model("identity", X))
    (repo / "m" / "configs").mkdir()
    (repo / "m" / "configs" / "large.pbtxt").write_text(model("identity", X, batch=32))
    one = server("--model-config-name", "large", models=[repo])
    assert json.loads(get(one, "/v2/models/m/config"))["max_batch_size"] == 32
    assert json.loads(get(one, "/v2/models/other/config"))["max_batch_size"] == 0


def test_configurations_must_be_complete(server):
    """--disable-auto-complete-config: what is not said is not read from the model's file."""
    bare = ROOT / "examples" / "models" / "add_sub" / "1" / "model.onnx"
    if not (ROOT / "build" / "backends" / "naru-onnxruntime.so").exists():
        pytest.skip("the onnxruntime plug-in is not built")
    one = server("--disable-auto-complete-config", models=[bare])
    assert any("NOT ready" in line for line in one.banner), one.banner
    assert any(": ready in" in line for line in server(models=[bare]).banner)


@pytest.mark.parametrize("option, kept", [
    (("--gallery-max-entries", 2), 2), (("--gallery-max-bytes", "1MiB"), None), (("--gallery-max-age", "1s"), 0)])
def test_quota_of_the_gallery(server, tmp_path, option, kept):
    pictures = repository(tmp_path / "repo", p=model("identity", [("INPUT0", "UINT8", [3, -1, -1])], naru__output="image",
                                                     naru__output__scale=1))
    one = server(*option, models=[pictures])

    def entries():
        return json.loads(get(one, "/naru/gallery"))["entries"]

    picture = (PICTURES / "rainy.jpg").read_bytes()
    for _ in range(4):
        r = ask(one.http, "POST", "/v2/models/p/predict?keep=1", picture, "Content-Type: image/jpeg")
        assert r.status == 200
    if kept is None:
        sizes = sum(p.stat().st_size for p in (one.folder / "gallery").rglob("*") if p.is_file())
        assert sizes <= (1 << 20) + 65536 and len(entries()) < 4
    else:
        wait_until(lambda: len(entries()) == kept, what=f"{kept} pictures")


def test_other_addresses(server, repo):
    """--address for all, --http-address, --grpc-address and --metrics-address for one each."""
    one = server("--address", "127.0.0.2", "--metrics-address", "127.0.0.3", models=[repo])
    for host, port, other in (("127.0.0.2", one.http, "127.0.0.1"), ("127.0.0.3", one.metrics, "127.0.0.2")):
        with socket.create_connection((host, port), 60):
            pass
        with pytest.raises(OSError):
            socket.create_connection((other, port), 60)


def test_browsers_are_not_looked_at(server, repo):
    one = server("--no-check-browser", models=[repo])
    assert ask(one.http, "GET", "/v2", host="evil.example").status == 200
