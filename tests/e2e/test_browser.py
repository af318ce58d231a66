"""Pages of other sites cannot use a server on loopback; programs notice nothing."""

import pytest

from plugin_models import model, repository
from rawhttp import DENIED, H1, H2, SERVICE, ask, message

GOOD = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1]}]}'
INFER = "/v2/models/id/infer"


@pytest.fixture(scope="module")
def one(module_server, tmp_path_factory):
    repo = repository(tmp_path_factory.mktemp("repo"), id=model("identity", [("INPUT0", "FP32", [1])]))
    return module_server("--io-threads", 1, "--no-keep-gallery", "--allow-host", "naru.lan", models=[repo])


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LocalHost", 200), ("localhost:8000", 200), ("127.0.0.1", 200), ("127.0.0.1:1", 200),
    ("127.1.2.3", 200), ("[::1]", 200), ("[::1]:80", 200), ("naru.lan", 200), ("NARU.LAN:8000", 200),
    ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1x", 403),
    ("evil.example:8000", 403), ("a.naru.lan", 403), ("naru.lan.evil.example", 403), ("0.0.0.0", 403),
    ("10.0.0.1", 403), ("[::ffff:10.0.0.1]", 403), ("localhost.", 403), ("localhost:", 200), ("[::1]:", 200),
    ("127.1", 200), ("localhost:65535", 200), ("127.0.0.1.1", 403), ("127.0.0.256", 403), ("127.", 403), ("127", 403),
    ("127..1", 403), ("127.0.0.1.", 403), ("0x7f.0.0.1", 403), ("[::2]", 403), ("[::ffff:127.0.0.1]", 403)])
def test_rebound_names(one, host, status):
    """A name that some DNS points here is not ours (rebinding); IPs of loopback and --allow-host are."""
    with H1(one.http) as c:
        for path in ("/v2", "/", "/metrics", "/naru/gallery"):
            r = c.ask("GET", path, host=host)
            assert r.status == status, (path, r)
            assert status == 200 or ("--allow-host" in r.error and host.split(":")[0].strip(".") in r.error)
        assert c.ask("POST", INFER, GOOD, host=host).status == status
    with H2(one.http) as h2:
        assert h2.ask("GET", "/v2", authority=host).status == status
        r = h2.reply(h2.grpc(SERVICE + "ServerLive", b"", authority=host))
        assert r.grpc == (0 if status == 200 else DENIED)


@pytest.mark.parametrize("host", [
    "127.0.0.1:18020.evil.com", "127.0.0.1:80:80", "localhost:8000evil", "localhost:65536", "localhost:4294967376",
    "localhost:-1", "localhost:+80", ":80", ":", "evil@localhost", "localhost:80@evil.com", "a:b@localhost", "::1",
    "[::1", "[]", "[::1]80", "[::1].evil.com", "[::1]:80.evil.com", "[localhost]"])
def test_what_is_no_host(one, host):
    """Not host[:port]: refused before anybody asks whose name it is, on every protocol and in every form."""
    with H1(one.http) as c:
        c.send(f"POST {INFER} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(GOOD)}\r\n\r\n{GOOD}".encode())
        assert c.response().status == 400
    with H1(one.http) as c:
        c.send(f"GET http://{host}/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert c.response().status == 400
    with H2(one.http) as h2:
        r = h2.ask("GET", "/v2", authority=host)
        assert r.reset is not None or r.status == 400, r
        r = h2.reply(h2.grpc(SERVICE + "ServerLive", b"", authority=host))
        assert r.reset is not None or (r.status != 200 or r.grpc != 0), r


@pytest.mark.parametrize("origin, status", [
    ("http://localhost:{port}", 200), ("http://naru.lan", 200), ("https://naru.lan:4", 200),
    ("http://evil.example", 403), ("https://localhost.evil.example", 403), ("null", 403), ("file://", 403),
    ("http://localhost:1", 403), ("chrome-extension://abc", 403), ("http://", 403), ("localhost", 403),
    ("HTTP://LOCALHOST:{port}", 200), ("https://localhost:{port}", 200), ("http://localhost:{port}.evil.com", 403),
    ("http://naru.lan:80.evil.com", 403), ("http://naru.lan:80@evil.com", 403), ("http://evil@naru.lan", 403),
    ("http://naru.lan/", 403), ("http://naru.lan:99999", 403), ("ftp://naru.lan", 403), ("x://localhost:{port}", 403),
    ("evil://http://naru.lan", 403), ("http://localhost:{port} http://evil.example", 403), ("//naru.lan", 403),
    ("http://[::1", 403), ("http://:80", 403), ("http://127.0.0.1:{port}", 403)])
def test_origins(one, origin, status):
    value = origin.format(port=one.http)
    r = ask(one.http, "POST", INFER, GOOD, f"Origin: {value}", host=f"localhost:{one.http}")
    assert r.status == status, r
    r = ask(one.http, "PUT", "/v2/models/id/predict", b"x", f"Origin: {value}", host=f"localhost:{one.http}")
    assert (r.status == 403) == (status == 403), r


@pytest.mark.parametrize("site, method, status", [
    ("cross-site", "POST", 403), ("same-site", "POST", 403), ("cross-site", "DELETE", 403), ("same-origin", "POST", 200),
    ("none", "POST", 200), ("cross-site", "GET", 200), ("", "POST", 200)])
def test_fetch_site(one, site, method, status):
    """Browsers say where a request comes from even where they send no Origin."""
    path, body = {"POST": (INFER, GOOD), "GET": ("/v2", ""), "DELETE": ("/naru/gallery/x", "")}[method]
    with H1(one.http) as c:
        r = c.ask(method, path, body, f"Sec-Fetch-Site: {site}")
        assert r.status == status, r
        assert status == 200 or "other sites" in r.error


def test_a_form_of_another_site_never_runs(one):
    """The classic: a form posts text/plain without asking; nothing may have been inferred."""
    def count():
        text = ask(one.http, "GET", "/metrics").body.decode()
        return next(line for line in text.splitlines() if line.startswith("nv_inference_request_success{"))

    before = count()
    with H1(one.http) as c:
        c.send(message("POST", INFER, GOOD, "Origin: http://evil.example", "Content-Type: text/plain",
                       "Sec-Fetch-Site: cross-site"))
        assert c.response().status == 403
        assert c.ask("GET", "/v2").status == 200, "the connection goes on"
    assert count() == before


def test_programs_notice_nothing(one):
    """What curl and the client libraries send: a Host of the address, no Origin; or HTTP/1.0 without any."""
    assert ask(one.http, "GET", "/v2", "", "User-Agent: curl/8", "Accept: */*", host=f"127.0.0.1:{one.http}").status == 200
    with H1(one.http) as c:
        c.send(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert c.response().status == 200


def test_off_switch(server, tmp_path):
    repo = repository(tmp_path / "repo", id=model("identity", [("INPUT0", "FP32", [1])]))
    s = server("--no-check-browser", "--no-keep-gallery", models=[repo])
    assert ask(s.http, "POST", INFER, GOOD, "Origin: http://evil.example", host="evil.example").status == 200
