"""HTTP/1.1 and HTTP/2 byte by byte, for tests that send what no client library would.

Nothing here checks or corrects what it is told to send. Reading is strict: a response that breaks
the framing rules is an AssertionError. Every wait has a limit.

    with H1(port) as c:
        c.send(head("POST", "/v2", "Content-Length: 3") + b"abc")
        r = c.response()            # r.status, r.headers, r.body, r.json(), r.error
        assert c.closed()

    with H2(port) as c:
        s = c.grpc("/inference.GRPCInferenceService/ServerLive", b"")
        r = c.reply(s)              # r.status, r.grpc, r.message, r.body, r.reset

References: RFC 9112, RFC 9113, RFC 7541 (its Huffman code is canonical, so lengths are enough).
"""

import json
import socket
import struct
import time
import urllib.parse

LIMIT_S = 60.0  # of every wait; whoever asks how long something takes measures it

# --- HTTP/1.1 -----------------------------------------------------------------------------------


class Response:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The text of an error body; '' where the body is something else."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return ""
        return value.get("error", "") if isinstance(value, dict) else ""

    def __repr__(self):
        return f"<{self.status} {self.headers} {self.body[:300]!r}>"


def head(method, target, *lines, host="localhost", version="HTTP/1.1"):
    """A request head as bytes; host None leaves the field out."""
    every = [f"{method} {target} {version}"] + ([f"Host: {host}"] if host is not None else []) + list(lines)
    return ("\r\n".join(every) + "\r\n\r\n").encode("latin-1")


def message(method, target, body=b"", *lines, host="localhost"):
    body = body.encode() if isinstance(body, str) else body
    return head(method, target, f"Content-Length: {len(body)}", *lines, host=host) + body


class Stream:
    """A TCP connection with its unread bytes in `data`."""

    def __init__(self, port, limit_s=LIMIT_S, receive_bytes=None, host="127.0.0.1"):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(limit_s)
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.limit_s, self.data, self.ended, self.was_reset = limit_s, b"", False, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def try_send(self, data):
        """False when the peer has gone meanwhile."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self):
        """FIN: nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def abort(self):
        """RST; nothing where it is closed."""
        if self.socket.fileno() < 0:
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()

    def more(self, deadline):
        """Reads once; False at the end of the stream."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing came within the limit; so far {self.data[:200]!r}")
        self.socket.settimeout(left)
        try:
            piece = self.socket.recv(1 << 16)
        except ConnectionResetError:
            self.was_reset = True
            piece = b""
        self.data += piece
        self.ended = self.ended or not piece
        return bool(piece)

    def closed(self, limit_s=None):
        """Waits for the end of the stream; True when nothing came before it."""
        deadline = time.monotonic() + (limit_s or self.limit_s)
        while not self.ended:
            if not self.more(deadline):
                break
        return self.data == b""

    def open_now(self, wait_s=0.15):
        """True when the peer neither closes nor says anything for a moment."""
        try:
            return self.more(time.monotonic() + wait_s) and False
        except TimeoutError:
            return True


class H1(Stream):
    def response(self, method="GET", limit_s=None):
        """The next final response; interim ones (1xx) are counted in `interim`."""
        deadline = time.monotonic() + (limit_s or self.limit_s)
        self.interim = []
        while True:
            while b"\r\n\r\n" not in self.data:
                assert self.more(deadline), f"the connection ended inside a head: {self.data!r}"
            top, self.data = self.data.split(b"\r\n\r\n", 1)
            lines = top.decode("latin-1").split("\r\n")
            version, status, *_ = lines[0].split(" ", 2)
            assert version == "HTTP/1.1", lines[0]
            status, headers = int(status), {}
            for line in lines[1:]:
                name, value = line.split(":", 1)
                assert name == name.strip() == name.lower() and "\n" not in value, line
                assert name not in headers, f"{name} came twice"
                headers[name] = value.strip()
            if 100 <= status < 200:
                self.interim.append(status)
                continue
            break
        length = 0 if method == "HEAD" or status in (204, 304) else int(headers.get("content-length", -1))
        assert length >= 0, f"a response without content-length: {headers}"
        while len(self.data) < length:
            assert self.more(deadline), f"the connection ended inside a body of {length} bytes"
        body, self.data = self.data[:length], self.data[length:]
        check_hygiene(method, status, headers, body)
        return Response(status, headers, body)

    def ask(self, *args, **kwargs):
        self.try_send(message(*args, **kwargs))  # an answer may come before all of it is taken
        return self.response(args[0])


def check_hygiene(method, status, headers, body):
    """What every response of an API server has to keep (RFC 9110, 9112), whatever was asked."""
    assert "date" in headers or status >= 400, f"{status} without date"
    assert "transfer-encoding" not in headers
    for name, value in headers.items():
        assert all(c in "!#$%&'*+-.^_`|~" or c.isalnum() for c in name) and name.isascii(), name
        assert all(0x20 <= ord(c) != 0x7F or c == "\t" for c in value), (name, value)
    if body:
        assert "content-type" in headers, f"{status}: a body without a type"
    if status == 405:
        assert headers.get("allow"), "405 needs Allow (RFC 9110 section 15.5.6)"
    if status in (400, 413, 431) and method != "HEAD" and "content-type" in headers:
        assert headers["content-type"] == "application/json", headers


def ask(port, *args, **kwargs):
    """One request on a connection of its own."""
    with H1(port) as c:
        return c.ask(*args, **kwargs)


# --- HTTP/2 -------------------------------------------------------------------------------------

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 7, 8, 11
OK, CANCELLED, INVALID, DEADLINE, NOT_FOUND, DENIED = 0, 1, 3, 4, 5, 7
EXHAUSTED, PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 12, 13, 14

_STATIC = (
    ":authority| :method|GET :method|POST :path|/ :path|/index.html :scheme|http :scheme|https :status|200 "
    ":status|204 :status|206 :status|304 :status|400 :status|404 :status|500 accept-charset| "
    "accept-encoding|gzip,%20deflate accept-language| accept-ranges| accept| access-control-allow-origin| age| "
    "allow| authorization| cache-control| content-disposition| content-encoding| content-language| "
    "content-length| content-location| content-range| content-type| cookie| date| etag| expect| expires| from| "
    "host| if-match| if-modified-since| if-none-match| if-range| if-unmodified-since| last-modified| link| "
    "location| max-forwards| proxy-authenticate| proxy-authorization| range| referer| refresh| retry-after| "
    "server| set-cookie| strict-transport-security| transfer-encoding| user-agent| vary| via| www-authenticate|"
)
STATIC = [tuple(pair.replace("%20", " ").split("|", 1)) for pair in _STATIC.split(" ")]
assert len(STATIC) == 61

# Length of the code of each byte and of the end mark, a character each: '5' is 5 … 'N' is 30.
_LENGTHS = (
    "=GLLLLLLLHNLLNLLLLLLLLNLLLLLLLLL6::<=68;::8;8666555666666678?6<:=67777777777777777777777878=C=>6?565"
    "65666577666567655677777?;>=LDFDDFFFGFGGGGGHGHHFGHGGGGEFGFGGHFEDFFGGEGFFHEFGGEEFEGFGGDFFFGFFGJJDCFGFI"
    "JJJKKJHICEJKKJKHEEJJLKKKDHDEFEEGFFIIHHJGJKJJKKKKKLKKKKKJN"
)


def _huffman():
    lengths = [ord(c) - 48 for c in _LENGTHS]
    table, code, previous = {}, 0, 0
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths)):
        code <<= length - previous
        table[length, code] = symbol
        code, previous = code + 1, length
    return table


HUFFMAN = _huffman()


def huffman(data):
    out, code, length = bytearray(), 0, 0
    for byte in data:
        for bit in range(7, -1, -1):
            code, length = code << 1 | byte >> bit & 1, length + 1
            if (length, code) in HUFFMAN:
                out.append(HUFFMAN[length, code])
                code = length = 0
    assert length < 8 and code == (1 << length) - 1, "padding of a Huffman string"
    return bytes(out)


def integer(value, prefix, first=0):
    top = (1 << prefix) - 1
    if value < top:
        return bytes([first | value])
    out, value = bytearray([first | top]), value - top
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def literal(name, value):
    """A field as a literal that no table keeps."""
    name, value = (v.encode("latin-1") if isinstance(v, str) else v for v in (name, value))
    return b"\x00" + integer(len(name), 7) + name + integer(len(value), 7) + value


class Hpack:
    """Decoder without a dynamic table: SETTINGS_HEADER_TABLE_SIZE 0 is what H2 tells the server."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def integer(self, prefix):
        top = (1 << prefix) - 1
        value = self.data[self.at] & top
        self.at += 1
        shift = 0
        while value >= top and (shift == 0 or byte & 128):
            byte = self.data[self.at]
            self.at += 1
            value += (byte & 127) << shift
            shift += 7
        return value

    def string(self):
        coded = self.data[self.at] & 128
        length = self.integer(7)
        raw = self.data[self.at : self.at + length]
        self.at += length
        return (huffman(raw) if coded else raw).decode("latin-1")

    def fields(self):
        out = []
        while self.at < len(self.data):
            first = self.data[self.at]
            if first & 0x80:
                out.append(STATIC[self.integer(7) - 1])
                continue
            if first & 0xE0 == 0x20:
                assert self.integer(5) == 0, "the table was told to have no size"
                continue
            index = self.integer(6 if first & 0x40 else 4)
            out.append((STATIC[index - 1][0] if index else self.string(), self.string()))
        return out


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(**values):
    ids = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6}
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", ids[k], v) for k, v in values.items()))


def prefixed(data, flag=0, length=None):
    """A gRPC message frame."""
    return bytes([flag]) + struct.pack(">I", len(data) if length is None else length) + data


class Reply:
    """What came on one stream."""

    def __init__(self):
        self.headers, self.trailers, self.body, self.reset, self.ended = None, None, b"", None, False

    @property
    def status(self):
        return int(self.headers[":status"]) if self.headers else None

    @property
    def grpc(self):
        where = self.trailers or self.headers or {}
        return int(where["grpc-status"]) if "grpc-status" in where else None

    @property
    def message(self):
        return urllib.parse.unquote((self.trailers or self.headers or {}).get("grpc-message", ""))

    @property
    def payload(self):
        """The one gRPC message."""
        assert self.body[:1] == b"\0" and struct.unpack(">I", self.body[1:5])[0] == len(self.body) - 5
        return self.body[5:]

    def json(self):
        return json.loads(self.body)

    error = Response.error

    def __repr__(self):
        return f"<h2 {self.headers} {self.body[:200]!r} {self.trailers} reset={self.reset}>"


class H2(Stream):
    def __init__(self, port, greet=True, window=1 << 20, **kwargs):
        super().__init__(port, **kwargs)
        self.next, self.replies, self.goaway, self.settings, self.pings = 1, {}, None, {}, 0
        self.goaways = []
        if greet:
            self.send(PREFACE + settings(table=0, window=window))

    # sending

    def open(self, fields, end=True, flags=END_HEADERS):
        """HEADERS with exactly these fields on the next stream; its number."""
        stream, self.next = self.next, self.next + 2
        self.replies[stream] = Reply()
        block = fields if isinstance(fields, bytes) else b"".join(literal(k, v) for k, v in fields)
        self.send(frame(HEADERS, flags | (END_STREAM if end else 0), stream, block))
        return stream

    def request(self, method, path, body=b"", fields=(), end=True, authority="localhost"):
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", authority)]
        stream = self.open(pseudo + list(fields), end=end and not body)
        if body:
            self.body(stream, body, end)
        return stream

    def body(self, stream, data, end=True):
        for at in range(0, len(data), 16384):
            piece = data[at : at + 16384]
            last = end and at + len(piece) == len(data)
            self.send(frame(DATA, END_STREAM if last else 0, stream, piece))
        if not data and end:
            self.send(frame(DATA, END_STREAM, stream))

    def grpc(self, path, data, fields=(), raw=False, end=True, **kwargs):
        """A call whose body is one message (raw: the bytes as they are)."""
        own = dict(fields)
        base = [("content-type", "application/grpc"), ("te", "trailers")]
        every = [f for f in base if f[0] not in own] + list(fields)
        stream = self.request("POST", path, fields=every, end=False, **kwargs)
        self.body(stream, data if raw else prefixed(data), end)
        return stream

    def cancel(self, stream, code=CANCEL):
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", code)))

    # receiving

    def one(self, deadline):
        """Handles one frame; None at the end of the stream."""
        while len(self.data) < 9 or len(self.data) < 9 + int.from_bytes(self.data[:3], "big"):
            if not self.more(deadline):
                return None
        length, kind, flags = int.from_bytes(self.data[:3], "big"), self.data[3], self.data[4]
        stream = struct.unpack(">I", self.data[5:9])[0] & 0x7FFFFFFF
        payload, self.data = self.data[9 : 9 + length], self.data[9 + length :]
        self.handle(kind, flags, stream, payload)
        return kind, flags, stream, payload

    def handle(self, kind, flags, stream, payload):
        r = self.replies.get(stream)
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[at : at + 6])
                self.settings[key] = value
            self.try_send(frame(SETTINGS, ACK))
        elif kind == PING and flags & ACK:
            self.pings += 1
        elif kind == GOAWAY:
            self.goaway = struct.unpack(">II", payload[:8])
            self.goaways.append(self.goaway)
        elif kind == RST_STREAM and r:
            r.reset, r.ended = struct.unpack(">I", payload)[0], True
        elif kind == HEADERS and r:
            assert flags & END_HEADERS, "the server's heads fit one frame"
            fields = dict(Hpack(payload).fields())
            if r.headers is None and fields.get(":status", "")[:1] != "1":
                r.headers = fields
            elif r.headers is not None:
                r.trailers = fields
        elif kind == DATA and r:
            r.body += payload
        if r and kind in (HEADERS, DATA) and flags & END_STREAM:
            r.ended = True

    def reply(self, stream, limit_s=None):
        """Waits until the stream has ended, or the connection has."""
        deadline = time.monotonic() + (limit_s or self.limit_s)
        r = self.replies[stream]
        while not r.ended and self.one(deadline) is not None:
            pass
        return r

    def drain(self, limit_s=None):
        """Reads to the end of the connection."""
        deadline = time.monotonic() + (limit_s or self.limit_s)
        while self.one(deadline) is not None:
            pass
        return self

    def ping(self, limit_s=None):
        """A PING and its answer: everything sent before was handled."""
        want, deadline = self.pings + 1, time.monotonic() + (limit_s or self.limit_s)
        self.send(frame(PING, payload=b"12345678"))
        while self.pings < want:
            if self.one(deadline) is None:
                return False
        return True

    def ask(self, *args, **kwargs):
        return self.reply(self.request(*args, **kwargs))


# --- protobuf, as much as the tests need ---------------------------------------------------------


def varint(value):
    out, value = bytearray(), value & (1 << 64) - 1
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number, value):
    """A varint field for an int, a delimited one for str and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


SERVICE = "/inference.GRPCInferenceService/"


def infer_pb(model, inputs=(), outputs=(), raw=(), version="", params=(), request_id=""):
    """ModelInferRequest. inputs: (name, datatype, shape[, contents bytes]) each."""
    out = field(1, model)
    if version:
        out += field(2, version)
    if request_id:
        out += field(3, request_id)
    for name, value in params:
        kind = {bool: 1, int: 2, str: 3}[type(value)]
        out += field(4, field(1, name) + field(2, field(kind, int(value) if kind < 3 else value)))
    for name, datatype, shape, *contents in inputs:
        packed = b"".join(varint(d) for d in shape)
        tensor = field(1, name) + field(2, datatype) + (field(3, packed) if shape else b"")
        out += field(5, tensor + b"".join(field(5, c) for c in contents))
    for name in outputs:
        out += field(6, field(1, name) if isinstance(name, str) else name)
    return out + b"".join(field(7, piece) for piece in raw)
