"""Repository agents: what looks at a model's files before they are opened, or puts others in their place.

The agents are the real plug-ins: `checksum`, the example `decrypt`, and `trace`, which writes down what
it is told.
"""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from conftest import NARU, wait_until
from models import save
from plugin_models import model, repository
from rawhttp import H1

BUILD = Path(NARU).parent
SEAL = BUILD / "examples" / "naru-seal"
IO = [("INPUT0", "FP32", [1])]
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]})
EXPLICIT = ("--no-keep-gallery", "--model-control-mode", "explicit")

pytestmark = pytest.mark.skipif(not (BUILD / "backends" / "naru-agent-checksum.so").exists(),
                                reason="built without libcrypto")


def agents(*chain):
    """(name, {key: value})… as a part of a configuration."""
    text = ",\n".join(f'  {{ name: "{name}" ' +
                      " ".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items()) + " }"
                      for name, parameters in chain)
    return f"model_repository_agents {{ agents [\n{text}\n] }}\n"


def ask(s, method, path, body=""):
    with H1(s.http) as c:
        return c.ask(method, path, body)


def control(s, name, what):
    r = ask(s, "POST", f"/v2/repository/models/{name}/{what}")
    return r.status, r.json().get("error", "") if r.body else ""


def load(s, name="m"):
    return control(s, name, "load")


def good(s, name="m"):
    status, text = load(s, name)
    assert status == 200, text


def refused(s, *parts, name="m"):
    status, text = load(s, name)
    assert status != 200
    for part in parts:
        assert part in text, text


# --- checksum -----------------------------------------------------------------------------------------------------


def test_checksums(server, tmp_path):
    repo = repository(tmp_path / "repo", m="")
    folder = repo / "m"
    (folder / "1" / "data.bin").write_bytes(b"the weights" * 1000)
    (folder / "empty.txt").write_bytes(b"")
    data = (folder / "1" / "data.bin").read_bytes()
    sums = {"MD5:1/data.bin": hashlib.md5(data).hexdigest(), "SHA256:1/data.bin": hashlib.sha256(data).hexdigest().upper(),
            "XXH3:empty.txt": "2d06800538d394c2"}

    def configure(**changes):
        listed = {**sums, **{k.replace("__", ":").replace("_slash_", "/").replace("_dot_", "."): v
                             for k, v in changes.items()}}
        (folder / "config.pbtxt").write_text(
            model("identity", IO, extra=agents(("checksum", {k: v for k, v in listed.items() if v is not None}))))

    configure()
    s = server(*EXPLICIT, models=[repo])
    good(s)
    assert ask(s, "POST", "/v2/models/m/infer", BODY).json()["outputs"][0]["data"] == [7]
    configure(XXH3__empty_dot_txt="99aa06d3014798d86001c324468d497f", all="true")
    good(s)
    # one byte is another: the file, what was expected and what came are named; what served goes on
    (folder / "1" / "data.bin").write_bytes(b"THE weights" + data[11:])
    got = hashlib.md5(b"THE weights" + data[11:]).hexdigest()
    refused(s, "1/data.bin", "MD5", sums["MD5:1/data.bin"], got)
    assert ask(s, "POST", "/v2/models/m/infer", BODY).json()["outputs"][0]["data"] == [7]
    (folder / "1" / "data.bin").write_bytes(data)
    # a file that nobody listed
    (folder / "1" / "extra.bin").write_bytes(b"x")
    refused(s, "1/extra.bin", "has no sum in the list")
    os.remove(folder / "1" / "extra.bin")
    os.symlink("/etc/passwd", folder / "1" / "link")
    refused(s, "1/link", "neither a file nor a folder")
    os.remove(folder / "1" / "link")
    good(s)
    # lists that are wrong in themselves
    for changes, part in (({"MD5__1_slash_data_dot_bin": "abc"}, "32 hexadecimal digits are expected"),
                          ({"MD5__1_slash_data_dot_bin": "g" * 32}, "32 hexadecimal digits are expected"),
                          ({"MD5__gone_dot_bin": "0" * 32}, "gone.bin"),
                          ({"MD5__": "0" * 32}, "agent checksum"),
                          ({"MD5__1": "0" * 32}, "'1' is not a regular file"),
                          ({"SHA256__.._slash_.._slash_etc": "0" * 64}, "'..'"),
                          ({"SHA256___slash_etc_slash_passwd": "0" * 64}, "not a path below its folder"),
                          ({"SHA1__1_slash_data_dot_bin": "0" * 40}, "unknown parameter \\\"SHA1"),
                          ({"all": "perhaps"}, "\\\"all\\\"")):
        configure(**changes)
        refused(s, part.replace("\\", ""))
    assert ask(s, "GET", "/v2/health/live").status == 200


def test_agents_that_are_not_there(server, tmp_path):
    dirs = tmp_path / "agents"
    (dirs / "old").mkdir(parents=True)
    (dirs / "old" / "libtritonrepoagent_old.so").write_bytes(b"\x7fELF")
    (dirs / "naru-agent-text.so").write_text("no library")
    repo = repository(tmp_path / "repo", **{n: model("identity", IO, extra=agents((a, {}))) for n, a in
                                            (("m", "nobody"), ("old", "old"), ("text", "text"), ("evil", "../checksum"))})
    s = server(*EXPLICIT, "--repoagent-directory", dirs, models=[repo])
    refused(s, "no agent \"nobody\"", "naru-agent-nobody.so", "checksum", "--agent-directory")
    refused(s, "libtritonrepoagent_old.so is an agent for Triton", "include/naru/agent.h", name="old")
    refused(s, "cannot load agent \"text\"", name="text")
    refused(s, "is no name of an agent", name="evil")


# --- the life of a model ------------------------------------------------------------------------------------------


def trace(log, ident, **more):
    return ("trace", {"log": log, "id": ident, **{k: str(v) for k, v in more.items()}})


def told(log):
    return [tuple(line.split()[:2]) for line in log.read_text().splitlines()] if log.exists() else []


LIFE = [("a", "LOAD"), ("b", "LOAD"), ("b", "LOAD_COMPLETE"), ("a", "LOAD_COMPLETE")]
DEATH = [("a", "UNLOAD"), ("b", "UNLOAD"), ("b", "UNLOAD_COMPLETE"), ("a", "UNLOAD_COMPLETE")]


def test_every_action_exactly_once(server, tmp_path):
    log = tmp_path / "log"
    text = model("identity", IO, extra=agents(trace(log, "a"), trace(log, "b")))
    repo = repository(tmp_path / "repo", m=text)
    s = server(*EXPLICIT, models=[repo])
    good(s)
    good(s)  # nothing changed
    assert told(log) == LIFE
    assert control(s, "m", "unload")[0] == 200
    assert told(log) == LIFE + DEATH
    good(s)
    (repo / "m" / "note.txt").write_text("changed")
    good(s)
    wait_until(lambda: len(told(log)) == 2 * len(DEATH) + 3 * len(LIFE))
    assert told(log) == LIFE + DEATH + LIFE + LIFE + DEATH
    s.stop()
    assert told(log) == LIFE + DEATH + LIFE + LIFE + DEATH + DEATH


def test_a_failure_in_the_middle(server, tmp_path):
    log = tmp_path / "log"
    text = model("identity", IO, extra=agents(trace(log, "a"), trace(log, "b"), trace(log, "c", fail="LOAD", text="no luck")))
    s = server(*EXPLICIT, models=[repository(tmp_path / "repo", m=text)])
    refused(s, "agent trace: no luck")
    assert told(log) == [("a", "LOAD"), ("b", "LOAD"), ("c", "LOAD"), ("b", "LOAD_FAIL"), ("a", "LOAD_FAIL")]


def test_a_model_that_does_not_open(server, tmp_path):
    log = tmp_path / "log"
    text = model("fault", IO, extra=agents(trace(log, "a"), trace(log, "b")), fault="open_error")
    s = server(*EXPLICIT, models=[repository(tmp_path / "repo", m=text)])
    refused(s)
    assert told(log) == [("a", "LOAD"), ("b", "LOAD"), ("b", "LOAD_FAIL"), ("a", "LOAD_FAIL")]


def test_poll_takes_the_models_own_folder_for_its_signature(server, tmp_path):
    log = tmp_path / "log"
    text = model("identity", IO, extra=agents(trace(log, "a", folder="copy"), trace(log, "b")))
    repo = repository(tmp_path / "repo", m=text)
    (repo / "m" / "1" / "weights").write_text("x")
    private = memory(tmp_path)
    s = server("--no-keep-gallery", "--model-control-mode", "poll", "--repository-poll-secs", "50ms", "--repository-quiet",
               "50ms", "--agent-folder", private, models=[repo])
    assert told(log) == LIFE
    assert len(list(private.iterdir())) == 1
    time.sleep(0.5)  # looks at the files change nothing
    assert told(log) == LIFE
    (repo / "m" / "note.txt").write_text("changed")
    wait_until(lambda: told(log) == LIFE + LIFE + DEATH)
    wait_until(lambda: len(list(private.iterdir())) == 1)
    assert (next(private.iterdir()) / "note.txt").read_text() == "changed"
    for file in ("config.pbtxt", "note.txt"):
        os.remove(repo / "m" / file)
    os.remove(repo / "m" / "1" / "weights")
    os.rmdir(repo / "m" / "1")
    os.rmdir(repo / "m")
    wait_until(lambda: told(log) == LIFE + LIFE + DEATH + DEATH)
    wait_until(lambda: not list(private.iterdir()))


def test_an_agent_that_does_not_end(server, tmp_path):
    log = tmp_path / "log"
    text = model("identity", IO, extra=agents(trace(log, "a", sleep_ms=1500)))
    s = server(*EXPLICIT, "--agent-timeout", "100ms", models=[repository(tmp_path / "repo", m=text, n=model("identity", IO))])
    refused(s, "did not end LOAD within 100 ms", "--agent-timeout")
    good(s, "n")  # nobody else waited
    wait_until(lambda: ("a", "STOPPED") in told(log))
    assert told(log) == [("a", "LOAD"), ("a", "STOPPED")]


# --- decrypt ------------------------------------------------------------------------------------------------------


def memory(tmp_path):
    """A folder of the test's own on a tmpfs, or the test is skipped."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm here")
    folder = Path("/dev/shm") / f"naru-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir(exist_ok=True)
    _made.append(folder)
    return folder


_made = []


@pytest.fixture(autouse=True)
def clean():
    yield
    while _made:
        folder = _made.pop()
        left = sorted(str(p) for p in folder.rglob("*"))
        for path in reversed(left):
            os.rmdir(path) if os.path.isdir(path) else os.remove(path)
        folder.rmdir()
        assert not left, left


def big_model(folder, name):
    """About 2.5 MiB: more than two chunks. Y = sum of X · W."""
    w = np.random.default_rng(5).normal(size=(4, 160000)).astype(np.float32)
    graph = h.make_graph([h.make_node("MatMul", ["X", "W"], ["P"]), h.make_node("ReduceSum", ["P", "axes"], ["Y"])], "big",
                         [h.make_tensor_value_info("X", T.FLOAT, ["batch", 4])],
                         [h.make_tensor_value_info("Y", T.FLOAT, ["batch", 1])],
                         [onnx.numpy_helper.from_array(w, "W"), onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")])
    save(graph, folder, name)
    return w.astype(np.float64).sum(axis=1)


def seal(key_file, path, plain):
    return subprocess.run([SEAL, key_file, path], input=plain, capture_output=True, check=True).stdout


class Sealed:
    """A repository whose only model is sealed; `put` changes what lies there."""

    def __init__(self, tmp_path, parameters=None):
        self.sums = big_model(tmp_path / "plain", "m")
        self.plain = (tmp_path / "plain" / "m" / "1" / "model.onnx").read_bytes()
        self.key = tmp_path / "model.key"
        self.hex = secrets.token_hex(32)
        self.key.write_text(self.hex + "\n")
        self.repo = tmp_path / "repo"
        self.file = self.repo / "m" / "1" / "model.onnx.sealed"
        self.file.parent.mkdir(parents=True)
        self.sealed = seal(self.key, "1/model.onnx", self.plain)
        self.private = memory(tmp_path)
        self.configure(parameters or {"key_file": self.key})
        self.put(self.sealed)

    def configure(self, parameters, before=()):
        (self.repo / "m" / "config.pbtxt").write_text('backend: "onnxruntime"\n' + agents(*before, ("decrypt", parameters)))

    def put(self, data):
        self.file.write_bytes(data)

    def options(self):
        return ("--agent-directory", BUILD / "examples", "--agent-folder", self.private)

    def serves(self, s):
        body = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
        got = ask(s, "POST", "/v2/models/m/infer", body).json()["outputs"][0]["data"][0]
        return abs(got - float(self.sums @ [1, 2, 3, 4])) < 0.5


def test_a_sealed_model_is_served_and_leaves_nothing(server, tmp_path):
    x = Sealed(tmp_path)
    s = server(*EXPLICIT, *x.options(), models=[x.repo])
    good(s)
    assert x.serves(s)
    (folder,) = x.private.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "1" / "model.onnx").read_bytes() == x.plain
    assert (folder / "1" / "model.onnx").stat().st_mode & 0o777 == 0o600
    assert control(s, "m", "unload")[0] == 200
    assert not list(x.private.iterdir())
    good(s)
    s.stop()
    assert not list(x.private.iterdir())
    assert x.hex not in s.log() and x.hex not in "\n".join(s.banner)


def test_a_sealed_file_that_is_not_as_it_was(server, tmp_path):
    x = Sealed(tmp_path)
    s = server(*EXPLICIT, *x.options(), models=[x.repo])
    chunk, head = (1 << 20) + 16, 32
    assert len(x.sealed) > head + 2 * chunk
    flip = lambda at: x.sealed[:at] + bytes([x.sealed[at] ^ 1]) + x.sealed[at + 1:]  # noqa: E731
    one, two, rest = x.sealed[head:head + chunk], x.sealed[head + chunk:head + 2 * chunk], x.sealed[head + 2 * chunk:]
    header = x.sealed[:head]
    other = tmp_path / "other.key"
    other.write_text(secrets.token_hex(32))
    cases = {
        "wrong key": (seal(other, "1/model.onnx", x.plain), "chunk 0"),
        "another name": (seal(x.key, "1/other.onnx", x.plain), "chunk 0"),
        "flipped in the first chunk": (flip(head + 5), "chunk 0"),
        "flipped in a tag": (flip(head + 2 * chunk - 1), "chunk 1"),
        "flipped at the end": (flip(len(x.sealed) - 1), "chunk 2"),
        "flipped nonce": (flip(18), "chunk 0"),
        "flipped size of chunks": (flip(12), "chunk 0"),
        "chunks exchanged": (header + two + one + rest, "chunk 0"),
        "a chunk twice": (header + one + one + two + rest, "chunk 1"),
        "a chunk left out": (header + one + rest, "chunk 1"),
        "cut behind a chunk": (header + one + two, "chunk 1"),
        "cut within a chunk": (x.sealed[:-100], "chunk 2"),
        "cut to a few bytes": (header + one + b"0123", "chunk 1"),
        "more behind the end": (x.sealed + b"\0" * 40, "chunk 2"),
        "header alone": (header, "chunk 0"),
        "half a header": (header[:9], "is no sealed file"),
        "empty": (b"", "is no sealed file"),
        "plain": (x.plain, "is no sealed file"),
        "another version": (flip(8), "is no sealed file"),
        "not zero": (flip(30), "is no sealed file"),
        "huge chunks": (header[:12] + b"\xff\xff\xff\xff" + x.sealed[16:], "is no sealed file"),
    }
    for name, (data, part) in cases.items():
        x.put(data)
        status, text = load(s)
        assert status != 200 and "1/model.onnx.sealed" in text and part in text, (name, status, text)
        assert not list(x.private.iterdir()), name
    x.put(x.sealed)
    good(s)
    assert x.serves(s)
    # a reload that cannot be opened leaves what serves
    x.put(flip(head + 5))
    refused(s, "chunk 0")
    assert x.serves(s)
    assert len(list(x.private.iterdir())) == 1
    assert x.hex not in s.log()


def test_keys(server, tmp_path):
    x = Sealed(tmp_path)
    short, raw = tmp_path / "short", tmp_path / "raw"
    short.write_text(x.hex[:-2])
    raw.write_bytes(bytes.fromhex(x.hex))
    s = server(*EXPLICIT, *x.options(), models=[x.repo], env={"MODEL_KEY": x.hex, "BAD_KEY": "zz" + x.hex[2:]})
    for parameters, part in (({"key_file": tmp_path / "gone"}, "cannot be read"), ({"key_file": tmp_path}, "cannot be read"),
                             ({"key_file": short}, "holds no key"), ({"key_env": "NO_SUCH_KEY"}, "is not set"),
                             ({"key_env": "BAD_KEY"}, "holds no key"), ({}, "must say where the key is"),
                             ({"key_file": x.key, "key_env": "MODEL_KEY"}, "one of the parameters"),
                             ({"key": x.hex}, "unknown parameter")):
        x.configure(parameters)
        status, text = load(s)
        assert status != 200 and part in text and x.hex[:16] not in text, text
    x.configure({"key_env": "MODEL_KEY"})
    good(s)
    x.configure({"key_file": raw})
    good(s)
    assert x.serves(s)
    assert x.hex not in s.log()


def test_the_example_keeps_to_the_interface(tmp_path):
    x = Sealed(tmp_path)
    done = subprocess.run([BUILD / "naru-backend-check", BUILD / "examples" / "naru-agent-decrypt.so", "--model", x.repo / "m",
                           "--option", f"key_file={x.key}"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout and "LOAD needs more" not in done.stdout, done.stdout


def test_checked_then_opened(server, tmp_path):
    """Two agents in a chain: the sum is that of the sealed file, the model that of the opened one."""
    x = Sealed(tmp_path)
    s = server(*EXPLICIT, *x.options(), models=[x.repo])
    sums = {"SHA256:1/model.onnx.sealed": hashlib.sha256(x.sealed).hexdigest(), "all": "true"}
    x.configure({"key_file": x.key}, before=[("checksum", sums)])
    good(s)
    assert x.serves(s)
    x.put(seal(x.key, "1/model.onnx", x.plain))  # opens, but is not the file that was meant
    refused(s, "agent checksum", "1/model.onnx.sealed")


def test_what_a_crash_leaves_is_removed_by_the_next_start(server, tmp_path):
    x = Sealed(tmp_path)
    s = server("--no-keep-gallery", *x.options(), models=[x.repo])
    assert x.serves(s)
    (mine,) = x.private.iterdir()
    s.kill()
    assert mine.exists()  # in memory, not on a disk
    t = server("--no-keep-gallery", *x.options(), models=[x.repo])
    assert x.serves(t)
    (other,) = x.private.iterdir()
    assert other != mine
    server("--no-keep-gallery", *x.options(), models=[repository(tmp_path / "plain2", m=model("identity", IO))])
    assert other.exists()  # of a process that lives: not swept
    assert x.serves(t)


def test_no_place_in_memory(server, tmp_path):
    if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid or "tmpfs" in subprocess.run(
            ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout:
        pytest.skip("the tests' folder lies in memory itself")
    x = Sealed(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    s = server(*EXPLICIT, "--agent-directory", BUILD / "examples", "--agent-folder", disk, models=[x.repo])
    refused(s, "does not lie in memory", "--agent-folder")
    assert not list(disk.iterdir())


def test_an_agent_that_ends_the_process_leaves_no_plain_file_on_a_disk(tmp_path):
    log = tmp_path / "log"
    private = memory(tmp_path)
    text = model("identity", IO, extra=agents(trace(log, "a", folder="secret", crash="true")))
    repo = repository(tmp_path / "repo", m=text)
    done = subprocess.run([NARU, "serve", "--port", "0", "--no-keep-gallery", "--agent-folder", private, repo],
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 99
    assert len(list(private.iterdir())) == 1
    ok = repository(tmp_path / "ok", m=model("identity", IO))
    p = subprocess.Popen([NARU, "serve", "--port", "0", "--no-keep-gallery", "--agent-folder", private, ok],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_until(lambda: not list(private.iterdir()))
    p.send_signal(signal.SIGTERM)
    p.wait(40)
    p.stdout.close()
