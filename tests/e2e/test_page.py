"""The page at /, with a real browser: a photo is dropped, its dry twin appears beside it, both are
kept over a restart; and what a hostile model or another site must not be able to do."""
import http.server
import io
import json
import threading
import urllib.error
import urllib.request

import cdp
import pytest
from conftest import PICTURES, wait_until

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

if not cdp.CHROMIUM:
    pytest.skip("chromium is not installed", allow_module_level=True)

READY = "document.querySelector('#model').options.length > 0 && document.body.dataset.history !== undefined"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # a name of another site that leads to this machine: what DNS rebinding does
    with cdp.Browser(tmp_path_factory.mktemp("browser"), flags=["--host-resolver-rules=MAP *.test 127.0.0.1"]) as b:
        yield b


@pytest.fixture
def open_page(browser):
    pages = []

    def start(s, path="/"):
        pages.append(browser.open(s.url + path))
        pages[-1].wait_for(READY)
        return pages[-1]

    yield start
    for page in pages:
        page.close()


def finished(page, name):
    page.wait_for(f"document.body.dataset.done === {json.dumps(name)}", 60)


def shown(page, selector):
    return page.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
                         "return e !== null && e.getClientRects().length > 0; })()")


def text(page, selector="body"):
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def loaded(page, selector):
    """Waits until an image is really drawn; its size."""
    e = f"document.querySelector({json.dumps(selector)})"
    page.wait_for(f"{e}.complete && {e}.naturalWidth > 0")
    return page.evaluate(f"[{e}.naturalWidth, {e}.naturalHeight]")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)


def psnr(a, b):
    return 10 * np.log10(255 ** 2 / max(np.mean((a - b) ** 2), 1e-9))


def gallery(s):
    return json.load(urllib.request.urlopen(s.url + "/naru/gallery"))["entries"]


def test_drop_a_photo_and_find_it_again_after_a_restart(server, open_page, tmp_path):
    s = server(gallery=tmp_path / "kept")
    page = open_page(s)
    assert page.evaluate("document.title") == "naru 나루"
    assert page.evaluate("document.querySelector('#model').value") == "derain"
    assert "Nothing yet" in text(page, "#kept")
    page.drop("#zone", PICTURES / "rainy.jpg")
    finished(page, "rainy.jpg")

    # side by side, and the right one is the dry one
    assert loaded(page, "#before") == loaded(page, "#after") == [480, 320]
    boxes = page.evaluate("['#before', '#after'].map(s => { const r = document.querySelector(s).getBoundingClientRect();"
                          "return [r.left, r.right, r.top]; })")
    assert boxes[0][1] <= boxes[1][0] and boxes[0][2] == boxes[1][2] and boxes[1][1] - boxes[1][0] > 300
    truth = pixels((PICTURES / "rainy_truth.jpg").read_bytes())
    before, after = page.picture("#before"), page.picture("#after")
    assert psnr(pixels(before), pixels((PICTURES / "rainy.jpg").read_bytes())) > 40
    assert psnr(pixels(after), truth) > psnr(pixels(before), truth) + 4
    assert "derain answered in" in text(page, "#facts")
    assert page.evaluate("document.querySelector('#save').download") == "rainy-derain.png"
    page.wait_for("document.body.dataset.history === '1'")
    assert page.trouble() == []
    entry = gallery(s)[0]
    with urllib.request.urlopen(f"{s.url}/naru/gallery/{entry['id']}/input") as r:
        assert r.read() == (PICTURES / "rainy.jpg").read_bytes()

    s.stop()
    s = server(gallery=tmp_path / "kept")
    page = open_page(s)
    page.wait_for("document.querySelectorAll('#history li').length === 1")
    assert loaded(page, "#history img:first-child") == loaded(page, "#history img:last-child") == [480, 320]
    assert not shown(page, "#result")
    page.click("#history .open")
    assert shown(page, "#result") and not shown(page, "#zone")
    assert loaded(page, "#after") == [480, 320]
    assert page.picture("#before") == before and page.picture("#after") == after
    assert page.trouble() == []


@pytest.fixture(scope="module")
def examples(module_server):
    return module_server()


def test_choose_and_paste(examples, open_page):
    page = open_page(examples)
    page.choose("#file", PICTURES / "downpour.jpg")
    finished(page, "downpour.jpg")
    assert shown(page, "#after")
    page.evaluate("(async () => { const i = document.querySelector('#after'), c = document.createElement('canvas');"
                  "await i.decode(); c.width = i.naturalWidth; c.height = i.naturalHeight;"
                  "c.getContext('2d').drawImage(i, 0, 0); const blob = await new Promise(done => c.toBlob(done));"
                  "const d = new DataTransfer(); d.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));"
                  "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: d, bubbles: true})); })()")
    finished(page, "pasted.png")
    page.drop("body", PICTURES / "rainy.jpg") # anywhere, also while a result is shown
    finished(page, "rainy.jpg")
    assert page.trouble() == []


def test_slider(examples, open_page):
    page = open_page(examples)
    page.drop("#zone", PICTURES / "rainy.jpg")
    finished(page, "rainy.jpg")
    loaded(page, "#after")
    assert not shown(page, "#cut")
    page.click("[data-view=slide]")
    assert shown(page, "#cut") and page.evaluate("document.querySelector('[data-view=slide]').ariaPressed") == "true"
    same = page.evaluate("JSON.stringify(document.querySelector('#before').getBoundingClientRect()) ==="
                         "JSON.stringify(document.querySelector('#after').getBoundingClientRect())")
    assert same
    page.evaluate("document.querySelector('#cut').focus()")
    for _ in range(3):
        page.key("ArrowRight", number=39)
    assert page.evaluate("document.querySelector('#pair').style.getPropertyValue('--cut')") == "53%"
    clip = page.evaluate("getComputedStyle(document.querySelector('#after-figure')).clipPath")
    assert "53%" in clip
    page.click("[data-view=pair]")
    assert not shown(page, "#cut")


def test_labels(examples, open_page):
    page = open_page(examples)
    page.evaluate("(() => { const m = document.querySelector('#model'); m.value = 'digits';"
                  "m.dispatchEvent(new Event('change')); })()")
    page.drop("#zone", PICTURES / "digit_7.png")
    finished(page, "digit_7.png")
    rows = page.evaluate("[...document.querySelectorAll('.score')].map(r => r.innerText.split('\\n').filter(Boolean))")
    assert len(rows) == 10 and rows[0][0] == "7" and rows[0][-1].endswith(" %") and float(rows[0][-1][:-2]) > 50
    assert not shown(page, "#after") and shown(page, "#before") and not shown(page, "#views")
    widths = page.evaluate("[...document.querySelectorAll('.track i')].map(r => r.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True) and widths[0] > 50
    assert page.trouble() == []
    # the same photo through another model, chosen afterwards
    page.evaluate("(() => { delete document.body.dataset.done; const m = document.querySelector('#model');"
                  "m.value = 'derain'; m.dispatchEvent(new Event('change')); })()")
    finished(page, "digit_7.png")
    assert loaded(page, "#after") == [256, 256] and not shown(page, ".score")


def test_errors_are_the_servers_own_words(examples, open_page, tmp_path):
    page = open_page(examples)
    (tmp_path / "notes.txt").write_text("no picture at all")
    page.drop("#zone", tmp_path / "notes.txt")
    page.wait_for("!document.querySelector('#error').hidden")
    assert "notes.txt" in text(page, "#error") and "expected JPEG, PNG or WebP" in text(page, "#error")
    assert page.evaluate("document.querySelector('#error').getAttribute('role')") == "alert"
    assert shown(page, "#zone") and not shown(page, "#busy")
    page.drop("#zone", PICTURES / "rainy.jpg") # and it goes when the next one works
    finished(page, "rainy.jpg")
    assert not shown(page, "#error")


def test_too_large_and_gone(server, open_page, tmp_path):
    s = server("--max-body", "100k")
    page = open_page(s)
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 200000)
    page.drop("#zone", tmp_path / "large.jpg")
    page.wait_for("!document.querySelector('#error').hidden")
    assert "200 kB" in text(page, "#error") and "100 kB" in text(page, "#error")
    s.stop()
    page.drop("#zone", PICTURES / "rainy.jpg")
    page.wait_for("document.querySelector('#error').innerText.includes('ended the connection')")


def test_delete(server, open_page):
    s = server()
    page = open_page(s)
    for name in ("rainy.jpg", "downpour.jpg"):
        page.drop("body", PICTURES / name)
        finished(page, name)
    page.wait_for("document.body.dataset.history === '2'")
    newest, oldest = (e["id"] for e in gallery(s))
    assert page.evaluate("[...document.querySelectorAll('#history li')].map(e => e.dataset.id)") == [newest, oldest]
    page.click("#history li:first-child .remove")
    page.wait_for("document.body.dataset.history === '1'")
    assert [e["id"] for e in gallery(s)] == [oldest]
    # the keyboard stays where one would go on
    page.wait_for(f"document.activeElement.closest('li')?.dataset.id === '{oldest}'")
    assert "1 kept" in text(page, "#kept") and "30 days" in text(page, "#kept")


def test_nothing_is_kept(server, open_page):
    s = server("--no-keep-gallery")
    page = open_page(s)
    assert "keeps no pictures" in text(page, "#kept")
    page.drop("#zone", PICTURES / "rainy.jpg")
    finished(page, "rainy.jpg")
    assert loaded(page, "#after") == [480, 320]
    assert page.evaluate("document.querySelectorAll('#history li').length") == 0 and page.trouble() == []


def test_slow_models_say_so(server, open_page, tmp_path):
    folder = tmp_path / "r" / "slow"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("""
        backend: "delay" max_batch_size: 1
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] } ]
        parameters { key: "delay_us" value { string_value: "3000000" } }""")
    page = open_page(server(models=[tmp_path / "r"]))
    # the page's own clock tells: whoever asks from outside may look too late
    page.evaluate("""(() => {
        const busy = document.querySelector("#busy");
        const note = () => signs.push([performance.now() - dropped, busy.hidden, busy.textContent]);
        window.signs = [];
        window.addEventListener("drop", () => { window.dropped = performance.now(); }, true);
        new MutationObserver(note).observe(busy, { attributes: true, attributeFilter: ["hidden"] });
    })()""")
    assert not shown(page, "#busy")
    page.drop("#zone", PICTURES / "rainy.jpg")
    finished(page, "rainy.jpg")
    assert not shown(page, "#busy")
    signs = page.evaluate("signs")
    assert [hidden for _, hidden, _ in signs] == [False, True], signs
    assert signs[0][0] >= 990, "not at once: most answers are faster than such a sign"
    assert "slow is at work" in signs[1][2]


HOSTILE = '<img src=x onerror="document.body.dataset.hit=1">'


def test_hostile_names_are_text(server, open_page, tmp_path):
    folder = tmp_path / "r" / "scores"
    (folder / "1").mkdir(parents=True)
    (folder / "labels.txt").write_text(HOSTILE + "\n</script><script>document.body.dataset.hit=1</script>\n\u202eabc\n")
    (folder / "config.pbtxt").write_text("""
        backend: "identity" max_batch_size: 1
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] label_filename: "labels.txt" } ]
        parameters { key: "naru.output" value { string_value: "labels" } }
        parameters { key: "naru.output.top_k" value { string_value: "64" } }""")
    broken = tmp_path / "r" / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text(f"backend: '{HOSTILE}'")
    page = open_page(server(models=[tmp_path / "r"]))
    photo = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("L", (8, 8), 200).save(photo)
    page.drop("#zone", photo)
    finished(page, photo.name)
    assert HOSTILE in text(page, "#numbers")
    page.evaluate("document.querySelector('#models-box').open = true")
    assert "not ready" in text(page, "#models") and "onerror" in text(page, "#models")
    assert page.evaluate("document.querySelectorAll('#numbers img, #numbers script, #models img').length") == 0
    assert page.evaluate("document.body.dataset.hit") is None
    assert page.trouble() == []


def test_phone_dark_and_keyboard(examples, open_page):
    page = open_page(examples)
    page.emulate(360, 740, dark=True)
    page.drop("#zone", PICTURES / "rainy.jpg")
    finished(page, "rainy.jpg")
    loaded(page, "#after")
    page.evaluate("document.querySelector('#models-box').open = true")
    for view in ("pair", "slide"):
        page.click(f"[data-view={view}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.querySelector('#after').getBoundingClientRect().right") <= 360
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{p}") for p in ("color", "backgroundColor"))
    assert ink == "rgb(228, 238, 239)" and paper == "rgb(14, 23, 25)"
    # everything that does something is reached by Tab
    page.evaluate("document.activeElement.blur()")
    reached = set()
    wanted = {"skip", "model", "file", "pair", "slide", "save", "cut", "open", "remove"}
    for _ in range(60):
        page.key("Tab", number=9)
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className || "
                                  "document.activeElement.dataset.view || document.activeElement.tagName"))
        if wanted <= reached:
            break
    assert wanted <= reached, reached
    unnamed = page.evaluate("[...document.querySelectorAll('button, input, select, img, a')].filter(e => !(e.innerText ||"
                            "e.ariaLabel || e.labels?.length || e.hasAttribute('alt'))).map(e => e.outerHTML)")
    assert unnamed == []


def test_headers_and_not_modified(examples):
    for path, kind in (("/", "text/html"), ("/static/page.js", "text/javascript"), ("/static/page.css", "text/css"),
                       ("/static/naru.svg", "image/svg+xml")):
        r = urllib.request.urlopen(examples.url + path)
        assert r.headers["content-type"].startswith(kind)
        policy = r.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert r.headers["x-content-type-options"] == "nosniff" and r.headers["referrer-policy"] == "no-referrer"
        assert r.headers["cross-origin-resource-policy"] == "same-origin"
        body, etag = r.read(), r.headers["etag"]
        for tags in (etag, f'"x", W/{etag}', "*"):
            with pytest.raises(urllib.error.HTTPError) as e:
                urllib.request.urlopen(urllib.request.Request(examples.url + path, headers={"if-none-match": tags}))
            assert e.value.code == 304 and e.value.headers["etag"] == etag and e.value.read() == b""
        other = urllib.request.Request(examples.url + path, headers={"if-none-match": '"x"'})
        assert urllib.request.urlopen(other).read() == body
        head = urllib.request.urlopen(urllib.request.Request(examples.url + path, method="HEAD"))
        assert head.headers["content-length"] == str(len(body)) and head.read() == b""
    for path in ("/static/", "/static/nothing.js", "/static/../page.js", "/static/%2e%2e", "/index.html", "//"):
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(examples.url + path)
        assert e.value.code == 404


class Evil(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>evil</title><body>evil</body>")

    def log_message(self, *_):
        pass


@pytest.fixture
def evil():
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web.server_port
    web.shutdown()
    web.server_close()


def test_another_site(server, browser, evil):
    """A page elsewhere: its name may lead here, its scripts may post here; neither must do anything."""
    s = server()
    with urllib.request.urlopen(urllib.request.Request(s.url + "/v2/models/derain/predict?keep=1", method="POST",
                                                       data=(PICTURES / "rainy.jpg").read_bytes())) as r:
        key = r.headers["naru-gallery-id"]
    for site in (f"http://evil.test:{evil}/", f"http://127.0.0.1:{evil}/", f"http://localhost:{evil}/"):
        page = browser.open(site)
        page.evaluate(f"""Promise.allSettled([
            fetch("{s.url}/naru/gallery/{key}", {{method: "DELETE"}}),
            fetch("{s.url}/v2/models/derain/predict?keep=1", {{method: "POST", mode: "no-cors", body: "x"}}),
            new Promise(done => {{ const f = document.createElement("form"); f.method = "POST"; f.target = "frame";
                f.enctype = "multipart/form-data"; f.action = "{s.url}/v2/models/derain/predict?keep=1";
                const i = document.createElement("iframe"); i.name = "frame"; i.onload = done;
                document.body.append(i, f); f.submit(); setTimeout(done, 3000); }}),
        ])""")
        # neither shown in a frame nor as a picture of that page
        assert page.evaluate(f"""new Promise(done => {{ const i = new Image(); i.onload = () => done("shown");
            i.onerror = () => done("refused"); i.src = "{s.url}/naru/gallery/{key}/input"; }})""") == "refused"
        assert page.evaluate(f"fetch('{s.url}/naru/gallery').then(r => r.text()).catch(() => 'refused')") == "refused"
        page.close()
    assert [e["id"] for e in gallery(s)] == [key]
    page = browser.open(f"http://rebound.test:{s.http}/")
    assert "not a name of this server" in text(page) and "--allow-host" in text(page)
    page.close()
    wait_until(lambda: "failed" not in s.log(), what="a quiet log")
