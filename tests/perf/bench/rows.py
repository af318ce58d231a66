"""The rows of the table: what is measured, beside whom, and what it must reach.

Every row is a function that takes the context (rounds, seconds) and returns a Table. In a row where
several take part, they are measured in turn in every round, the order turning round, and a ratio is
made from figures of the same round, so that a busy minute of the machine hits both.
"""
import json
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field

from . import bodies, counts, figures, process, servers
from .figures import number, ratios, spread
from .process import BUILD, CLIENT_CORE, WORK, Unavailable

LOAD = BUILD / "tests" / "perf" / "naru-load"
INFER = "/v2/models/linear/infer"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
X = bodies.numbers(16)
JSON_TYPE = ["Content-Type: application/json"]


@dataclass
class Table:
    key: str
    title: str
    must: str
    head: list
    rows: list
    verdicts: list = field(default_factory=list)  # (what, measured, limit, reached)
    notes: list = field(default_factory=list)


class Context:
    def __init__(self, rounds, seconds, say):
        self.rounds, self.seconds, self.say = rounds, seconds, say
        self.left_out = []

    def models(self, name):
        return WORK / "models" / name

    def try_start(self, make):
        """A peer, or None with the reason noted."""
        try:
            return make()
        except Unavailable as e:
            text = str(e).splitlines()[0]
            if text not in self.left_out:
                self.left_out.append(text)
                self.say(f"left out: {text}")
            return None


# ---------------------------------------------------------------- measuring

def request_file(name, content):
    path = WORK / "requests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def ask(server, body, fields=(), path=INFER):
    """One request with another client, so that what is measured is known to be a real answer."""
    headers = dict(f.split(": ", 1) for f in fields)
    request = urllib.request.Request(server.url(path), data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def load(server, *arguments, **options):
    """One run of naru-load. Figures: cpu_us per request (server), rate, p50_us, p99_us, …
    A shared machine may stand still for a whole window: a run without any answer or error is repeated."""
    for _ in range(3):
        r = load_once(server, *arguments, **options)
        if any(r["outcomes"].values()):
            break
    bad = {k: v for k, v in r["outcomes"].items() if v and k != "ok"}
    if bad or not r["outcomes"]["ok"]:
        raise Unavailable(f"{server.name} did not answer well: {r['outcomes']}")
    n = r["answered"]
    return {"cpu_us": r["watched_cpu_ns"] / n / 1e3, "rate": r["rate"], "one_rate": n / r["answered_s"],
            "p50_us": r["response_us"]["p50"], "p99_us": r["response_us"]["p99"], "client_us": r["client_cpu_ns"] / n / 1e3,
            "late_us": r["send_delay_us"]["p99"], "late_p50_us": r["send_delay_us"]["p50"]}


def load_once(server, path, body, fields=(), scheme="http", cores=(CLIENT_CORE,), **options):
    line = [LOAD, "--json", "--url", server.url(path, scheme), "--body", body]
    for f in fields:
        line += ["--header", f]
    for name, value in options.items():
        line += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    for pid in server.pids():
        line += ["--pid", pid]
    with process.on_cores(*cores):
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{server.name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def compete(ctx, runners):
    """runners: name -> function that gives figures. Returns name -> list of figures, one per round.
    Whoever fails once is left out from then on, and from the table."""
    results = {name: [] for name in runners}
    for i in range(ctx.rounds):
        order = list(results)
        for name in (order if i % 2 == 0 else order[::-1]):
            if name not in results:
                continue
            try:
                results[name].append(runners[name]())
            except Unavailable as e:
                del results[name]
                ctx.left_out.append(f"{name}: {e}")
                ctx.say(f"left out: {name}: {e}")
    if not results:
        raise Unavailable("nobody could be measured")
    return results


def column(results, name, key):
    return [r[key] for r in results.get(name, [])]


def ratio_text(results, name, base, key):
    if name not in results or base not in results or name == base:
        return "1" if name == base else "–"
    return spread(ratios(column(results, name, key), column(results, base, key)))


def verdict(results, what, ours, base, key, limit):
    if ours not in results or base not in results:
        return []
    value = figures.median(ratios(column(results, ours, key), column(results, base, key)))
    return [(what, f"{number(value)} ×", f"≤ {limit} × {base}", value <= limit)]


HTTP_HEAD = ["server", "CPU µs/request", "ratio", "requests/s", "p50 µs", "p99 µs"]


def http_rows(results, base):
    return [[name, spread(column(results, name, "cpu_us")), ratio_text(results, name, base, "cpu_us"),
             number(figures.median(column(results, name, "rate"))), number(figures.median(column(results, name, "p50_us"))),
             number(figures.median(column(results, name, "p99_us")))] for name in results]


# ---------------------------------------------------------------- HTTP/1.1

def tiny_request(kind, batch=True):
    shape = (1, 16) if batch else (16,)
    if kind == "binary":
        fields, body = bodies.binary_tensor("X", shape, X)
        return fields, body
    return JSON_TYPE, bodies.json_tensor("X", shape, X)


def http_row(ctx, key, title, must, limit, model, kind, connections, peers=(), p50_limit=None):
    """naru beside nginx with an answer of the same length, and the peers that can do it."""
    fields, body = tiny_request(kind, batch=model == "tiny")
    file = request_file(f"{key}", body)
    onnx = ctx.models(model) / "linear" / "1" / "model.onnx"
    started = []
    try:
        naru = servers.Naru(ctx.models(model))
        started.append(naru)
        answer = ask(naru, body, fields)
        nginx = ctx.try_start(lambda: servers.Nginx(b" " * len(answer)))
        others = [ctx.try_start(lambda p=p: p(onnx)) for p in peers]
        started += [s for s in [nginx, *others] if s]
        run = {s.name: lambda s=s: load(s, INFER, file, fields, connections=connections, seconds=ctx.seconds)
               for s in started}
        for f in run.values():  # warm: placement is proven, caches are filled
            f()
        results = compete(ctx, run)
    finally:
        for s in started:
            s.stop()
    table = Table(key, title, must, HTTP_HEAD, http_rows(results, "nginx"),
                  verdict(results, "server CPU per request", "naru", "nginx", "cpu_us", limit))
    if p50_limit:
        table.verdicts += verdict(results, "p50 latency", "naru", "nginx", "p50_us", p50_limit)
    table.notes.append(f"{connections} connection{'s' * (connections > 1)}, closed loop; request {len(body)} bytes of "
                       f"body, answer {len(answer)} bytes (nginx answers as many); generator "
                       f"{number(figures.median(column(results, 'naru', 'client_us')))} µs of CPU per request")
    if "Triton" in results:
        table.notes.append("Triton with its Python backend; its CPU time includes the Python process")
    return table


PEERS = (servers.Triton, servers.FastApi, servers.MlServer)


def tiny_json(ctx):
    return http_row(ctx, "tiny-json", "Tiny batchable model, HTTP/1.1 JSON, 32 connections", "CPU ≤ 1.4 × nginx", 1.4,
                    "tiny", "json", 32, PEERS)


def tiny_binary(ctx):
    return http_row(ctx, "tiny-binary", "Tiny batchable model, HTTP/1.1 binary tensors, 32 connections",
                    "CPU ≤ 1.4 × nginx", 1.4, "tiny", "binary", 32, (servers.Triton,))


def single_json(ctx):
    return http_row(ctx, "single-json", "Tiny model without a batch dimension, JSON, 32 connections",
                    "CPU ≤ 2.2 × nginx", 2.2, "single", "json", 32)


def single_binary(ctx):
    return http_row(ctx, "single-binary", "Tiny model without a batch dimension, binary tensors, 32 connections",
                    "CPU ≤ 2.2 × nginx", 2.2, "single", "binary", 32)


def one_json(ctx):
    return http_row(ctx, "one-json", "Tiny batchable model, JSON, one connection",
                    "CPU ≤ 1.8 × nginx, p50 ≤ 1.5 × nginx", 1.8, "tiny", "json", 1, (servers.Triton,), p50_limit=1.5)


def one_binary(ctx):
    return http_row(ctx, "one-binary", "Tiny batchable model, binary tensors, one connection",
                    "CPU ≤ 1.8 × nginx, p50 ≤ 1.5 × nginx", 1.8, "tiny", "binary", 1, (servers.Triton,), p50_limit=1.5)


def poisson(ctx):
    """Open loop at half of what each does in a closed loop."""
    fields, body = tiny_request("json")
    file = request_file("poisson", body)
    started = []
    try:
        naru = servers.Naru(ctx.models("tiny"))
        started.append(naru)
        nginx = ctx.try_start(lambda: servers.Nginx(b" " * len(ask(naru, body, fields))))
        started += [nginx] if nginx else []
        peak = {s.name: max(load(s, INFER, file, fields, connections=32, seconds=ctx.seconds)["rate"] for _ in range(2))
                for s in started}
        seeds = iter(range(1, 1000))
        run = {s.name: lambda s=s: load(s, INFER, file, fields, connections=32, max_connections=256, poisson=True,
                                        rate=peak[s.name] / 2, seed=next(seeds), seconds=ctx.seconds) for s in started}
        results = compete(ctx, run)
    finally:
        for s in started:
            s.stop()
    head = ["server", "planned/s", "p50 µs", "p99 µs", "CPU µs/request", "late p50 µs", "late p99 µs"]
    rows = [[name, number(peak[name] / 2), spread(column(results, name, "p50_us")), spread(column(results, name, "p99_us")),
             spread(column(results, name, "cpu_us")), number(figures.median(column(results, name, "late_p50_us"))),
             number(figures.median(column(results, name, "late_us")))] for name in results]
    return Table("poisson", "Tiny batchable model, JSON, open loop with Poisson arrivals at half load", "", head, rows,
                 notes=["latency from the scheduled instant; half of the closed-loop rate of each server; "
                        "“late”: how long after its instant a request was sent, which is part of the latency"])


# ---------------------------------------------------------------- gRPC

def h2load(server, path, frame, streams, requests):
    tool = servers.find("h2load", "package nghttp2-client")
    line = [tool, "-t", 1, "-c", 32, "-m", streams, "-n", requests, "-d", frame, "-H", "content-type: application/grpc",
            "-H", "te: trailers", f"http://127.0.0.1:{server.grpc}{path}"]
    pids = server.pids()
    before, began = process.cpu_ns(pids), time.monotonic()
    with process.on_cores(CLIENT_CORE):
        done = subprocess.run([str(w) for w in line], capture_output=True, text=True)
    spent, took = process.cpu_ns(pids) - before, time.monotonic() - began
    if f" {requests} succeeded" not in done.stdout:
        raise Unavailable(f"{server.name}: h2load: {done.stdout[-400:]}{done.stderr[-200:]}")
    return {"cpu_us": spent / requests / 1e3, "rate": requests / took}


def grpc_row(ctx, key, title, must, limit, streams):
    message = bodies.grpc_message("linear", "X", (1, 16), X)
    plain, frame = request_file(f"{key}-message", message), request_file(f"{key}-frame", bodies.grpc_frame(message))
    started = []
    try:
        naru = servers.Naru(ctx.models("tiny"))
        started.append(naru)
        floor = ctx.try_start(lambda: servers.Nghttpd(GRPC_INFER, b" " * bodies.grpc_answer_bytes("linear", "Y", 2, 4)))
        triton = ctx.try_start(lambda: servers.Triton(ctx.models("tiny") / "linear" / "1" / "model.onnx"))
        started += [s for s in (floor, triton) if s]
        run, latency = {}, {}
        for s in started:
            scheme, file = ("h2c", frame) if s is floor else ("grpc", plain)
            first = load(s, GRPC_INFER, file, scheme=scheme, connections=32, streams=streams, seconds=ctx.seconds)
            n = max(64, int(first["rate"] * ctx.seconds))
            latency[s.name] = lambda s=s, scheme=scheme, file=file: load(
                s, GRPC_INFER, file, scheme=scheme, connections=32, streams=streams, seconds=ctx.seconds)
            run[s.name] = lambda s=s, n=n: {**latency[s.name](), **h2load(s, GRPC_INFER, frame, streams, n)}
        results = compete(ctx, run)
    finally:
        for s in started:
            s.stop()
    table = Table(key, title, must, HTTP_HEAD, http_rows(results, "nghttpd"),
                  verdict(results, "server CPU per request", "naru", "nghttpd", "cpu_us", limit) if limit else [])
    table.notes.append("CPU and rate from h2load, latencies from naru-load in the same round; nghttpd answers from a file")
    return table


def grpc(ctx):
    return grpc_row(ctx, "grpc", "Tiny batchable model, gRPC unary, 32 connections, 1 request in flight each",
                    "CPU ≤ 1.5 × nghttpd", 1.5, 1)


def grpc_streams(ctx):
    return grpc_row(ctx, "grpc-streams", "Tiny batchable model, gRPC unary, 32 connections, 10 requests in flight each",
                    "", None, 10)


# ---------------------------------------------------------------- pictures

def picture(ctx):
    """1x3x224x224 through a model that gives it back: what moving a tensor costs."""
    values = bodies.numbers(3 * 224 * 224)
    fields, binary = bodies.binary_tensor("X", bodies.PICTURE, values)
    text = bodies.json_tensor("X", bodies.PICTURE, values)
    cases = {"JSON both ways": (JSON_TYPE, text, 10e3), "binary both ways": (fields, binary, 600)}
    with servers.Naru(ctx.models("picture")) as naru:
        run = {}
        for name, (head, body, _) in cases.items():
            file = request_file(f"picture-{name.split()[0].lower()}", body)
            run[name] = lambda file=file, head=head: load(naru, "/v2/models/identity/infer", file, head,
                                                          connections=1, seconds=ctx.seconds)
            run[name]()
        results = compete(ctx, run)
    rows = [[name, spread([v / 1e3 for v in column(results, name, "p50_us")]),
             number(figures.median(column(results, name, "p99_us")) / 1e3),
             spread([v / 1e3 for v in column(results, name, "cpu_us")])] for name in results]
    verdicts = []
    for name, (_, _, limit_us) in cases.items():
        if name in results:
            value = figures.median(column(results, name, "p50_us"))
            verdicts.append((f"p50, {name}", f"{number(value / 1e3)} ms", f"≤ {limit_us / 1e3:g} ms", value <= limit_us))
    return Table("picture", "1×3×224×224 FP32 identity, one connection", "p50: JSON ≤ 10 ms, binary ≤ 0.6 ms",
                 ["request and answer", "p50 ms", "p99 ms", "CPU ms/request"], rows, verdicts,
                 [f"{len(text)} bytes of JSON, {len(binary)} of binary"])



# ---------------------------------------------------------------- ResNet-50

def ort_library():
    found = sorted((process.DEPS / "onnxruntime" / "lib").glob("libonnxruntime.so.*"))
    if not found:
        raise Unavailable("ONNX Runtime is not installed; run: scripts/setup")
    return found[-1]


def ort_raw(model, **options):
    """The runtime alone, in a process of its own, on all cores."""
    line = [BUILD / "tests" / "perf" / "ort_raw", "--library", ort_library(), "--model", model]
    for name, value in options.items():
        line += [f"--{name}", value]
    done = subprocess.run([str(w) for w in line], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"ort_raw: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def resnet_naru(ctx, server, file, fields, connections, windows=8):
    """Images a second from Little's law, which the edges of the window do not disturb when answers
    come in batches."""
    r = load_once(server, "/v2/models/resnet50/infer", file, fields, cores=(), connections=connections,
                  seconds=windows * ctx.seconds, warm=1.5 * ctx.seconds, timeout=60)
    if r["answered"] == 0 or r["outcomes"]["ok"] != r["answered"]:
        raise Unavailable(f"naru did not answer well: {r['outcomes']}")
    return {"rate": connections * r["answered"] / r["answered_s"], "p50_us": r["response_us"]["p50"]}


IN_FLIGHT = (1, 4, 16)


def resnet_raw_name(threads, spin, callers, batch):
    del callers
    return f"ONNX Runtime alone: {threads} thread{'s' * (threads > 1)}{', spinning' * spin}, batch {batch}"


def resnet_row(ctx, key, title, batches):
    model = ctx.models("resnet_n" if len(batches) > 1 else "resnet") / "resnet50" / "1" / "model.onnx"
    sweep = {}
    for threads, spin, callers in ((1, 0, 1), (2, 0, 1), (2, 1, 1), (1, 0, 2)):
        for batch in batches:
            seconds = max(1, round(2 * ctx.seconds))
            r = ort_raw(model, threads=threads, spin=spin, callers=callers, batch=batch, seconds=seconds)
            sweep[threads, spin, callers, batch] = r["rows_per_s"]
    # what raw callers with as many pictures in flight can do: one connection cannot fill a batch of four
    best = {c: max((w for w in sweep if w[2] == 1 and w[3] <= c), key=sweep.get) for c in IN_FLIGHT}
    fields, body = bodies.binary_tensor("gpu_0/data_0", bodies.PICTURE, [0.5] * (3 * 224 * 224))
    file = request_file("resnet", body)
    raw = {way: resnet_raw_name(*way) for way in best.values()}
    with servers.Naru(ctx.models("resnet_n" if len(batches) > 1 else "resnet"), cores=()) as naru:
        ask(naru, body, fields, "/v2/models/resnet50/infer")
        run = {}
        for (threads, spin, callers, batch), name in raw.items():
            run[name] = lambda t=threads, s=spin, n=callers, b=batch: {"rate": ort_raw(
                model, threads=t, spin=s, callers=n, batch=b, seconds=max(1, round(5 * ctx.seconds)))["rows_per_s"]}
        for c in IN_FLIGHT:
            run[f"naru, c = {c}"] = lambda c=c: resnet_naru(ctx, naru, file, fields, c)
        results = compete(ctx, run)
    rows, verdicts = [], []
    for name in raw.values():
        if name in results:
            rows.append([name, spread(column(results, name, "rate")), "1", "–"])
    for c in IN_FLIGHT:
        who, against = f"naru, c = {c}", raw[best[c]]
        if who not in results or against not in results:
            continue
        ratio = ratios(column(results, who, "rate"), column(results, against, "rate"))
        rows.append([who, spread(column(results, who, "rate")), f"{spread(ratio)} of {against.removeprefix('ONNX Runtime alone: ')}",
                     number(figures.median(column(results, who, "p50_us")) / 1e3)])
        value = figures.median(ratio)
        verdicts.append((f"c = {c}", f"{100 * value:.1f} %", "≥ 98 % of ONNX Runtime alone", value >= 0.98))
    two = max(v for c, v in sweep.items() if c[2] == 2)
    return Table(key, title, "≥ 98 % of raw ONNX Runtime at every c", ["who", "images/s", "ratio", "p50 ms"], rows, verdicts,
                 ["both cores for everybody; no configuration; raw: the best of 1 or 2 threads, spinning or not, batch "
                  + ", ".join(map(str, batches)) + " up to c, found in a sweep of the same run, then measured in every round",
                  f"for comparison, two callers with one thread each: {number(two)} images/s in the sweep"])


def resnet(ctx):
    return resnet_row(ctx, "resnet", "ResNet-50, fixed batch of 1, images/s", (1,))


def resnet_n(ctx):
    return resnet_row(ctx, "resnet-n", "ResNet-50, free batch dimension, images/s", (1, 2, 4, 8))


RAW = [(1, 0), (2, 0), (2, 1), (2, 20)]  # threads; 0 no spinning, 1 without limit, else at most so many µs


def raw_setting(model, seconds, threads, spin, callers):
    limit = {"config": f"session.intra_op.spin_duration_us={spin}"} if spin > 1 else {}
    r = ort_raw(model, threads=threads, spin=int(spin > 0), callers=callers, seconds=seconds, **limit)
    return {"rate": r["rows_per_s"]}


def raw_name(threads, spin, callers):
    spinning = {0: "not spinning", 1: "spinning"}.get(spin, f"spinning {spin} µs")
    return f"{callers} × {threads} thread{'s' * (threads > 1)}" + (f", {spinning}" if threads > 1 else "")


def beside(ctx, model, server, file, fields, n):
    """Rows and verdicts beside n busy processes."""
    rows, verdicts = [], []
    with process.busy(n):
        seconds = max(1, round(ctx.seconds))
        callers = sorted({1, len(process.CORES), *IN_FLIGHT})
        sweep = {(t, spin, c): raw_setting(model, seconds, t, spin, c)["rate"]
                 for t, spin in RAW for c in callers if c <= 4 or t == 1}
        for c in IN_FLIGHT:
            best = max((s for s in sweep if s[2] <= c), key=sweep.get)
            resnet_naru(ctx, server, file, fields, c, 5)  # what it learns is not measured
            results = compete(ctx, {"raw": lambda best=best: raw_setting(model, max(1, round(2 * ctx.seconds)), *best),
                                    "naru": lambda c=c: resnet_naru(ctx, server, file, fields, c, 2)})
            ratio = ratios(column(results, "naru", "rate"), column(results, "raw", "rate"))
            rows.append([str(n), str(c), raw_name(*best), spread(column(results, "raw", "rate")),
                         spread(column(results, "naru", "rate")), spread(ratio)])
            limit = 0.95 if n else 0.98
            verdicts.append((f"beside {n}, c = {c}", spread(ratio), f"≥ {limit}", figures.median(ratio) >= limit))
            ctx.say(" | ".join(rows[-1]))
    return rows, verdicts


def busy(ctx):
    """ResNet-50 while other processes compute: naru without configuration beside the best raw setting."""
    model = ctx.models("resnet") / "resnet50" / "1" / "model.onnx"
    fields, body = bodies.binary_tensor("gpu_0/data_0", bodies.PICTURE, [0.5] * (3 * 224 * 224))
    file = request_file("resnet", body)
    table = Table("busy", "ResNet-50 beside busy processes, images/s", "≥ 95 % of the best raw setting; alone ≥ 98 %",
                  ["busy processes", "c", "best raw setting", "raw", "naru", "naru / raw"], [])
    with process.apart() as group, servers.Naru(ctx.models("resnet"), cores=()) as naru:
        ask(naru, body, fields, "/v2/models/resnet50/infer")
        for n in (0, 1, 2):
            rows, verdicts = beside(ctx, model, naru, file, fields, n)
            table.rows += rows
            table.verdicts += verdicts
    table.notes = ["raw: the best of callers (up to c) × threads, spinning, not, or for at most 20 µs, found in a sweep of the "
                   "same run, then measured in turn with naru; all of them and the busy processes share both cores as the kernel "
                   "likes", group.why_not or "all of it in a control group with 256 times the usual weight"]
    return table


# ---------------------------------------------------------------- memory, threads, start, malloc

def use(server, model, connections=32, seconds=0.5):
    """Traffic of every kind, so that memory and threads are those of a server at work."""
    for kind in ("json", "binary"):
        fields, body = tiny_request(kind)
        load(server, f"/v2/models/{model}/infer", request_file(f"use-{kind}", body), fields, connections=connections,
             seconds=seconds)
    load(server, GRPC_INFER, request_file("use-grpc", bodies.grpc_message(model, "X", (1, 16), X)), scheme="grpc",
         connections=connections, seconds=seconds)


# title -> repository, names of its models, most that it may take (MB)
TINY_MODELS = {"one tiny model": ("tiny", ["linear"], 36),
               "33 tiny models": ("many", [f"linear_{i:02}" for i in range(33)], 40)}


@dataclass
class Held:
    """MB resident: naru with no request yet, naru right after traffic, a process that holds ONNX Runtime and
    as many sessions; and the threads of naru."""
    idle: float
    used: float
    bare: float
    threads: int


def tiny_memory(ctx, title, seconds=0.2):
    repository, names, _ = TINY_MODELS[title]
    tiny = ctx.models("tiny") / "linear" / "1" / "model.onnx"
    bare = ort_raw(tiny, seconds=1, sessions=len(names))["rss_kb"] * 1.024 / 1000
    with servers.Naru(ctx.models(repository), cores=()) as naru:
        idle = process.rss_mb(naru.pids())
        for name in names:
            use(naru, name, seconds=seconds)
        return Held(idle, process.rss_mb(naru.pids()), bare, process.threads(naru.pids()))


def memory(ctx):
    """Resident memory after traffic, beside a process that holds ONNX Runtime and the model only."""
    rows, verdicts = [], []
    for title, (_, names, limit) in TINY_MODELS.items():
        held = tiny_memory(ctx, title, min(0.2, ctx.seconds))
        rows.append([title, number(held.used), number(held.bare), number(held.used / held.bare)])
        verdicts.append((f"memory, {title}", f"{number(held.used)} MB", f"≤ {limit} MB", held.used <= limit))
        n = held.threads
    model = ctx.models("resnet_n") / "resnet50" / "1" / "model.onnx"
    fields, body = bodies.binary_tensor("gpu_0/data_0", bodies.PICTURE, [0.5] * (3 * 224 * 224))
    file = request_file("resnet", body)
    raw = ort_raw(model, threads=min(2, len(process.CORES)), seconds=max(1, round(2 * ctx.seconds)))["rss_kb"] * 1.024 / 1000
    with servers.Naru(ctx.models("resnet_n"), cores=()) as naru:
        resnet_naru(ctx, naru, file, fields, 1)
        one = process.rss_mb(naru.pids())
        resnet_naru(ctx, naru, file, fields, 16)
        many = process.rss_mb(naru.pids())
    rows.append(["ResNet-50, one request at a time", number(one), number(raw), number(one / raw)])
    rows.append(["ResNet-50, after 16 at a time", number(many), "–", "–"])
    verdicts.append(("memory, ResNet-50 serving", f"{number(one / raw)} ×", "≤ 1.15 × the bare process", one <= 1.15 * raw))
    verdicts.append(("threads with 33 models", str(n), "≤ 16", n <= 16))
    return Table("memory", "Resident memory after traffic, and threads", "36 MB, 40 MB, 1.15 × bare; 16 threads",
                 ["serving", "naru MB", "ONNX Runtime alone MB", "ratio"], rows, verdicts,
                 [f"threads of the server with 33 models on {len(process.CORES)} cores: {n}",
                  "traffic: JSON, binary and gRPC from 32 connections on every tiny model",
                  "naru unmaps code that only opening models needed, ONNX Runtime alone keeps it; both without telemetry"])


def ready_ms(ctx, repository):
    """From starting the program to the first 200 of /v2/health/ready."""
    port = process.free_port()
    line = [BUILD / "naru", "serve", ctx.models(repository), "--http-port", port, "--no-allow-grpc",
            "--no-allow-metrics", "--no-keep-gallery"]
    began = time.monotonic()
    child = process.start(line, (), WORK / "start.log", env=process.clean_env())
    try:
        while time.monotonic() < began + 30:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as s:
                    s.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    if s.recv(4096).startswith(b"HTTP/1.1 200"):
                        return (time.monotonic() - began) * 1e3
            except OSError:
                pass
            time.sleep(0.0005)
    finally:
        process.stop(child)
    raise Unavailable("naru was not ready within 30 s")


def start(ctx):
    ready_ms(ctx, "five")  # files into the page cache
    times = {name: [] for name in ("five", "tiny")}
    for _ in range(ctx.rounds):
        for name in times:
            times[name].append(ready_ms(ctx, name))
    value = figures.median(times["five"])
    return Table("start", "From exec to the first 200 of /v2/health/ready", "≤ 120 ms with five small models",
                 ["models", "ms"], [["five", spread(times["five"])], ["one", spread(times["tiny"])]],
                 [("start to ready, five small models", f"{number(value)} ms", "≤ 120 ms", value <= 120)],
                 ["files in the page cache"])


MALLOC_KINDS = {"HTTP/1.1 JSON": "json", "HTTP/1.1 binary": "binary", "gRPC": "grpc"}
MALLOC_CASES = {f"{name}, {n} connection{'s' * (n > 1)}": (kind, n) for name, kind in MALLOC_KINDS.items() for n in (1, 32)}
MALLOC_CASES["gRPC, 32 connections, 10 streams each"] = ("grpc", 32, 10)


def count_mallocs(ctx, kind, connections, streams=1, requests=4096, tries=1):
    """Calls of malloc and its family per request, by difference of two counts of requests."""
    if kind == "grpc":
        path, scheme, head, content = GRPC_INFER, "grpc", [], bodies.grpc_message("linear", "X", (1, 16), X)
    else:
        path, scheme, (head, content) = INFER, "http", tiny_request(kind)
    file = request_file(f"mallocs-{kind}", content)
    many = {"streams": streams} if streams > 1 else {}
    return counts.mallocs_per_request(ctx.models("tiny"), lambda server, n: load(
        server, path, file, head, scheme=scheme, connections=connections, requests=n, warm=0, seconds=60,
        **many), requests, tries)


def mallocs(ctx):
    rows, verdicts = [], []
    for name, case in MALLOC_CASES.items():
        per = count_mallocs(ctx, *case)
        rows.append([name, number(per.own), number(per.library), number(per.runtime)])
        total = per.own + per.library
        verdicts.append((name, number(round(total, 2)), "0", total < 0.005))
    return Table("mallocs", "malloc calls per tiny request in steady state", "0 without ONNX Runtime's",
                 ["request", "naru's", "other libraries'", "ONNX Runtime's"], rows, verdicts)


# ---------------------------------------------------------------- self-tuning

TUNED = {"fixed_us": 10_000, "row_us": 500}  # what a batch of the model costs
FIXED = [(1, 0), *((rows, us) for rows in (4, 16, 64) for us in (0, 1000, 5000))]  # max_batch_size, delay
SHAPES = {  # (connections, part of the seconds); 0 connections: a pause
    "steady": [(16, 2.0)],
    "bursts": [(32, 0.7), (0, 0.3)] * 3,
    "ramps": [(n, 0.3) for n in (2, 4, 8, 16, 32, 48, 32, 16, 8, 4)],
}


def tuned_models():
    """One model that says nothing about batching, and one for each fixed setting."""
    where = WORK / "models" / "autotune"
    settings = {"default": ""}
    for rows, us in FIXED:
        settings[f"max {rows}, delay {us / 1000:g} ms"] = (
            f"max_batch_size: {rows} dynamic_batching {{ max_queue_delay_microseconds: {us} }}")
    for i, text in enumerate(settings.values()):
        folder = where / f"m{i}"
        (folder / "1").mkdir(parents=True, exist_ok=True)
        parameters = {"io": "FP32[-1,1]", "delay_us": TUNED["fixed_us"], "row_us": TUNED["row_us"]}
        (folder / "config.pbtxt").write_text('backend: "delay" ' + text + "".join(
            f' parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()))
    return where, {name: f"/v2/models/m{i}/infer" for i, name in enumerate(settings)}


def shaped(ctx, server, path, file, shape):
    """Answers a second over the parts of a traffic shape, each by Little's law (see load/client.h)."""
    answers = seconds = 0
    for connections, part in SHAPES[shape]:
        if connections == 0:
            time.sleep(part * ctx.seconds)
            continue
        r = load(server, path, file, JSON_TYPE, connections=connections, seconds=part * ctx.seconds, warm=0.05)
        answers += connections * r["one_rate"] * part
        seconds += part
    return {"rate": answers / seconds}


def autotune(ctx):
    """No configuration beside fixed ones."""
    repository, paths = tuned_models()
    file = request_file("autotune", bodies.json_tensor("INPUT0", (1, 1), [1.0]))
    names, rows, verdicts = list(paths), [], []
    # A model without any file of configuration may batch as far; one that has a file and leaves the size open gets 4, as
    # Triton does it. Here a file must name the plug-in, so the size is said on the command line.
    server = servers.Naru(repository, cores=(), flags=("--backend-config", "default-max-batch-size=64"))
    try:
        for shape in SHAPES:
            run = {name: lambda p=paths[name], s=shape: shaped(ctx, server, p, file, s) for name in names}
            run["default"]()  # learns, as it does within the first second of its life
            results = compete(ctx, run)
            rates = {name: column(results, name, "rate") for name in results}
            best = max((name for name in rates if name != "default"), key=lambda name: figures.median(rates[name]))
            ratio = ratios(rates["default"], rates[best])
            rows += [[shape if name == "default" else "", name, spread(rates[name]),
                      number(figures.median(ratios(rates["default"], rates[name])))] for name in rates]
            verdicts.append((f"{shape}: default / best fixed ({best})", spread(ratio), "≥ 0.95", figures.median(ratio) >= 0.95))
    finally:
        server.stop()
    table = Table("autotune", "Self-tuning beside fixed settings", "default ≥ 0.95 × best fixed setting",
                  ["traffic", "setting", "requests/s", "default / it"], rows, verdicts)
    table.notes.append(f"a model that takes {TUNED['fixed_us'] / 1000:g} ms a batch and {TUNED['row_us'] / 1000:g} ms a row "
                       "(delay plug-in); closed loops; steady: 16 connections; bursts: 32 of them, on and off; ramps: 2 to 48 "
                       "and back")
    return table


ALL = {"tiny-json": tiny_json, "tiny-binary": tiny_binary, "single-json": single_json, "single-binary": single_binary,
       "one-json": one_json, "one-binary": one_binary, "poisson": poisson, "grpc": grpc, "grpc-streams": grpc_streams,
       "picture": picture,
       "resnet": resnet, "resnet-n": resnet_n, "busy": busy, "memory": memory, "start": start, "mallocs": mallocs,
       "autotune": autotune}
