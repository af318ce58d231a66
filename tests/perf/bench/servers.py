"""naru and its peers, each started on a free port and ended by its id.

Every server has: name, process, http (port), grpc (port or None), pids().
"""
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import time
import urllib.error
import urllib.request

from . import process
from .process import BUILD, DEPS, WORK, Unavailable

HERE = pathlib.Path(__file__).resolve().parent
LISTENING = re.compile(r"^  (\S+):(\d+)  (.+)$")


def find(tool, package):
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Unavailable(f"{tool} is not installed ({package})")
    return path


NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": 1}  # for peers, as naru does by itself: a thread less, and no uploads


class Server:
    name = "?"
    grpc = None
    process = None

    def pids(self):
        return process.descendants(self.process.pid)

    def url(self, path, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.grpc if scheme == 'grpc' else self.http}{path}"

    def stop(self):
        process.stop(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_http(self, path, limit_s, every_s=0.05):
        """Until `path` answers 200."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Unavailable(f"{self.name} ended at its start; see {self.log}")
            try:
                with urllib.request.urlopen(self.url(path), timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(every_s)
        self.stop()
        raise Unavailable(f"{self.name} was not ready within {limit_s} s; see {self.log}")


class Naru(Server):
    """build/naru serve REPOSITORY with no option that changes how it serves."""

    def __init__(self, repository, cores=(process.SERVER_CORE,), flags=(), name="naru", wrap=(), env=None,
                 ready_s=60, binary=None):
        self.name, self.log = name, WORK / f"{name}.log"
        line = [*wrap, binary or os.environ.get("NARU_BINARY") or BUILD / "naru", "serve", repository, "--http-port", 0,
                "--grpc-port", 0, "--metrics-port", 0, "--no-keep-gallery", *flags]
        self.process = process.start(line, cores, self.log, stdout=subprocess.PIPE,
                                     env=process.clean_env(**(env or {})))
        self.banner, ports, text = [], {}, b""
        end = time.monotonic() + ready_s
        while not re.search(rb"^ready after \d+ ms$", text, re.M):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            if not piece:
                process.stop(self.process)
                raise Unavailable(f"naru serve {repository} was not ready; see {self.log}\n{text.decode()}")
            text += piece
        self.banner = text.decode().splitlines()
        for line in self.banner:
            found = LISTENING.match(line)
            if found:
                ports[found.group(3)] = int(found.group(2))
        self.http, self.grpc = ports["http"], ports["grpc"]

    def pids(self):
        return [self.process.pid]


class Nginx(Server):
    """One worker that answers every request with the same bytes: the floor of HTTP/1.1."""

    name = "nginx"

    def __init__(self, body, cores=(process.SERVER_CORE,)):
        where = WORK / "nginx"
        where.mkdir(parents=True, exist_ok=True)
        self.log, self.http = where / "error.log", process.free_port()
        text = body.decode().replace("\\", "\\\\").replace('"', '\\"').replace("$", "")
        (where / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {where}/pid; error_log {self.log} error;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; default_type application/json;
  client_body_temp_path {where}; proxy_temp_path {where}; fastcgi_temp_path {where};
  uwsgi_temp_path {where}; scgi_temp_path {where}; client_max_body_size 64m;
  server {{ listen 127.0.0.1:{self.http}; location / {{ return 200 "{text}"; }} }}
}}
""")
        self.process = process.start([find("nginx", "package nginx"), "-p", where, "-c", where / "nginx.conf"],
                                     cores, self.log)
        self.wait_http("/", 10)


class Nghttpd(Server):
    """One worker that answers from one small file: the floor of HTTP/2."""

    name = "nghttpd"

    def __init__(self, path, body, cores=(process.SERVER_CORE,)):
        where = WORK / "nghttpd"
        file = where / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
        self.log, self.http = WORK / "nghttpd.log", process.free_port()
        self.grpc = self.http
        self.process = process.start([find("nghttpd", "package nghttp2-server"), "--no-tls", "-n", 1, "-d", where,
                                      "-a", "127.0.0.1", self.http], cores, self.log)
        wait_port(self)


def wait_port(server, limit_s=10):
    import socket
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", server.http), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    server.stop()
    raise Unavailable(f"{server.name} did not listen; see {server.log}")


def peer_python(name):
    python = DEPS / "bench" / name / "bin" / "python"
    if not python.exists():
        raise Unavailable(f"its Python packages are not installed (scripts/setup --group bench says why: {name})")
    return python


class FastApi(Server):
    """A web framework around ONNX Runtime, written the usual way: one process, one thread of models."""

    name = "FastAPI"

    def __init__(self, model, cores=(process.SERVER_CORE,)):
        self.log, self.http = WORK / "fastapi.log", process.free_port()
        self.process = process.start(
            [peer_python("fastapi"), "-m", "uvicorn", "peer_fastapi:app", "--app-dir", HERE, "--host", "127.0.0.1",
             "--port", self.http, "--no-access-log", "--log-level", "warning"],
            cores, self.log, env=process.clean_env(MODEL=model, PYTHONDONTWRITEBYTECODE=1, **NO_TELEMETRY))
        self.wait_http("/v2/health/ready", 60)


class MlServer(Server):
    name = "MLServer"

    def __init__(self, model, cores=(process.SERVER_CORE,)):
        python, where = peer_python("mlserver"), WORK / "mlserver"
        where.mkdir(parents=True, exist_ok=True)
        self.log, self.http = WORK / "mlserver.log", process.free_port()
        settings = {"host": "127.0.0.1", "http_port": self.http, "grpc_port": process.free_port(),
                    "metrics_port": process.free_port(), "parallel_workers": 0, "debug": False,
                    "logging_settings": {"version": 1, "root": {"level": "ERROR"}}, "use_structured_logging": False}
        (where / "settings.json").write_text(json.dumps(settings))
        (where / "model-settings.json").write_text(json.dumps(
            {"name": "linear", "implementation": "peer_mlserver.Linear", "parameters": {"uri": str(model)}}))
        self.process = process.start([python.parent / "mlserver", "start", where], cores, self.log, cwd=where,
                                     env=process.clean_env(PYTHONPATH=HERE, PYTHONDONTWRITEBYTECODE=1, **NO_TELEMETRY))
        self.wait_http("/v2/models/linear/ready", 90)


class Triton(Server):
    """The real Triton server that nvidia-pytriton bundles. It has the Python backend only, so the model
    runs in ONNX Runtime in its Python process; the CPU time of both is counted."""

    name = "Triton"

    def __init__(self, model, cores=(process.SERVER_CORE,)):
        python = peer_python("triton")
        package = next(python.parent.parent.glob("lib/python3*/site-packages/pytriton/tritonserver"), None)
        if package is None:
            raise Unavailable("nvidia-pytriton holds no tritonserver")
        version = package.parents[2].name.removeprefix("python")
        stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise Unavailable(f"nvidia-pytriton has no stub for Python {version}")
        backends = WORK / "triton" / "backends"
        shutil.rmtree(WORK / "triton", ignore_errors=True)
        shutil.copytree(package / "backends" / "python", backends / "python")
        shutil.copy2(stub, backends / "python" / "triton_python_backend_stub")
        where = WORK / "triton" / "models" / "linear"
        (where / "1").mkdir(parents=True)
        shutil.copy2(HERE / "peer_triton.py", where / "1" / "model.py")
        shutil.copy2(model, where / "1" / "model.onnx")
        (where / "config.pbtxt").write_text("""backend: "python" max_batch_size: 64
input [ { name: "X" data_type: TYPE_FP32 dims: [ 16 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
dynamic_batching {} instance_group [ { count: 1 kind: KIND_CPU } ]
""")
        self.log, self.http, self.grpc = WORK / "triton.log", process.free_port(), process.free_port()
        libraries = package.parents[1] / "nvidia_pytriton.libs"
        self.process = process.start(
            [package / "bin" / "tritonserver", "--model-repository", where.parent, "--backend-directory", backends,
             "--http-address", "127.0.0.1", "--http-port", self.http, "--grpc-address", "127.0.0.1", "--grpc-port",
             self.grpc, "--metrics-port", process.free_port(), "--metrics-address", "127.0.0.1", "--allow-gpu-metrics",
             "false", "--log-info", "false"],
            cores, self.log,
            env=process.clean_env(PYTHONPATH=package.parents[1], PYTHONDONTWRITEBYTECODE=1, LD_LIBRARY_PATH=libraries, **NO_TELEMETRY,
                                  PATH=f"{python.parent}:{os.environ['PATH']}"))
        self.wait_http("/v2/health/ready", 60)
