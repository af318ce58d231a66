"""A client whose bytes are the same at every run: one request after the other on one connection, or one
on each of many connections, all of them readable when the server looks.

For the latter the server is stopped (SIGSTOP) while requests are written, so that one turn of its loop
finds them all, on an idle machine and on a busy one alike.
"""
import os
import signal
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
LIMIT_S = 60


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.have = b""

    def close(self):
        self.socket.close()

    def more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self.have += piece


class Http1(Connection):
    def __init__(self, port, path, fields, body):
        super().__init__(port)
        head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *fields, f"Content-Length: {len(body)}", "", ""]
        self.request = "\r\n".join(head).encode() + body

    def send(self):
        self.socket.sendall(self.request)

    def receive(self):
        while b"\r\n\r\n" not in self.have:
            self.more()
        head, _, rest = self.have.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0].split()[1] == "200", self.have
        length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
        self.have = rest
        while len(self.have) < length:
            self.more()
        answer, self.have = self.have[:length], self.have[length:]
        return answer


class Grpc(Connection):
    """Header fields go through HPACK's dynamic table as clients do it: literal once, one byte afterwards."""

    def __init__(self, port, path, message):
        super().__init__(port)
        self.stream = -1
        self.message = b"\0" + struct.pack(">I", len(message)) + message

        def text(value):
            return bytes([len(value)]) + value.encode()
        self.first = (b"\x83\x86" + b"\x44" + text(path) + b"\x41" + text("127.0.0.1") + b"\x5f" +
                      text("application/grpc") + b"\x40" + text("te") + text("trailers"))
        self.later = b"\x83\x86\xc1\xc0\xbf\xbe"
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0) +
                            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x3fffffff)))
        self.wait(lambda kind, flags, stream: kind == SETTINGS and not flags & ACK)
        self.socket.sendall(frame(SETTINGS, ACK, 0))

    def wait(self, is_it):
        """Reads frames until one fits; returns what the DATA frames on the way carried."""
        data = b""
        while True:
            while len(self.have) < 9 or len(self.have) < 9 + int.from_bytes(self.have[:3], "big"):
                self.more()
            length, kind, flags = int.from_bytes(self.have[:3], "big"), self.have[3], self.have[4]
            stream, payload = int.from_bytes(self.have[5:9], "big"), self.have[9:9 + length]
            self.have = self.have[9 + length:]
            if kind == DATA:
                data += payload
            if is_it(kind, flags, stream):
                return data

    def send(self):
        block = self.first if self.stream < 0 else self.later
        self.stream = max(1, self.stream + 2)
        self.socket.sendall(frame(HEADERS, END_HEADERS, self.stream, block) +
                            frame(DATA, END_STREAM, self.stream, self.message))

    def receive(self):
        data = self.wait(lambda kind, flags, stream: stream == self.stream and kind in (DATA, HEADERS)
                         and flags & END_STREAM)
        assert len(data) > 5, "an error instead of an answer"
        return data[5:]


def is_stopped(pid):
    states = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat") as f:
            states.append(f.read().rpartition(")")[2].split()[0])
    return all(state in "tT" for state in states)


def together(pid, connections):
    """One request on every connection, seen by the server at once."""
    os.kill(pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + LIMIT_S
        while not is_stopped(pid):
            assert time.monotonic() < end, "the server does not stop"
            time.sleep(0.001)
        for c in connections:
            c.send()
    finally:
        os.kill(pid, signal.SIGCONT)
    for c in connections:
        c.receive()


def exchange(pid, connections, rounds, pause_s=0.0):
    """rounds x one request on each connection: one after the other when there is one connection. The
    pause lets the server fall asleep, so that it never finds the next request by luck."""
    for _ in range(rounds):
        time.sleep(pause_s)
        if len(connections) == 1:
            connections[0].send()
            connections[0].receive()
        else:
            together(pid, connections)
