"""L2: a reload to a model that is broken in one of so many ways. While it is tried, and after it has failed, the old
version answers every request, and what the operator is told names the cause.

A kind is a function that breaks the files of one model, and what the message has to say. All kinds are tried in one
server, one after the other, on copies of whole models; `test_there_are_enough` counts them.
"""

import gzip
import os
import re
import shutil

import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from plugin_models import model, repository
from test_reload import BODY, EXPLICIT, X, Oracle, ask, index

KINDS = []


def kind(says, of="onnx"):
    def add(f):
        KINDS.append(pytest.param(of, f, says, id=f.__name__))
        return f
    return add


# --- ONNX files ---------------------------------------------------------------------------------------------------


def value(name, type_=T.FLOAT, dims=(1,)):
    return h.make_tensor_value_info(name, type_, dims)


def graph(nodes=None, inputs=None, outputs=None, initializers=()):
    return h.make_graph(nodes or [h.make_node("Identity", ["INPUT0"], ["OUTPUT0"])], "g", inputs or [value("INPUT0")],
                        outputs if outputs is not None else [value("OUTPUT0")], list(initializers))


def onnx_bytes(*args, change=lambda m: None, **kwargs):
    m = h.make_model(graph(*args, **kwargs), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    change(m)
    return m.SerializeToString()


GOOD = onnx_bytes()
FILE = "1/model.onnx"


def write(folder, data, name=FILE):
    """A new file under the old name, as a careful copier makes it."""
    temporary = folder / ".new"
    temporary.write_bytes(data if isinstance(data, bytes) else data.encode())
    os.replace(temporary, folder / name)


def file_kind(name, says, data):
    def breaks(folder):
        write(folder, data() if callable(data) else data)
    breaks.__name__ = name
    kind(says)(breaks)


def external(path, length=4):
    def change(m):
        w = m.graph.initializer.add(name="W", data_type=T.FLOAT, dims=[1], data_location=T.EXTERNAL)
        for k, v in (("location", path), ("offset", "0"), ("length", str(length))):
            w.external_data.add(key=k, value=v)
    return onnx_bytes([h.make_node("Add", ["INPUT0", "W"], ["OUTPUT0"])], change=change)


file_kind("onnx_empty", "No graph was found", b"")
file_kind("onnx_half", "[Pp]rotobuf parsing failed", lambda: GOOD[:len(GOOD) // 2])
file_kind("onnx_less_one_byte", "[Pp]rotobuf parsing failed", lambda: GOOD[:-1])
file_kind("onnx_garbage", "[Pp]rotobuf parsing failed", lambda: bytes((i * 167 + 13) % 256 for i in range(4096)))
file_kind("onnx_zeros", "[Pp]rotobuf parsing failed", b"\0" * 4096)
file_kind("onnx_html", "[Pp]rotobuf parsing failed", b"<!doctype html><title>404 Not Found</title>\n")
file_kind("onnx_gzip", "[Pp]rotobuf parsing failed", lambda: gzip.compress(GOOD))
file_kind("onnx_pointer_of_git_lfs", "[Pp]rotobuf parsing failed", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
file_kind("onnx_no_opset", "opset", lambda: onnx_bytes(change=lambda m: m.ClearField("opset_import")))
file_kind("onnx_no_ir_version", "ir_version|IR version", lambda: onnx_bytes(change=lambda m: m.ClearField("ir_version")))
file_kind("onnx_new_ir_version", "IR version", lambda: onnx_bytes(change=lambda m: setattr(m, "ir_version", 9999)))
file_kind("onnx_new_opset", "opset", lambda: onnx_bytes(change=lambda m: setattr(m.opset_import[0], "version", 9999)))
file_kind("onnx_unknown_operator", "NoSuchOperator", lambda: onnx_bytes([h.make_node("NoSuchOperator", ["INPUT0"], ["OUTPUT0"])]))
file_kind("onnx_unknown_domain", "no.such.domain",
          lambda: onnx_bytes([h.make_node("Identity", ["INPUT0"], ["OUTPUT0"], domain="no.such.domain")]))
file_kind("onnx_dangling_input", "nowhere", lambda: onnx_bytes([h.make_node("Add", ["INPUT0", "nowhere"], ["OUTPUT0"])]))
file_kind("onnx_cycle", "cycle|acyclic|sorted|topolog",
          lambda: onnx_bytes([h.make_node("Add", ["INPUT0", "b"], ["a"]), h.make_node("Identity", ["a"], ["b"]),
                              h.make_node("Identity", ["b"], ["OUTPUT0"])]))
file_kind("onnx_same_output_twice", "[Dd]uplicate", lambda: onnx_bytes([h.make_node("Identity", ["INPUT0"], ["OUTPUT0"])] * 2))
file_kind("onnx_output_nobody_makes", "OUTPUT0|other", lambda: onnx_bytes([h.make_node("Identity", ["INPUT0"], ["other"])]))
file_kind("onnx_types_that_do_not_fit", "[Tt]ype", lambda: onnx_bytes(
    [h.make_node("Add", ["INPUT0", "W"], ["OUTPUT0"])],
    initializers=[h.make_tensor("W", T.INT64, [1], [1])]))
file_kind("onnx_weights_too_short", "W|size|bytes|raw_data", lambda: onnx_bytes(
    [h.make_node("Add", ["INPUT0", "W"], ["OUTPUT0"])],
    initializers=[onnx.TensorProto(name="W", data_type=T.FLOAT, dims=[1000], raw_data=b"\0" * 8)]))
file_kind("onnx_external_missing", "weights.bin|external", lambda: external("weights.bin"))
file_kind("onnx_external_outside", "\\.\\.|outside|escapes|external", lambda: external("../../../../../../etc/passwd"))
file_kind("onnx_external_absolute", "etc/passwd|absolute|external", lambda: external("/etc/passwd"))


@kind("weights.bin|external|bounds|length")
def onnx_external_too_short(folder):
    (folder / "1" / "weights.bin").write_bytes(b"\0" * 3)
    write(folder, external("weights.bin"))


@kind("model.onnx|no model file")
def file_missing(folder):
    (folder / FILE).unlink()


@kind("neither a file nor a folder|folder|model.onnx")
def file_is_a_folder(folder):
    (folder / FILE).unlink()
    (folder / FILE).mkdir()


@kind("neither a file nor a folder")
def file_is_a_pipe(folder):
    (folder / FILE).unlink()
    os.mkfifo(folder / FILE)


@kind("[Pp]ermission|not permitted")
def file_unreadable(folder):
    write(folder, GOOD + b"\x12\x00")
    (folder / FILE).chmod(0)


@kind("symbolic link|link")
def file_links_to_itself(folder):
    (folder / FILE).unlink()
    os.symlink("model.onnx", folder / FILE)


@kind("symbolic link|link")
def file_links_outside(folder):
    (folder.parent / "elsewhere.onnx").write_bytes(GOOD)
    (folder / FILE).unlink()
    os.symlink("../../elsewhere.onnx", folder / FILE)


# --- folders ------------------------------------------------------------------------------------------------------


@kind("no version")
def version_is_a_file(folder):
    shutil.rmtree(folder / "1")
    (folder / "1").write_bytes(GOOD)


@kind("no version|link")
def version_links_to_itself(folder):
    shutil.rmtree(folder / "1")
    os.symlink("1", folder / "1")


@kind("no version")
def version_missing(folder):
    shutil.rmtree(folder / "1")


@kind("no version")
def version_name_is_no_number(folder):
    os.rename(folder / "1", folder / "01")


@kind("[Pp]ermission|not permitted")
def version_unreadable(folder):
    (folder / "1").chmod(0)


@kind("[Pp]ermission|not permitted")
def model_unreadable(folder):
    folder.chmod(0)


@kind("there is no model")
def model_links_to_itself(folder):
    shutil.rmtree(folder)
    os.symlink(folder.name, folder)


@kind("there is no model")
def model_is_a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(GOOD)


@kind("there is no model")
def model_missing(folder):
    shutil.rmtree(folder)


# --- a configuration that does not fit the file ---------------------------------------------------------------------

ONNX_CONFIG = ('backend: "onnxruntime"\ninput [ { name: "INPUT0" data_type: TYPE_FP32 dims: [1] } ]\n'
               'output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] } ]\n')


def config_kind(name, says, change, of="onnx"):
    def breaks(folder):
        text = (folder / "config.pbtxt").read_text()
        new = change(text)
        assert new != text, "it changes something"
        write(folder, new, "config.pbtxt")
    breaks.__name__ = name
    kind(says, of)(breaks)


def swapped(old, new):
    return lambda text: text.replace(old, new, 1)


def more(text):
    return lambda before: before + text + "\n"


config_kind("input_of_another_type", "INPUT0.*(INT64|FP32)", swapped("TYPE_FP32", "TYPE_INT64"))
config_kind("input_of_another_size", "INPUT0", swapped("dims: [1]", "dims: [7]"))
config_kind("input_of_another_rank", "INPUT0", swapped("dims: [1]", "dims: [1,1,1]"))
config_kind("input_of_another_name", "INPUT7|INPUT0", swapped("INPUT0", "INPUT7"))
config_kind("output_of_another_name", "OUTPUT7", swapped("OUTPUT0", "OUTPUT7"))
config_kind("batches_it_cannot_take", "batch", more("max_batch_size: 8"))
config_kind("one_input_too_many", "INPUT1", lambda t: t.replace("output [", 'input [ { name: "INPUT1" data_type: TYPE_FP32 dims: [1] } ]\noutput ['))

# --- a configuration that cannot be ---------------------------------------------------------------------------------

config_kind("field_unknown", "no_such_field", more("no_such_field: 1"), "identity")
config_kind("name_of_another", "other", more('name: "other"'), "identity")
config_kind("backend_unknown", "nobody", swapped('"identity"', '"nobody"'), "identity")
config_kind("backend_with_a_path", "name|\\.\\.", swapped('"identity"', '"../identity"'), "identity")
config_kind("batch_negative", "max_batch_size|-1", swapped("max_batch_size: 0", "max_batch_size: -1"), "identity")
config_kind("batch_in_words", "max_batch_size|four", swapped("max_batch_size: 0", 'max_batch_size: "four"'), "identity")
config_kind("bracket_open", "line|end", more("input ["), "identity")
config_kind("type_unknown", "FP99", swapped("FP32", "FP99"), "identity")
config_kind("dims_negative", "-7|dims", swapped("[1]", "[-7]"), "identity")
config_kind("input_twice", "INPUT0", lambda t: t + t[t.index("input ["):t.index("output [")], "identity")
config_kind("policy_without_versions", "9|version", more("version_policy { specific { versions: [ 9 ] } }"), "identity")
config_kind("instances_too_many", "9999|instance", more("instance_group { count: 9999 }"), "identity")
config_kind("instances_on_no_gpu", "GPU|gpu", more("instance_group { kind: KIND_GPU gpus: [ 77 ] }"), "identity")
config_kind("preferred_above_the_most", "preferred", more("dynamic_batching { preferred_batch_size: [ 64 ] }"), "identity")
config_kind("warm_up_of_an_unknown_input", "INPUT9", more(
    'model_warmup [ { name: "w" inputs { key: "INPUT9" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]'), "identity")
config_kind("two_schedulers", "ensemble|scheduling", more("ensemble_scheduling { }"), "identity")
config_kind("another_kind_of_model", "model.onnx|no model file|onnx", swapped('"identity"', '"onnxruntime"'), "identity")
config_kind("bytes", "line|character|byte", lambda t: "\x00\x01\x02", "identity")


@kind("UTF-8|character|line", "identity")
def config_is_no_utf8(folder):
    write(folder, (folder / "config.pbtxt").read_bytes().replace(b"INPUT0", b"INPUT\xff"), "config.pbtxt")


@kind("config.pbtxt.*([Pp]ermission|permitted)|[Pp]ermission", "identity")
def config_unreadable(folder):
    (folder / "config.pbtxt").chmod(0)


@kind("config.pbtxt", "identity")
def config_is_a_folder(folder):
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").mkdir()


@kind("link", "identity")
def config_links_to_itself(folder):
    (folder / "config.pbtxt").unlink()
    os.symlink("config.pbtxt", folder / "config.pbtxt")


@kind("bytes|large", "identity")
def config_huge(folder):
    write(folder, (folder / "config.pbtxt").read_text() + "# " + "x" * (64 << 20), "config.pbtxt")


# --- plug-ins that fail ---------------------------------------------------------------------------------------------

FAULT = 'parameters { key: "fault" value { string_value: "%s" } }'


def fault(name, says, what, extra=""):
    config_kind(name, says, lambda t: t.replace('"identity"', '"fault"') + FAULT % what + "\n" + extra, "identity")


fault("plug_in_does_not_open", "does not open, as its parameters ask", "open_error")
fault("plug_in_instance_does_not_open", "instance does not open", "instance_error")
fault("plug_in_parameter_unknown", "none of those known", "something")
fault("plug_in_parameter_is_no_number", "fault_delay_us", "none",
      'parameters { key: "fault_delay_us" value { string_value: "soon" } }\n')
fault("plug_in_fails_its_warm_up", "warm", "execute_error",
      'model_warmup [ { name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } } ]\n')

# --- ensembles ------------------------------------------------------------------------------------------------------

STEP = 'step [ { model_name: "%s" model_version: %s input_map { key: "INPUT0" value: "%s" } output_map { key: "OUTPUT0" value: "%s" } } ]'


def ensemble(step, type_="FP32", extra=""):
    return (f'platform: "ensemble"\ninput [ {{ name: "INPUT0" data_type: TYPE_{type_} dims: [1] }} ]\n'
            f'output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] }} ]\nensemble_scheduling {{ {step} {extra} }}\n')


def ensemble_kind(name, says, text):
    config_kind(name, says, lambda t: text, "ensemble")


ensemble_kind("step_of_an_unknown_model", "nobody", ensemble(STEP % ("nobody", -1, "INPUT0", "OUTPUT0")))
ensemble_kind("step_of_an_unknown_version", "9", ensemble(STEP % ("identity", 9, "INPUT0", "OUTPUT0")))
ensemble_kind("step_that_is_itself", "itself|cycle|circular|ensemble", ensemble(STEP % ("ensemble", -1, "INPUT0", "OUTPUT0")))
ensemble_kind("step_from_nothing", "nothing", ensemble(STEP % ("identity", -1, "nothing", "OUTPUT0")))
ensemble_kind("output_of_no_step", "OUTPUT0", ensemble(STEP % ("identity", -1, "INPUT0", "elsewhere")))
ensemble_kind("step_of_another_type", "INT64|FP32|type", ensemble(STEP % ("identity", -1, "INPUT0", "OUTPUT0"), type_="INT64"))
ensemble_kind("steps_in_a_circle", "circle|cycle", ensemble(
    STEP % ("identity", -1, "b", "a"), extra=" ".join([STEP % ("identity", -1, "a", "b"), STEP % ("identity", -1, "INPUT0", "OUTPUT0")])))
ensemble_kind("no_steps", "step", ensemble(""))


# --- the test -------------------------------------------------------------------------------------------------------


def test_there_are_enough():
    assert len(KINDS) >= 50
    assert len({p.id for p in KINDS}) == len(KINDS)


@pytest.fixture(scope="module")
def service(module_server, tmp_path_factory):
    base = tmp_path_factory.mktemp("broken")
    repo = repository(base / "repo", identity=model("identity", X),
                      ensemble=ensemble(STEP % ("identity", -1, "INPUT0", "OUTPUT0")), onnx=ONNX_CONFIG)
    (repo / "onnx" / FILE).write_bytes(GOOD)
    shutil.copytree(repo, base / "whole")
    s = module_server(*EXPLICIT, "--load-model", "*", models=[repo])
    loads = {name: Oracle(s, name, 1, 40) for name in ("onnx", "identity", "ensemble")}
    s.repo, s.whole, s.loads = repo, base / "whole", loads
    yield s
    for name, o in loads.items():
        o.end()
        assert not o.errors and o.sent == o.answered > 20, (name, o.errors[:3])


def restore(s, name):
    """The whole model again, as new files."""
    old = s.repo / name
    if old.is_dir() and not old.is_symlink():
        old.chmod(0o755)
        for each in old.iterdir():
            if each.is_dir() and not each.is_symlink():
                each.chmod(0o755)
        shutil.rmtree(old)
    elif os.path.lexists(old):
        old.unlink()
    shutil.copytree(s.whole / name, old)
    r = ask(s, "POST", f"/v2/repository/models/{name}/load")
    assert r.status == 200, r


@pytest.mark.parametrize("name,breaks,says", KINDS)
def test_broken(service, name, breaks, says):
    s, o = service, service.loads[name]
    try:
        before = o.answered
        breaks(s.repo / name)
        r = ask(s, "POST", f"/v2/repository/models/{name}/load")
        assert r.status >= 400, r
        text = r.json()["error"]
        assert f"failed to load '{name}'" in text
        assert re.search(says, text.split(f"failed to load '{name}'", 1)[1]), text
        assert len(text.encode()) < 700 and not re.search(r"/tmp/|[\x00-\x1f]", text), text
        state, reason = index(s)[(name, "1")]
        assert state == "READY" and "the last load failed" in reason, (state, reason)
        r = ask(s, "POST", f"/v2/models/{name}/infer", BODY)
        assert r.status == 200 and r.json()["outputs"][0]["data"] == [7] and r.json()["model_version"] == "1", r
        assert ask(s, "GET", "/v2/health/ready").status == 200
        assert not o.errors and o.answered >= before, o.errors[:3]
    finally:
        restore(s, name)
    state, reason = index(s)[(name, "1")]
    assert (state, reason) == ("READY", ""), reason
