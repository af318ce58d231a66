"""Whether what clients of one server saw can be explained by one order of what they did.

A history is a list of Op. Each has the model that it was about, when it was called and when it returned (any clock
that goes forward), and:

  deploy   value: the version that was put into the repository (its folder renamed into place)
  load     ok None: nobody knows whether it took effect (an error, no answer)
  unload   likewise
  read     value: the version that answered, or that the index said is READY; None: there was none

`check(history, start)` looks for an order of each model's operations in which each takes effect at one moment
between its call and its return, every load makes the newest version the one that serves, every unload makes it
none, and every read sees what serves. It returns the first operation that fits into no such order, or None. `start`
is what serves at first, by model; a history is of one life of one process (see `lives`).

How: the events are gone through in their order in time. Kept is the set of all situations that are possible: what
serves, and which of the operations under way have had their moment already. A return keeps those in which it has
had its own. Reads change nothing, so each has its moment as soon as what serves is what it saw; what is left to try
is the order of the few loads and unloads that are under way at once (Wing and Gong 1993; Lowe 2017, section 4).
"""

import bisect
import collections
import dataclasses
import json


@dataclasses.dataclass(eq=False)
class Op:
    model: str
    kind: str  # deploy, load, unload, read
    call: float
    ret: float
    value: object = None
    ok: object = True
    note: str = ""

    def __repr__(self):
        return f"{self.kind} {self.model} {self.value if self.kind in ('deploy', 'read') else ''} [{self.call}, {self.ret}] ok={self.ok} {self.note}"


def newest(deploys, call, ret):
    """Versions that a load may have found to be the newest: not older than what was there when it was called, and
    not put there after it had returned."""
    sure = max((d.value for d in deploys if d.ret < call), default=None)
    found = {d.value for d in deploys if d.call < ret and d.ret >= call and (sure is None or d.value > sure)}
    return found | ({sure} if sure is not None else set())


def check_model(ops, start):
    deploys = [o for o in ops if o.kind == "deploy"]
    ops = [o for o in ops if o.kind != "deploy"]
    effects = {}  # of a write: what may serve after it
    for o in ops:
        if o.kind == "load":
            effects[o] = newest(deploys, o.call, o.ret)
        elif o.kind == "unload":
            effects[o] = {None}
    # A call at the same time as a return comes first: then they overlap, and more orders are possible.
    events = sorted([(o.call, 0, i) for i, o in enumerate(ops)] + [(o.ret, 1, i) for i, o in enumerate(ops)])
    pending, situations = set(), {(s, frozenset()) for s in start}

    def with_reads(serves, done):
        return serves, done | {o for o in pending if o.kind == "read" and o.value == serves}

    for _, is_return, i in events:
        op = ops[i]
        if not is_return:
            pending.add(op)
            if op.kind == "read":
                situations = {with_reads(*s) for s in situations}
            continue
        # Every order of the writes under way, from every situation.
        todo, seen = list(situations), set(situations)
        while todo:
            serves, done = todo.pop()
            for w in pending:
                if w in effects and w not in done:
                    for after in effects[w] | ({serves} if w.ok is None else set()):
                        new = with_reads(after, done | {w})
                        if new not in seen:
                            seen.add(new)
                            todo.append(new)
        situations = {(serves, done - {op}) for serves, done in seen if op in done}
        pending.discard(op)
        if not situations:
            return op
    return None


def check(history, start):
    by_model = collections.defaultdict(list)
    for o in history:
        by_model[o.model].append(o)
    for name, ops in sorted(by_model.items()):
        bad = check_model(ops, start.get(name, {None}))
        if bad is not None:
            return bad
    return None


def lives(history, crashes):
    """The history cut at the times of kill -9: [(ops of one life, operations that were under way at its end)]. Of
    those nothing can be asked: they are left out of their life, but for deploys, which are on the disk."""
    cuts = sorted(crashes)
    out = [[] for _ in range(len(cuts) + 1)]
    for o in history:
        life = bisect.bisect_right(cuts, o.call)
        if o.kind == "deploy":
            for each in out[life:]:
                each.append(o)
        elif life == len(cuts) or o.ret <= cuts[life]:
            out[life].append(o)
        elif o.kind != "read":  # it may have had its moment before the end
            out[life].append(dataclasses.replace(o, ret=cuts[life], ok=None))
    return out


def save(path, history, crashes, starts):
    with open(path, "w", encoding="ascii") as f:
        json.dump({"ops": [dataclasses.astuple(o) for o in history], "crashes": crashes,
                   "starts": [{k: sorted(v, key=str) for k, v in s.items()} for s in starts]}, f)


def load(path):
    with open(path, encoding="ascii") as f:
        text = json.load(f)
    return [Op(*o) for o in text["ops"]], text["crashes"], [{k: set(v) for k, v in s.items()} for s in text["starts"]]
