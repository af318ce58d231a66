"""Models of the plug-ins that exist for tests (identity, delay, fault): a config.pbtxt and no file.

    repository(folder, a=model("identity", [("INPUT0", "FP32", [4])], batch=8),
                       slow=model("delay", [("INPUT0", "FP32", [1])], delay_us=1000000))
"""

from pathlib import Path


def model(backend, inputs, outputs=None, batch=0, extra="", **parameters):
    """Text of a configuration. inputs: (name, datatype, dims); outputs: the same renamed."""
    outputs = outputs or [(n.replace("INPUT", "OUTPUT"), t, d) for n, t, d in inputs]

    def side(kind, specs):
        rows = [f'  {{ name: "{n}" data_type: TYPE_{"STRING" if t == "BYTES" else t} dims: {list(d)} }}'
                for n, t, d in specs]
        return f"{kind} [\n" + ",\n".join(rows) + "\n]\n"

    text = f'backend: "{backend}"\nmax_batch_size: {batch}\n' + side("input", inputs) + side("output", outputs)
    for key, value in parameters.items():
        text += f'parameters {{ key: "{key.replace("__", ".")}" value {{ string_value: "{value}" }} }}\n'
    return text + extra


def repository(folder, **models):
    folder = Path(folder)
    for name, text in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(text)
    return folder


def slow(delay_us, extra="", batch=0):
    """One FP32 in, the same out, after a sleep; a request may ask for another with delay_us."""
    return model("delay", [("INPUT0", "FP32", [1])], batch=batch, delay_us=delay_us, extra=extra)
