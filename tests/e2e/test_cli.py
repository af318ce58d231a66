"""The command line: help, options from four sources, errors that suggest, signals.

Everything here runs the built binary; servers use models that the test writes itself.
"""

import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import NARU, ROOT, wait_until
from rawhttp import H2, SERVICE


def run(*args, env=None, timeout=60):
    merged = dict(os.environ, **(env or {}))
    return subprocess.run([NARU, *args], capture_output=True, text=True, timeout=timeout, env=merged, check=False)


def config_of(*args, env=None):
    """The lines of --print-config as {name: (value, source)}."""
    done = run("serve", *args, "--print-config", env=env)
    assert done.returncode == 0, done.stderr
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^([a-z0-9-]+): (.*)  # (.*)$", done.stdout, re.M)}


def test_help_fits_a_screen():
    done = run("--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert "serve" in done.stdout


def test_without_a_command_help_goes_to_stderr():
    done = run()
    assert done.returncode == 2 and "usage: naru" in done.stderr and done.stdout == ""


def test_unknown_command_suggests():
    done = run("srve")
    assert done.returncode == 2 and "did you mean 'serve'" in done.stderr


def test_serve_help_is_grouped_and_names_defaults():
    text = run("serve", "--help").stdout
    for group in ("Models", "Listening", "Threads and memory", "Scheduling", "Limits", "Logs"):
        assert re.search(rf"^{group}", text, re.M), group
    assert "[8000]" in text and "64MiB" in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_unknown_option_suggests_the_nearest():
    done = run("serve", "--htpp-port", "1")
    assert done.returncode == 2
    assert "unknown option 'htpp-port'; did you mean 'http-port'?" in done.stderr


@pytest.mark.parametrize(
    "args, text",
    [
        (["--http-port", "70000"], "out of range; expected 0 to 65535"),
        (["--http-port", "abc"], "is not a whole number"),
        (["--http-port"], "needs a value"),
        (["--max-body", "lots"], "is not a size like"),
        (["--keep-alive", "soon"], "is not a time like"),
        (["--log-level", "loud"], "is none of debug|info|warn|error|off"),
        (["--access-log=maybe"], "is not true or false"),
        (["-x"], "options begin with two dashes"),
    ],
)
def test_bad_values_are_named(args, text):
    done = run("serve", *args)
    assert done.returncode == 2 and text in done.stderr, done.stderr


def test_sources_in_order(tmp_path):
    file = tmp_path / "naru.yaml"
    file.write_text("http-port: 1001\ngrpc-port: 1002\nmetrics_port: 1003\nallow-host: [a, b]\n")
    env = {"NARU_HTTP_PORT": "2001", "NARU_GRPC_PORT": "2002"}
    got = config_of("--config", str(file), "--http-port", "3001", env=env)
    assert got["http-port"] == ("3001", "command line")
    assert got["grpc-port"] == ("2002", "environment")
    assert got["metrics-port"] == ("1003", "file")
    assert got["allow-host"] == ('["a", "b"]', "file")
    assert got["port"] == ("0", "default")


def test_printed_configuration_can_be_read_again(tmp_path):
    first = run("serve", "--http-port", "1234", "--keep-alive", "250ms", "--print-config").stdout
    file = tmp_path / "again.yaml"
    file.write_text(first)
    again = config_of("--config", str(file))
    assert again["http-port"][0] == "1234" and again["keep-alive"][0] == "250ms"


@pytest.mark.parametrize(
    "text, message",
    [
        ("http-prt: 1\n", "did you mean 'http-port'"),
        ("http-port:\n  nested: 1\n", "options do not nest"),
        ("- a\n- b\n", "line 1"),
        ("http-port: [1, 2\n", "line"),
        ("http-port: &x 1\ngrpc-port: *x\n", "aliases"),
    ],
)
def test_bad_file_has_the_line(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    done = run("serve", "--config", str(file), "--print-config")
    assert done.returncode == 2 and message in done.stderr and "bad.yaml line" in done.stderr


def test_triton_names():
    got = config_of("--model-store=/x", "--http-thread-count=3", "--http-max-input-size=1048576",
                    "--exit-timeout-secs=7", "--strict-readiness=false", "--allow-metrics=0")
    assert got["model-repository"][0] == '["/x"]'
    assert got["io-threads"][0] == "3"
    assert got["max-body"][0] == "1048576"
    assert got["exit-timeout"][0] == "7s"
    assert got["strict-readiness"][0] == "false" and got["allow-metrics"][0] == "false"


def test_negated_flag():
    assert config_of("--no-keep-gallery")["keep-gallery"] == ("false", "command line")


def test_man_page_and_completions():
    man = run("serve", "--print-man").stdout
    assert man.startswith(".TH NARU-serve 1") and "\\-\\-http\\-port" in man
    bash = run("completion", "bash").stdout
    assert "complete -o filenames -F _naru naru" in bash and "--http-port" in bash
    checked = subprocess.run(["bash", "-n"], input=bash, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert run("completion", "zsh").stdout.startswith("#compdef naru")
    assert run("completion", "fish").returncode == 2


def test_no_model_and_bad_paths(tmp_path):
    done = run("serve")
    assert done.returncode == 78 and "give a model file" in done.stderr
    done = run("serve", str(tmp_path / "missing"))
    assert done.returncode == 1 and "missing" in done.stderr


def test_listening_beyond_this_machine_needs_consent(tmp_path):
    done = run("serve", str(tmp_path), "--address", "0.0.0.0")
    assert done.returncode == 78 and "--i-accept-insecure" in done.stderr


def test_port_in_use_is_said(server, tmp_path):
    one = server(models=[tmp_path])
    done = run("serve", str(tmp_path), "--port", str(one.http), "--no-keep-gallery")
    assert done.returncode == 1 and str(one.http) in done.stderr


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_misspelt_variables_are_named(server, tmp_path):
    env = {"NARU_HTPP_PORT": "1", "NARU_ACCESS_LOGS": "1", "NARU_QQQQQQQQ": "1", "NARU_" + "X" * 3000: "1", "NARU_": "",
           "NARU_MODEL_STORE": str(tmp_path), "NARU_ONNXRUNTIME": "", "NARU_BINARY": "x", "NARUX": "1",
           "NARU_LOG_LEVEL": "warn"}
    one = server(models=[], env=env)
    said = [line for line in one.log().splitlines() if "an environment variable has no effect" in line]
    assert all("level=warn" in line for line in said) and len(said) == 5
    text = "\n".join(said)
    assert "NARU_HTPP_PORT is no option; did you mean NARU_HTTP_PORT?" in text
    assert "NARU_ACCESS_LOGS is no option; did you mean NARU_ACCESS_LOG?" in text
    assert "NARU_QQQQQQQQ is no option; naru serve --help lists all" in text


def test_the_page_of_variables_names_the_exceptions():
    listed = re.search(r"not_options\[\] = \{(.*?)\};", (ROOT / "cmd/naru/option.c").read_text(), re.S).group(1)
    page = (ROOT / "docs/environment.md").read_text().split("| --- | --- |")[1].split("Read besides")[0]
    assert set(re.findall(r'"(NARU_\w+)"', listed)) == set(re.findall(r"`(NARU_\w+)`", page))


@pytest.mark.parametrize("given, shared", [
    (["--http-port", "P", "--grpc-port", "P", "--metrics-port", "0"], "http, grpc"),
    (["--http-port", "P", "--grpc-port", "0", "--metrics-port", "P"], "http, metrics"),
    (["--http-port", "0", "--grpc-port", "P", "--metrics-port", "P"], "grpc, metrics"),
    (["--http-port", "P", "--grpc-port", "P", "--metrics-port", "P"], "http, grpc, metrics"),
    (["--http-port", "P", "--grpc-port", "P", "--metrics-port", "0", "--grpc-address", "localhost"], "http, grpc")])
def test_one_port_for_several_purposes_is_one_listener(server, tmp_path, given, shared):
    port = free_port()
    one = server(*(str(port) if g == "P" else g for g in given), ports=False, models=[tmp_path])
    assert one.ports[shared] == port and sum(p == port for p in one.ports.values()) == 1
    listening = one.banner[one.banner.index("listening (HTTP/1.1, HTTP/2 and gRPC on each)") + 1:]
    assert f"  127.0.0.1:{port}  {shared}" in listening
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as r:
        assert r.status == 200
    with H2(port) as c:
        assert c.reply(c.grpc(SERVICE + "ServerLive", b"")).grpc == 0


def test_addresses_that_include_each_other(tmp_path):
    done = run("serve", str(tmp_path), "--http-port", "9000", "--grpc-port", "9000", "--http-address", "0.0.0.0",
               "--i-accept-insecure")
    assert done.returncode != 0 and "another program" not in done.stderr
    assert "port 9000 is wanted for http on '0.0.0.0' and for grpc on '127.0.0.1'" in done.stderr


def test_exit_on_error(tmp_path):
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"not a model")
    done = run("serve", str(tmp_path), "--exit-on-error", "--no-keep-gallery", "--port", "0",
               "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    assert done.returncode == 1 and "did not load" in done.stderr


def get(one, path):
    return urllib.request.urlopen(one.url + path, timeout=60).read()


def test_sigterm_ends_with_zero(server, tmp_path):
    one = server(models=[tmp_path])
    get(one, "/v2/health/live")
    assert one.stop() == 0


def test_sighup_opens_the_log_again(server, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    log = tmp_path / "naru.log"
    one = server("--log-file", log, "--access-log", models=[models])
    get(one, "/v2/health/live")
    wait_until(lambda: "msg=live" in log.read_text(), what="the first line")
    log.rename(tmp_path / "old.log")
    one.signal(signal.SIGHUP)
    wait_until(log.exists, what="the new log file")
    get(one, "/v2/health/ready")
    wait_until(lambda: "msg=ready" in log.read_text(), what="a line in the new file")


def test_log_lines_cannot_be_forged(server, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    log = tmp_path / "naru.log"
    one = server("--log-file", log, "--access-log", "--log-format", "json", models=[models])
    with pytest.raises(urllib.error.HTTPError):
        get(one, "/v2/models/a%0alevel=error")
    wait_until(lambda: "a%0alevel" in log.read_text() or "level=error" in log.read_text(), what="the line")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(line["level"] != "error" for line in lines)
