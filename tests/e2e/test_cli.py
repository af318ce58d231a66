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
from plugin_models import model, repository
from rawhttp import H2, SERVICE, ask


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
        ("http-port: 1\ngrpc-port: 2\nhttp-port: 3\n", "bad.yaml line 3: option 'http-port' is there already"),
        ("http-port: 1\nhttp_port: 1\n", "bad.yaml line 2: option 'http_port' is there already"),
        ("model-repository: a\nmodel-store: [b]\n", "bad.yaml line 2: option 'model-store' is there already"),
        ("grpc-port: 1\nhttp-port: [1]\n", "bad.yaml line 2: option 'http-port' takes one value, not a list"),
        ("log-file:\n  - a\n", "line 1: option 'log-file' takes one value, not a list"),
        ("http-port: !!int 1\n", "bad.yaml line 1: tags"),
        ("http-port: 1\n---\ngrpc-port: 1\n", "bad.yaml line 2: one document"),
    ],
)
def test_bad_file_has_the_line(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    done = run("serve", "--config", str(file), "--print-config")
    assert done.returncode == 2 and message in done.stderr and "bad.yaml line" in done.stderr


def test_file_that_is_none(tmp_path):
    done = run("serve", "--config", str(tmp_path), "--print-config")
    assert done.returncode == 2 and f"--config: {tmp_path} is a folder" in done.stderr
    done = run("serve", "--config", str(tmp_path / "missing"), "--print-config")
    assert done.returncode == 2 and "cannot read" in done.stderr and "No such file" in done.stderr
    large = tmp_path / "large"
    large.write_text("http-port: 1\n" + "# much\n" * 200000)
    done = run("serve", "--config", str(large), "--print-config")
    assert done.returncode == 2 and "larger than 1 MiB" in done.stderr


def test_file_may_be_a_pipe():
    done = subprocess.run(["bash", "-c", f"{NARU} serve --config <(echo http-port: 1234) --print-config"],
                          capture_output=True, text=True, timeout=60, check=False)
    assert "http-port: 1234  # file" in done.stdout, done.stderr


def test_paths_without_an_option_are_the_repository(tmp_path):
    file = tmp_path / "naru.yaml"
    file.write_text("model-repository: [c]\n")
    env = {"NARU_MODEL_REPOSITORY": "b"}
    assert config_of("x", "y", "--config", str(file), env=env)["model-repository"] == ('["x", "y"]', "command line")
    assert config_of("--config", str(file), env=env)["model-repository"] == ('["b"]', "environment")
    assert config_of("--config", str(file))["model-repository"] == ('["c"]', "file")
    done = run("serve", "x", "--model-repository", "y", "--print-config")
    assert done.returncode == 2 and "not both" in done.stderr


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


def completed(*words):
    """What bash offers for the last of these words."""
    script = run("completion", "bash").stdout
    script += f"COMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}; _naru; echo ${{COMPREPLY[*]}}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.split()


def test_completions_offer_everything():
    commands = re.findall(r"^  (\w+) ", run("--help").stdout.split("first steps")[0], re.M)
    assert "completion" in commands and set(commands) <= set(completed("naru", ""))
    assert completed("naru", "comp") == ["completion"]
    assert completed("naru", "completion", "") == ["bash", "zsh"]
    for command in ("serve", "why"):
        options = set(re.findall(r"^  (--[a-z0-9-]+)", run(command, "--help").stdout, re.M))
        assert {"--help", "--version", "--config", "--print-config", "--print-man"} < options
        assert set(completed("naru", command, "--")) == options
        man = run(command, "--print-man").stdout
        assert all(".B " + option.replace("-", "\\-") + " " in man for option in options)
        zsh = run("completion", "zsh").stdout
        assert all(re.search(rf"'{option}[=\[]", zsh) for option in options)


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


# --- a request is found in the log by the name that its client gave it ---------------------------

NAMED = "/v2/models/id/infer"
FAULTS = {  # body: (status, id in the log; None: the server's own)
    '{"id":"first","inputs":[{"name":"no","datatype":"FP32","shape":[1],"data":[1]}]}': (400, "first"),
    '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":["x"]}],"id":"behind"}': (400, "behind"),
    '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[2],"data":[1,2]}],"id":"shape"}': (400, "shape"),
    '{"id":"cut","inputs":[': (400, "cut"),
    '{"inputs":[[,"id":"never reached"}': (400, None),
    '{"id":17,"inputs":[]}': (400, None),
    '{"id":"a \\"b\\" \\n level=error","inputs":[]}': (400, 'a "b" \n level=error'),
    '{"id":"good","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1]}]}': (200, "good"),
}


def access_lines(path, n):
    wait_until(lambda: path.read_text().count('"module":"access"') >= n, what=f"{n} lines of the access log")
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["module"] == "access"]


@pytest.fixture
def named(server, tmp_path):
    log = tmp_path / "naru.log"
    repo = repository(tmp_path / "repo", id=model("identity", [("INPUT0", "FP32", [1])]))
    return server("--log-file", log, "--access-log", "--log-format", "json", "--io-threads", 1, models=[repo]), log


def test_log_lines_have_the_id_of_the_body(named):
    one, log = named
    for body, (status, _) in FAULTS.items():
        assert ask(one.http, "POST", NAMED, body).status == status
    assert ask(one.http, "POST", "/v2/models/none/infer", '{"id":"lost","inputs":[]}').status == 404
    got = [(line["status"], line["id"]) for line in access_lines(log, len(FAULTS) + 1)]
    lines = access_lines(log, len(FAULTS) + 1)
    want = [(status, name or line["exchange"]) for (status, name), line in zip(FAULTS.values(), lines)]
    assert got == want + [(404, "lost")]


@pytest.mark.parametrize("sent", ["abc-123", "x" * 128, 'with "quotes" and = signs', "A", "~!"])
def test_request_id_is_echoed_and_logged(named, sent):
    one, log = named
    good = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1]}]}'
    for method, path, body in (("POST", NAMED, good), ("POST", NAMED, "{"), ("GET", "/no/such/path", ""), ("HEAD", "/v2", "")):
        r = ask(one.http, method, path, body, f"X-Request-Id: {sent}")
        assert r.headers["x-request-id"] == sent, r
    with H2(one.http) as c:
        assert c.ask("GET", "/v2", fields=[("x-request-id", sent)]).headers["x-request-id"] == sent
        live = c.reply(c.grpc(SERVICE + "ServerLive", b"", [("x-request-id", sent)]))
        assert live.grpc == 0 and live.headers["x-request-id"] == sent
        bad = c.reply(c.grpc(SERVICE + "ModelInfer", b"\x0a\x02id\x1a\x05inner", [("x-request-id", sent)]))
        assert bad.grpc == 3 and bad.headers["x-request-id"] == sent
        none = c.reply(c.grpc("/no.such/Method", b"", [("x-request-id", sent)]))
        assert none.grpc == 12 and none.headers["x-request-id"] == sent
    lines = access_lines(log, 8)
    assert all(line["request_id"] == sent for line in lines) and len(lines) == 8
    assert [line["id"] for line in lines] == [sent] * 6 + ["inner", sent]
    assert [line.get("grpc") for line in lines] == [None] * 5 + ["OK", "INVALID_ARGUMENT", "UNIMPLEMENTED"]
    assert [line.get("status") for line in lines] == [200, 400, 404, 200, 200] + [None] * 3


@pytest.mark.parametrize("sent", ["", " ", "x" * 129, "a\tb", "a\x01b", "caf\xe9", "a\x7fb"])
def test_request_id_that_is_none(named, sent):
    one, log = named
    r = ask(one.http, "GET", "/v2", "", f"X-Request-Id: {sent}")
    assert "x-request-id" not in (r.headers or {})
    if r.status == 200:
        assert "request_id" not in access_lines(log, 1)[0]
