"""What a server counts about itself, and requests that run until the test says otherwise.

    busy = Held(s)                          # a request of the model `slow` that runs, for an hour
    c.send(message("POST", SLOW, one()))
    wait_until(lambda: waiting(s) == 1)     # no sleep: it waits because the first one runs
    busy.release()                          # the client goes away, the plug-in's sleep ends
    assert c.response().status == 200

The model is one of the delay plug-in (plugin_models.slow): how long a request sleeps is its own matter.
"""

import json
import math
import re

from conftest import wait_until
from rawhttp import H1, ask, message

SLOW = "/v2/models/slow/infer"
HOUR_US = 3600 * 1000000


def metric(s, name, **labels):
    """The sum of the rows of /metrics with this name and these labels; there must be one."""
    text = ask(s.metrics, "GET", "/metrics").body.decode()
    rows = [line for line in text.splitlines() if re.match(re.escape(name) + r"[ {]", line)]
    rows = [line for line in rows if all(f'{k}="{v}"' in line for k, v in labels.items())]
    assert rows, f"no {name} {labels}"
    return sum(float(line.split()[-1]) for line in rows)


def waiting(s, model="slow"):
    return metric(s, "nv_inference_pending_request_count", model=model)


def begun(s, model="slow"):
    """Executions that began, whether or not they have ended."""
    return metric(s, "naru_batches_sealed_total", model=model)


def one(value=0, delay_us=None, shape=(1,)):
    """A request as JSON, every element `value`, with a sleep of its own."""
    asked = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": shape, "data": [value] * math.prod(shape)}]}
    if delay_us is not None:
        asked["parameters"] = {"delay_us": delay_us}
    return json.dumps(asked)


class Held:
    """A request on a connection of its own that runs when the constructor returns."""

    def __init__(self, s, model="slow", shape=(1,), delay_us=HOUR_US):
        before = begun(s, model)
        self.connection = H1(s.http)
        self.connection.send(message("POST", f"/v2/models/{model}/infer", one(delay_us=delay_us, shape=shape)))
        wait_until(lambda: begun(s, model) == before + 1, what=f"an execution of {model}")

    def release(self):
        self.connection.abort()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()
