/* HTTP/1.1 on a connection in memory: every message whole, in single bytes, and split in two at
 * every byte; forms that two parsers could read differently; limits at their value and one beyond;
 * deadlines on the fake clock; pipelining, slow readers, cancels, failing memory. */
#include "http_harness.h"

static int setup(void **state)
{
    *state = fix_new();
    return 0;
}

static int teardown(void **state)
{
    fix_free(*state);
    return 0;
}

struct form {
    const char *name;
    const char *bytes;
    size_t len;           /* 0: strlen */
    const char *statuses; /* what is answered */
    const char *requests; /* "METHOD path body;" of what the app was handed */
    bool closed;          /* the engine ends the connection */
};

static void render(struct fix *f, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (unsigned i = 0; i < f->n_seen; i++) {
        struct seen *s = &f->seen[i];
        if (s->requested) {
            int k = snprintf(out + n, size - n, "%s %s %.*s;", s->method, s->path, (int)s->body.len,
                             s->body.len ? s->body.data : "");
            assert_true(k > 0 && (size_t)k < size - n);
            n += (size_t)k;
        }
    }
}

static void check_form(struct fix *f, const struct form *m, size_t split, size_t piece)
{
    size_t len = m->len ? m->len : strlen(m->bytes);
    fix_connect(f);
    f->piece = piece;
    feed(f, m->bytes, split);
    pump(f);
    feed(f, m->bytes + split, len - split);
    pump(f);
    char got[512];
    statuses(f, got, sizeof(got));
    if (strcmp(got, m->statuses) != 0) {
        print_error("%s, split at %zu, pieces of %zu: statuses \"%s\", expected \"%s\"\n", m->name,
                    split, piece, got, m->statuses);
        fail();
    }
    render(f, got, sizeof(got));
    if (strcmp(got, m->requests) != 0) {
        print_error("%s, split at %zu, pieces of %zu: requests \"%s\", expected \"%s\"\n", m->name,
                    split, piece, got, m->requests);
        fail();
    }
    bool closed = f->closed || f->shut;
    if (closed != m->closed) {
        print_error("%s, split at %zu: closed %d, expected %d\n", m->name, split, closed,
                    m->closed);
        fail();
    }
    fix_hangup(f);
}

#define H "Host: a\r\n"
static const struct form good[] = {
    {"get", "GET /x?y=1 HTTP/1.1\r\n" H "\r\n", 0, "200 ", "GET /x ;", false},
    {"host with port", "GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", 0, "200 ", "GET / ;", false},
    {"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 0, "200 ", "GET / ;", false},
    {"post", "POST /p HTTP/1.1\r\n" H "Content-Length: 5\r\n\r\nhello", 0, "200 ", "POST /p hello;",
     false},
    {"empty body stated", "POST /p HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n", 0, "200 ",
     "POST /p ;", false},
    {"post without length", "POST /p HTTP/1.1\r\n" H "\r\n", 0, "200 ", "POST /p ;", false},
    {"chunked",
     "PUT /p HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n"
     "0123456789\r\n0\r\n\r\n",
     0, "200 ", "PUT /p abc0123456789;", false},
    {"chunked, upper case", "PUT /p HTTP/1.1\r\n" H "TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n",
     0, "200 ", "PUT /p ;", false},
    {"chunk extension",
     "PUT /p HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3;a=b;c=\"d\"\r\n"
     "abc\r\n0\r\n\r\n",
     0, "200 ", "PUT /p abc;", false},
    {"trailers",
     "PUT /p HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n"
     "Date: 7\r\nX: y\r\n\r\nGET /n HTTP/1.1\r\n" H "\r\n",
     0, "200 200 ", "PUT /p z;GET /n ;", false},
    {"leading zeros in chunk size",
     "PUT /p HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
     "0003\r\nabc\r\n00\r\n\r\n",
     0, "200 ", "PUT /p abc;", false},
    {"two pipelined",
     "GET /1 HTTP/1.1\r\n" H "\r\nPOST /2 HTTP/1.1\r\n" H
     "Content-Length: 2\r\n\r\nhiGET /3 HTTP/1.1\r\n" H "\r\n",
     0, "200 200 200 ", "GET /1 ;POST /2 hi;GET /3 ;", false},
    {"one empty line before", "\r\nGET / HTTP/1.1\r\n" H "\r\n\r\nGET /2 HTTP/1.1\r\n" H "\r\n", 0,
     "200 200 ", "GET / ;GET /2 ;", false},
    {"close", "GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\n", 0, "200 ", "GET / ;", true},
    {"close among others", "GET / HTTP/1.1\r\n" H "Connection: foo, Close\r\n\r\n", 0, "200 ",
     "GET / ;", true},
    {"behind close nothing is read",
     "GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\nGET /2 "
     "HTTP/1.1\r\n" H "\r\n",
     0, "200 ", "GET / ;", true},
    {"1.0", "GET / HTTP/1.0\r\n\r\n", 0, "200 ", "GET / ;", true},
    {"1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 0, "200 ", "GET / ;",
     false},
    {"absolute form", "GET http://h.example:80/a/b?c HTTP/1.1\r\nHost: other\r\n\r\n", 0, "200 ",
     "GET /a/b ;", false},
    {"absolute form, empty path", "GET http://h?q HTTP/1.1\r\n" H "\r\n", 0, "200 ", "GET / ;",
     false},
    {"asterisk", "OPTIONS * HTTP/1.1\r\n" H "\r\n", 0, "200 ", "OPTIONS * ;", false},
    {"upgrade is ignored",
     "GET / HTTP/1.1\r\n" H "Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
     "GET /2 HTTP/1.1\r\n" H "\r\n",
     0, "200 200 ", "GET / ;GET /2 ;", false},
    {"upgrade with a body",
     "POST / HTTP/1.1\r\n" H "Connection: upgrade\r\nUpgrade: h2c\r\n"
     "Content-Length: 2\r\n\r\nhi",
     0, "200 ", "POST / hi;", false},
    {"blanks around a value", "GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n", 0, "200 ", "GET / ;",
     false},
    {"obs-text in a value", "GET / HTTP/1.1\r\n" H "X: \xe4\xff\r\n\r\n", 0, "200 ", "GET / ;",
     false},
    {"other methods", "DELETE /d HTTP/1.1\r\n" H "\r\nPATCH /p HTTP/1.1\r\n" H "\r\n", 0,
     "200 200 ", "DELETE /d ;PATCH /p ;", false},
    {"length with leading zeros", "POST / HTTP/1.1\r\n" H "Content-Length: 002\r\n\r\nhi", 0,
     "200 ", "POST / hi;", false},
    {"starts like the HTTP/2 preface", "PROPFIND / HTTP/1.1\r\n" H "\r\n", 0, "200 ",
     "PROPFIND / ;", false},
};

#define POST_TE "POST /p HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
#define BAD(name, bytes) {name, bytes, sizeof(bytes) - 1, "400 ", "", true}
#define IS(name, bytes, status) {name, bytes, sizeof(bytes) - 1, status, "", true}
static const struct form bad[] = {
    BAD("no host", "GET / HTTP/1.1\r\n\r\n"),
    BAD("two hosts", "GET / HTTP/1.1\r\n" H "Host: b\r\n\r\n"),
    BAD("two hosts in 1.0", "GET / HTTP/1.0\r\n" H "Host: a\r\n\r\n"),
    BAD("host with userinfo", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    BAD("host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    BAD("host with blank", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    BAD("length and coding",
        "POST / HTTP/1.1\r\n" H "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    BAD("coding and length",
        "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
    BAD("two lengths",
        "POST / HTTP/1.1\r\n" H "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"),
    BAD("two equal lengths",
        "POST / HTTP/1.1\r\n" H "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
    BAD("list of lengths", "POST / HTTP/1.1\r\n" H "Content-Length: 4, 4\r\n\r\nabcd"),
    BAD("length with sign", "POST / HTTP/1.1\r\n" H "Content-Length: +4\r\n\r\nabcd"),
    BAD("negative length", "POST / HTTP/1.1\r\n" H "Content-Length: -4\r\n\r\nabcd"),
    BAD("length in hex", "POST / HTTP/1.1\r\n" H "Content-Length: 0x4\r\n\r\nabcd"),
    BAD("length with underscore", "POST / HTTP/1.1\r\n" H "Content-Length: 1_0\r\n\r\nabcd"),
    BAD("length with blank inside", "POST / HTTP/1.1\r\n" H "Content-Length: 1 0\r\n\r\nabcd"),
    BAD("length overflows",
        "POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\nabcd"),
    BAD("empty length", "POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\nabcd"),
    BAD("length is a word", "POST / HTTP/1.1\r\n" H "Content-Length: four\r\n\r\nabcd"),
    BAD("blank before colon", "POST / HTTP/1.1\r\n" H "Content-Length : 4\r\n\r\nabcd"),
    BAD("tab before colon", "POST / HTTP/1.1\r\n" H "Content-Length\t: 4\r\n\r\nabcd"),
    BAD("blank before first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    BAD("folded field", "GET / HTTP/1.1\r\n" H "X: a\r\n b\r\n\r\n"),
    BAD("folded with tab", "GET / HTTP/1.1\r\n" H "X: a\r\n\tb\r\n\r\n"),
    BAD("folded coding", "POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    BAD("field without colon", "GET / HTTP/1.1\r\n" H "X\r\n\r\n"),
    BAD("empty field name", "GET / HTTP/1.1\r\n" H ": x\r\n\r\n"),
    BAD("NUL in value", "GET / HTTP/1.1\r\n" H "X: a\0b\r\n\r\n"),
    BAD("NUL in name", "GET / HTTP/1.1\r\n" H "X\0: a\r\n\r\n"),
    BAD("CR in value", "GET / HTTP/1.1\r\n" H "X: a\rb\r\n\r\n"),
    BAD("LF ends a field", "GET / HTTP/1.1\r\n" H "X: a\nY: b\r\n\r\n"),
    BAD("LF ends the request line", "GET / HTTP/1.1\n" H "\r\n"),
    BAD("LF ends the head", "GET / HTTP/1.1\r\n" H "\n"),
    BAD("control byte in value", "GET / HTTP/1.1\r\n" H "X: a\x01\r\n\r\n"),
    BAD("DEL in value", "GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n"),
    BAD("bad byte in name", "GET / HTTP/1.1\r\n" H "X(: a\r\n\r\n"),
    BAD("obs-text in name", "GET / HTTP/1.1\r\n" H "X\xe4: a\r\n\r\n"),
    BAD("coding in 1.0", "POST / HTTP/1.0\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    BAD("two codings fields", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n"
                              "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    BAD("chunked twice",
        "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    BAD("chunked is not last",
        "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    BAD("identity", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: identity\r\n\r\n"),
    BAD("vertical tab before chunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: \x0b"
                                       "chunked\r\n\r\n0\r\n\r\n"),
    BAD("quoted chunked",
        "POST / HTTP/1.1\r\n" H "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    BAD("xchunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    BAD("empty coding", "POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    IS("gzip before chunked",
       "POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501 "),
    BAD("chunk size with 0x", POST_TE "0x3\r\nabc\r\n0\r\n\r\n"),
    BAD("chunk size with sign", POST_TE "+3\r\nabc\r\n0\r\n\r\n"),
    BAD("chunk size with underscore", POST_TE "0_3\r\nabc\r\n0\r\n\r\n"),
    BAD("negative chunk size", POST_TE "-3\r\nabc\r\n0\r\n\r\n"),
    BAD("blank before chunk size", POST_TE " 3\r\nabc\r\n0\r\n\r\n"),
    BAD("blank behind chunk size", POST_TE "3 \r\nabc\r\n0\r\n\r\n"),
    BAD("empty chunk size", POST_TE "\r\nabc\r\n0\r\n\r\n"),
    BAD("chunk size overflows", POST_TE "10000000000000003\r\nabc\r\n0\r\n\r\n"),
    BAD("LF behind chunk size", POST_TE "3\nabc\r\n0\r\n\r\n"),
    BAD("LF behind chunk", POST_TE "3\r\nabc\n0\r\n\r\n"),
    BAD("CR in chunk extension", POST_TE "3;a\rb\r\nabc\r\n0\r\n\r\n"),
    BAD("LF in chunk extension", POST_TE "3;a\nb\r\nabc\r\n0\r\n\r\n"),
    BAD("chunk longer than stated", POST_TE "3\r\nabcd\r\n0\r\n\r\n"),
    BAD("chunk shorter than stated", POST_TE "4\r\nabc\r\n0\r\n\r\n"),
    BAD("length as a trailer", POST_TE "0\r\nContent-Length: 7\r\n\r\n"),
    BAD("bad trailer", POST_TE "0\r\nX : y\r\n\r\n"),
    BAD("LF ends the trailers", POST_TE "0\r\n\n"),
    BAD("two blanks behind the method", "GET  / HTTP/1.1\r\n" H "\r\n"),
    BAD("two blanks before the version", "GET /  HTTP/1.1\r\n" H "\r\n"),
    BAD("tab in the request line", "GET\t/ HTTP/1.1\r\n" H "\r\n"),
    BAD("blank behind the version", "GET / HTTP/1.1 \r\n" H "\r\n"),
    BAD("blank before the method", " GET / HTTP/1.1\r\n" H "\r\n"),
    BAD("two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\n" H "\r\n"),
    BAD("LF before", "\nGET / HTTP/1.1\r\n" H "\r\n"),
    BAD("no version", "GET /\r\n" H "\r\n"),
    BAD("long version", "GET / HTTP/1.32\r\n" H "\r\n"),
    BAD("version in lower case", "GET / http/1.1\r\n" H "\r\n"),
    BAD("other protocol", "GET / ICE/1.0\r\n" H "\r\n"),
    BAD("version without minor", "GET / HTTP/1\r\n" H "\r\n"),
    IS("version 2.0", "GET / HTTP/2.0\r\n" H "\r\n", "505 "),
    IS("version 0.9", "GET / HTTP/0.9\r\n" H "\r\n", "505 "),
    IS("unknown method", "FROB / HTTP/1.1\r\n" H "\r\n", "501 "),
    IS("connect", "CONNECT a:80 HTTP/1.1\r\n" H "\r\n", "501 "),
    BAD("method with junk", "G(T / HTTP/1.1\r\n" H "\r\n"),
    BAD("method with NUL", "GE\0T / HTTP/1.1\r\n" H "\r\n"),
    BAD("target without slash", "GET x HTTP/1.1\r\n" H "\r\n"),
    BAD("asterisk with GET", "GET * HTTP/1.1\r\n" H "\r\n"),
    BAD("fragment", "GET /a#b HTTP/1.1\r\n" H "\r\n"),
    BAD("obs-text in target", "GET /\xe4 HTTP/1.1\r\n" H "\r\n"),
    BAD("control byte in target", "GET /\x01 HTTP/1.1\r\n" H "\r\n"),
    BAD("absolute form, other scheme", "GET ftp://a/b HTTP/1.1\r\n" H "\r\n"),
    BAD("absolute form, userinfo", "GET http://u@h/ HTTP/1.1\r\n" H "\r\n"),
    BAD("absolute form, no host", "GET http:///a HTTP/1.1\r\n" H "\r\n"),
    IS("unknown expectation", "POST / HTTP/1.1\r\n" H "Expect: cake\r\nContent-Length: 1\r\n\r\n",
       "417 "),
    BAD("two content types", "POST / HTTP/1.1\r\n" H "Content-Type: a\r\nContent-Type: b\r\n\r\n"),
    BAD("two binary header lengths",
        "POST / HTTP/1.1\r\n" H "Inference-Header-Content-Length: 1\r\n"
        "Inference-Header-Content-Length: 2\r\n\r\n"),
    BAD("two authorizations",
        "GET / HTTP/1.1\r\n" H "Authorization: a\r\nAuthorization: b\r\n\r\n"),
    IS("TLS hello", "\x16\x03\x01\x02\x00\x01", "400 "),
    BAD("garbage", "\x00\x01\x02\x03\r\n\r\n"),
};

/* A split may cut a token of the request line, where the parser cannot know yet that a method is
 * merely unknown; both codes close the connection. */
static bool same_class(const struct form *m)
{
    return strcmp(m->statuses, "501 ") != 0 && strcmp(m->statuses, "505 ") != 0;
}

static void run_forms(struct fix *f, const struct form *forms, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t len = forms[i].len ? forms[i].len : strlen(forms[i].bytes);
        check_form(f, &forms[i], len, SIZE_MAX);
        if (!same_class(&forms[i])) {
            continue;
        }
        check_form(f, &forms[i], len, 1);
        for (size_t split = 1; split < len; split++) {
            check_form(f, &forms[i], split, SIZE_MAX);
        }
    }
}

static void test_good_forms(void **state)
{
    struct fix *f = *state;
    fix_hangup(f);
    run_forms(f, good, NR_COUNT(good));
    f->mode = ANSWER_HOOK;
    run_forms(f, good, NR_COUNT(good));
}

static void test_bad_forms(void **state)
{
    struct fix *f = *state;
    fix_hangup(f);
    run_forms(f, bad, NR_COUNT(bad));
}

static void test_bad_behind_good(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\nGET / HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n" H "\r\n");
    pump(f);
    assert_int_equal(f->out.len, 0); /* the error waits for the answer before it */
    assert_false(f->closed);
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 400 ");
    assert_true(f->shut);
    assert_int_equal(f->n_seen, 1);
}

static void test_response_bytes(void **state)
{
    struct fix *f = *state;
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    const struct nr_header extra[] = {{NR_STR_INIT("x-a"), NR_STR_INIT("1\r\nevil: 2")}};
    f->reply_headers = extra;
    f->n_reply_headers = 1;
    pump(f);
    assert_non_null(strstr(f->out.data, "HTTP/1.1 200 OK\r\ndate: "));
    assert_non_null(strstr(f->out.data, " GMT\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n"
                                        "x-a: 1  evil: 2\r\n\r\nok"));
    assert_int_equal(f->recvs, 1);
    assert_int_equal(f->sends, 1);
    f->n_reply_headers = 0;

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "HEAD / HTTP/1.1\r\n" H "\r\nGET /2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    pump(f);
    assert_non_null(strstr(f->out.data, "content-length: 2\r\n\r\nHTTP/1.1 200 OK\r\n"));
    assert_non_null(strstr(f->out.data, "content-length: 2\r\nconnection: keep-alive\r\n\r\nok"));
    assert_int_equal(f->sends, 1); /* both in one */

    fix_hangup(f);
    fix_connect(f);
    f->reply_status = 204;
    feedz(f, "DELETE / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    assert_null(strstr(f->out.data, "content-length"));
    assert_memory_equal(f->out.data + f->out.len - 4, "\r\n\r\n", 4);
}

static void test_out_of_order(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    for (char i = '0'; i < '8'; i++) {
        char text[64];
        (void)snprintf(text, sizeof(text), "GET /%c HTTP/1.1\r\n" H "\r\n", i);
        feedz(f, text);
    }
    pump(f);
    assert_int_equal(f->n_seen, 8);
    static const unsigned order[] = {3, 1, 7, 0, 2, 6, 5, 4};
    static const char *const bodies[] = {"zero", "one", "two", "three", "4", "5", "6", "seven"};
    for (unsigned i = 0; i < 8; i++) {
        f->reply = (struct nr_iov){bodies[order[i]], strlen(bodies[order[i]])};
        answer(f, f->seen[order[i]].x);
        pump(f);
    }
    const char *at = f->out.data;
    for (unsigned i = 0; i < 8; i++) {
        at = strstr(at, "\r\n\r\n");
        assert_non_null(at);
        at += 4;
        assert_memory_equal(at, bodies[i], strlen(bodies[i]));
    }
    assert_int_equal(f->n_done, 8);
}

static void test_pipeline_limit(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    for (unsigned i = 0; i < 200; i++) {
        feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    }
    pump(f);
    assert_int_equal(f->n_seen, f->limits.max_pipelined);
    assert_false(f->events & EPOLLIN);
    for (unsigned i = 0; i < 200; i++) {
        assert_non_null(f->seen[i].x);
        answer(f, f->seen[i].x);
        pump(f);
        assert_true(f->n_seen <= i + 1 + f->limits.max_pipelined);
    }
    assert_int_equal(f->n_done, 200);
}

/* A request line of exactly n bytes, CRLF left out. */
static void feed_line(struct fix *f, size_t n)
{
    feedz(f, "GET /");
    for (size_t i = 14; i < n; i++) {
        feedz(f, "x");
    }
    feedz(f, " HTTP/1.1\r\n" H);
}

static void test_head_limits(void **state)
{
    struct fix *f = *state;
    feed_line(f, f->limits.max_request_line_bytes);
    feedz(f, "\r\n");
    pump(f);
    assert_statuses(f, "200 ");
    fix_hangup(f);

    fix_connect(f);
    feed_line(f, f->limits.max_request_line_bytes + 1);
    feedz(f, "\r\n");
    pump(f);
    assert_statuses(f, "414 ");
    fix_hangup(f);

    for (unsigned more = 0; more < 2; more++) { /* one field: name + value */
        fix_connect(f);
        feedz(f, "GET / HTTP/1.1\r\n" H "x: ");
        for (size_t i = 1; i < f->limits.max_field_bytes + more; i++) {
            feedz(f, "v");
        }
        feedz(f, "\r\n\r\n");
        f->piece = 1000;
        pump(f);
        assert_statuses(f, more ? "431 " : "200 ");
        fix_hangup(f);
    }
    for (unsigned more = 0; more < 2; more++) { /* count, Host is one */
        fix_connect(f);
        feedz(f, "GET / HTTP/1.1\r\n" H);
        for (size_t i = 1; i < f->limits.max_fields + more; i++) {
            feedz(f, "x: y\r\n");
        }
        feedz(f, "\r\n");
        pump(f);
        assert_statuses(f, more ? "431 " : "200 ");
        assert_int_equal(f->n_seen, more ? 0 : 1);
        if (!more) {
            assert_int_equal(f->seen[0].n_headers, f->limits.max_fields);
        }
        fix_hangup(f);
    }
    for (unsigned more = 0; more < 2; more++) { /* all fields, + 32 each; Host takes 5 + 32 */
        fix_connect(f);
        feedz(f, "GET / HTTP/1.1\r\n" H);
        size_t left = f->limits.max_head_bytes - 37 + more;
        while (left > 0) {
            size_t n = left > 2000 ? 1000 : left;
            feedz(f, "x: ");
            for (size_t i = 33; i < n; i++) {
                feedz(f, "v");
            }
            feedz(f, "\r\n");
            left -= n;
        }
        feedz(f, "\r\n");
        pump(f);
        assert_statuses(f, more ? "431 " : "200 ");
        fix_hangup(f);
    }
    fix_connect(f); /* blanks that belong to no field */
    feedz(f, "GET / HTTP/1.1\r\n" H "x:");
    for (size_t i = 0; i < 100000; i++) {
        feedz(f, " ");
    }
    pump(f);
    assert_statuses(f, "431 ");
}

static void feed_fill(struct fix *f, size_t n)
{
    assert_true(nr_text_reserve(&f->in, n));
    for (size_t i = 0; i < n; i++) {
        f->in.data[f->in.len++] = (char)('a' + i % 23);
    }
}

static void feed_post(struct fix *f, size_t n)
{
    char head[96];
    (void)snprintf(head, sizeof(head), "POST /p HTTP/1.1\r\n" H "Content-Length: %zu\r\n\r\n", n);
    feedz(f, head);
    feed_fill(f, n);
}

static void assert_fill(const struct seen *s, size_t n)
{
    assert_int_equal(s->body.len, n);
    for (size_t i = 0; i < n; i++) {
        if (s->body.data[i] != (char)('a' + i % 23)) {
            fail_msg("byte %zu", i);
        }
    }
}

static void test_bodies(void **state)
{
    struct fix *f = *state;
    static const size_t sizes[] = {1,     100,   8000,   16000,   16300,   16368,   16369,  20000,
                                   65536, 65537, 200000, 1048576, 1048577, 3000000, 7000001};
    for (size_t i = 0; i < NR_COUNT(sizes); i++) {
        for (size_t align = 0; align < 3; align++) {
            fix_hangup(f);
            fix_connect(f);
            f->align_at = align * 77;
            f->piece = align == 1 ? 4097 : SIZE_MAX;
            feed_post(f, sizes[i]);
            feedz(f, "GET /next HTTP/1.1\r\n" H "\r\n");
            pump(f);
            assert_int_equal(f->n_done, 2);
            assert_fill(&f->seen[0], sizes[i]);
            assert_string_equal(f->seen[1].path, "/next");
            if (!f->seen[0].body_in_place) {
                assert_int_equal(f->seen[0].body_misalign, 0);
            } else {
                assert_true(sizes[i] < NR_BLOCK_BYTES);
            }
        }
    }
}

static void feed_chunks(struct fix *f, unsigned n, size_t size)
{
    feedz(f, POST_TE);
    for (unsigned i = 0; i < n; i++) {
        char head[24];
        (void)snprintf(head, sizeof(head), "%zx\r\n", size);
        feedz(f, head);
        feed_fill(f, size);
        feedz(f, "\r\n");
    }
    feedz(f, "0\r\n\r\n");
}

static void test_body_limits(void **state)
{
    struct fix *f = *state;
    f->body_limit = 1000;
    for (unsigned more = 0; more < 2; more++) {
        fix_hangup(f);
        fix_connect(f);
        feed_post(f, 1000 + more);
        pump(f);
        assert_statuses(f, more ? "413 " : "200 ");
        assert_int_equal(f->n_cancel, more);
        if (more) {
            assert_int_equal(f->seen[0].why, NR_CANCEL_REFUSED);
            assert_int_equal(f->seen[0].status, 413);
            assert_true(f->shut); /* lingers: the client is still sending */
            assert_false(f->closed);
            assert_non_null(strstr(f->out.data, "{\"error\":\"request body is larger than the "
                                                "limit of 1000 bytes\"}"));
        }
        fix_hangup(f);
        fix_connect(f);
        feed_chunks(f, 10, 100);
        if (more) {
            f->in.len -= 5; /* takes the end away, puts one more chunk in front of it */
            feedz(f, "1\r\nx\r\n0\r\n\r\n");
        }
        pump(f);
        assert_statuses(f, more ? "413 " : "200 ");
    }
    f->body_limit = 0;
    f->limits.max_chunks = 2000;
    for (unsigned more = 0; more < 2; more++) {
        fix_hangup(f);
        fix_connect(f);
        feed_chunks(f, 2000 + more, 64);
        pump(f);
        assert_statuses(f, more ? "413 " : "200 ");
    }
    for (unsigned more = 0; more < 2; more++) { /* small ones are free up to 1,024 */
        fix_hangup(f);
        fix_connect(f);
        feed_chunks(f, 1024 + more, 6);
        pump(f);
        assert_statuses(f, more ? "413 " : "200 ");
    }
    fix_hangup(f);
    fix_connect(f); /* extensions without end */
    feedz(f, POST_TE "1;");
    for (unsigned i = 0; i < 100000; i++) {
        feedz(f, "e");
    }
    pump(f);
    assert_statuses(f, "400 ");
}

static void test_length_beyond_int64(void **state)
{
    struct fix *f = *state;
    feedz(f, "POST /p HTTP/1.1\r\n" H "Content-Length: 18446744073709551615\r\n\r\n");
    pump(f);
    assert_statuses(f, "413 ");
    assert_true(nr_buf_live_bytes() == 0);
}

static void test_expect(void **state)
{
    struct fix *f = *state;
    feedz(f, "POST /p HTTP/1.1\r\n" H "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n");
    pump(f);
    assert_string_equal(f->out.data, "HTTP/1.1 100 Continue\r\n\r\n");
    feedz(f, "abc");
    pump(f);
    assert_statuses(f, "100 200 ");
    assert_false(f->closed);

    fix_hangup(f);
    fix_connect(f); /* refused without a 100: the connection ends */
    f->mode = ANSWER_IN_HEAD;
    f->reply_status = 401;
    feedz(f, "POST /p HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    pump(f);
    assert_statuses(f, "401 ");
    assert_true(f->shut);

    fix_hangup(f);
    fix_connect(f); /* pipelined: the 100 may not overtake the response before it */
    f->mode = ANSWER_LATER;
    f->reply_status = 200;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\nPOST /p HTTP/1.1\r\n" H
             "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    pump(f);
    assert_int_equal(f->out.len, 0);
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 100 ");

    fix_hangup(f);
    fix_connect(f); /* HTTP/1.0 clients do not know it */
    feedz(f, "POST /p HTTP/1.0\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    pump(f);
    assert_int_equal(f->out.len, 0);
}

static void test_answer_in_head(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_IN_HEAD;
    f->reply_status = 404;
    feed_post(f, NR_DRAIN_MAX_BYTES); /* small: read past */
    feedz(f, "GET /2 HTTP/1.1\r\n" H "\r\n");
    f->piece = 10000;
    pump(f);
    assert_statuses(f, "404 404 ");
    assert_false(f->seen[0].requested);
    assert_false(f->closed);
    assert_int_equal(f->n_done, 2);

    fix_hangup(f);
    fix_connect(f);
    feed_post(f, NR_DRAIN_MAX_BYTES + 1);
    feedz(f, "GET /2 HTTP/1.1\r\n" H "\r\n");
    f->piece = 10000;
    pump(f);
    assert_statuses(f, "404 ");
    assert_int_equal(f->n_seen, 1);
    assert_true(f->shut);
    assert_int_equal(f->in_at, f->in.len); /* what was sent was read: no RST eats the answer */

    fix_hangup(f);
    fix_connect(f);
    feed_chunks(f, 1, 10);
    pump(f);
    assert_statuses(f, "404 ");
    assert_true(f->shut);
}

static void test_timeouts(void **state)
{
    struct fix *f = *state;
    wait_ns(f, 9 * NR_S_NS);
    assert_false(f->closed);
    wait_ns(f, 2 * NR_S_NS); /* not a byte */
    assert_true(f->closed);

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "GET / HT");
    pump(f);
    for (unsigned i = 0; i < 9; i++) { /* drops do not help */
        feedz(f, i == 0 ? "TP/1.1\r\nx: " : "x");
        wait_ns(f, NR_S_NS);
        assert_false(f->shut);
    }
    wait_ns(f, 1500 * NR_MS_NS);
    assert_statuses(f, "408 ");
    assert_true(f->shut);

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    wait_ns(f, 59 * NR_S_NS);
    assert_false(f->closed);
    wait_ns(f, 2 * NR_S_NS); /* keep-alive is over */
    assert_true(f->closed);

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "POST / HTTP/1.1\r\n" H "Content-Length: 100000\r\n\r\nabc");
    pump(f);
    wait_ns(f, 9 * NR_S_NS);
    assert_false(f->shut);
    feedz(f, "d");
    pump(f);
    wait_ns(f, 2 * NR_S_NS); /* 11 s, far below 1 KiB a second */
    assert_statuses(f, "408 ");
    assert_int_equal(f->seen[0].why, NR_CANCEL_REFUSED);

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "POST / HTTP/1.1\r\n" H "Content-Length: 1000000\r\n\r\n");
    for (unsigned i = 0; i < 100; i++) { /* 2 KiB a second is fast enough */
        feed_fill(f, 2048);
        wait_ns(f, NR_S_NS);
        assert_false(f->shut);
    }
    wait_ns(f, 11 * NR_S_NS);
    assert_true(f->shut);
    wait_ns(f, 3 * NR_S_NS); /* lingered long enough */
    assert_true(f->closed);
}

static void test_no_deadline_while_working(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    wait_ns(f, 1000 * NR_S_NS);
    assert_false(f->closed);
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 ");
}

static char big[3 << 20];

static void test_slow_reader(void **state)
{
    struct fix *f = *state;
    memset(big, 'b', sizeof(big));
    f->reply = (struct nr_iov){big, sizeof(big)};
    f->room = 1000;
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    assert_true(f->events & EPOLLOUT);
    assert_false(f->events & EPOLLIN); /* too much output waits */
    assert_int_equal(f->n_done, 0);
    while (f->n_done == 0) {
        f->room = 100000;
        wait_ns(f, 20 * NR_MS_NS);
    }
    assert_statuses(f, "200 ");
    assert_true(f->out.len > sizeof(big));
    assert_false(f->events & EPOLLOUT);
    assert_true(f->events & EPOLLIN);

    fix_hangup(f);
    fix_connect(f); /* a reader that stops */
    f->room = 1000;
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    wait_ns(f, 29 * NR_S_NS);
    assert_false(f->closed);
    wait_ns(f, 2 * NR_S_NS);
    assert_true(f->closed);
    assert_int_equal(f->n_done, 1);

    fix_hangup(f);
    fix_connect(f); /* one that takes a byte now and then */
    f->room = 1000;
    feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
    pump(f);
    for (unsigned i = 0; i < 63 && !f->closed; i++) {
        f->room = 1;
        wait_ns(f, NR_S_NS);
    }
    assert_true(f->closed);
}

static void test_half_close(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\nGET /2 HTTP/1.1\r\n" H "\r\n");
    f->fin = true;
    pump(f);
    assert_int_equal(f->n_cancel, 2);
    assert_int_equal(f->seen[0].why, NR_CANCEL_HALF_CLOSE);
    assert_false(f->closed);
    answer(f, f->seen[1].x);
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 200 "); /* those that ran are answered */
    assert_true(f->closed);

    fix_hangup(f);
    fix_connect(f);
    f->limits.half_close = true;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
    f->fin = true;
    pump(f);
    assert_int_equal(f->n_cancel, 0);
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 ");
    assert_true(f->closed);

    fix_hangup(f);
    fix_connect(f);
    feedz(f, "POST /1 HTTP/1.1\r\n" H "Content-Length: 10\r\n\r\nabc");
    f->fin = true;
    pump(f);
    assert_statuses(f, "400 ");
    assert_true(f->closed);
    assert_false(f->seen[0].requested);

    fix_hangup(f);
    fix_connect(f);
    f->fin = true;
    pump(f);
    assert_true(f->closed);
}

static void test_reset(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\nGET /2 HTTP/1.1\r\n" H "\r\nPOST /3 HTTP/1.1\r\n" H
             "Content-Length: 9\r\n\r\nab");
    pump(f);
    assert_int_equal(f->n_seen, 3);
    answer(f, f->seen[1].x); /* held behind the first */
    nr_conn_on_event(f->c, EPOLLERR | EPOLLHUP);
    pump(f);
    assert_true(f->closed);
    assert_int_equal(f->n_cancel, 2); /* not the answered one */
    assert_int_equal(f->seen[0].why, NR_CANCEL_RESET);
    assert_int_equal(f->n_done, 1);
    answer(f, f->seen[0].x);
    answer(f, f->seen[2].x);
    pump(f);
    assert_int_equal(f->n_done, 3);
    assert_int_equal(f->out.len, 0);
}

static void test_close_drops_later(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\nGET /2 HTTP/1.1\r\n" H "\r\n");
    pump(f);
    f->reply_close = true;
    answer(f, f->seen[0].x);
    pump(f);
    assert_statuses(f, "200 ");
    assert_non_null(strstr(f->out.data, "connection: close\r\n"));
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->n_done, 1);
    answer(f, f->seen[1].x);
    pump(f);
    assert_statuses(f, "200 ");
    assert_int_equal(f->n_done, 2);
}

static void test_deadline(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    f->reply_status = 504;
    feedz(f, "POST /1 HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\n");
    pump(f);
    f->seen[0].x->deadline_ns = nr_clock_now() + 50 * NR_MS_NS;
    feedz(f, "hi");
    pump(f);
    wait_ns(f, 49 * NR_MS_NS);
    assert_int_equal(f->n_cancel, 0);
    wait_ns(f, 2 * NR_MS_NS);
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->seen[0].why, NR_CANCEL_DEADLINE);
    assert_statuses(f, "504 "); /* the client can still read */
    assert_false(f->closed);
}

static void test_drain(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_LATER;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
    pump(f);
    nr_engine_drain(&f->e);
    pump(f);
    assert_false(f->closed);
    answer(f, f->seen[0].x);
    pump(f);
    assert_non_null(strstr(f->out.data, "connection: close\r\n"));
    assert_true(f->closed);
    f->e.draining = false;
    fix_hangup(f);
    fix_connect(f);
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
    pump(f);
    answer(f, f->seen[0].x);
    pump(f);
    assert_false(f->closed);
    nr_engine_drain(&f->e); /* idle now */
    pump(f);
    assert_true(f->closed);
    f->e.draining = false;
}

/* What the hook of the app answers leaves in the same turn, all responses in one send. */
static void test_one_send_per_turn(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_HOOK;
    for (unsigned i = 0; i < 5; i++) {
        feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
    }
    nr_conn_on_event(f->c, EPOLLIN);
    assert_int_equal(f->sends, 0);
    (void)nr_loop_turn(f->loop, 0);
    assert_int_equal(f->sends, 1);
    assert_int_equal(f->recvs, 1);
    assert_statuses(f, "200 200 200 200 200 ");
    assert_int_equal(f->n_done, 5);
}

static void test_no_allocation(void **state)
{
    struct fix *f = *state;
    f->mode = ANSWER_HOOK;
    uint64_t before = 0;
    for (unsigned i = 0; i < 250; i++) {
        if (i == 50) {
            before = nr_mem_allocs();
        }
        nr_text_clear(&f->in);
        nr_text_clear(&f->out);
        f->in_at = 0;
        feedz(f, "POST /v2/models/m/infer HTTP/1.1\r\n" H "Content-Type: application/json\r\n"
                 "Accept: */*\r\nContent-Length: 4\r\n\r\n");
        feedz(f, "{\"\"}");
        pump(f);
        assert_int_equal(f->n_done, i + 1);
        nr_text_done(&f->seen[i].body);
    }
    /* the harness keeps a copy of every body: one allocation each is its own */
    assert_true(nr_mem_allocs() - before <= 200);
    assert_null(f->c->in); /* idle: no block is held */
    assert_null(f->c->out);
}

static bool holds_pools(const struct fix *f)
{
    return f->e.free_blocks != NULL || !nr_list_empty(&f->e.free_exchanges) ||
           !nr_list_empty(&f->e.free_conns);
}

/* A loop that has nothing to do gives its pools back, once, and no sooner; then no timer is left. */
static void test_idle_gives_memory_back(void **state)
{
    struct fix *f = *state;
    for (unsigned round = 1; round <= 3; round++) {
        fix_hangup(f);
        fix_connect(f);
        for (unsigned i = 0; i < 5; i++) { /* requests 700 ms apart: never idle for a second */
            nr_text_clear(&f->in);
            f->in_at = 0;
            feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
            pump(f);
            nr_clock_fake_advance(700 * NR_MS_NS);
            (void)nr_loop_turn(f->loop, 0);
            assert_true(holds_pools(f));
            assert_int_equal(f->n_idle, round - 1);
        }
        for (unsigned i = 0; i < 10; i++) {
            nr_clock_fake_advance(NR_S_NS);
            (void)nr_loop_turn(f->loop, 0);
        }
        assert_false(holds_pools(f));
        assert_int_equal(f->n_idle, round);
        assert_int_equal(f->e.idle_timer.heap_index, 0);
        assert_false(f->closed);
    }
    f->limits.idle_trim_ns = 0;
    feedz(f, "GET /1 HTTP/1.1\r\n" H "\r\n");
    pump(f);
    assert_true(holds_pools(f));
    assert_int_equal(f->e.idle_timer.heap_index, 0);
}

/* Every allocation that may fail is failed once: an answer or a closed connection, never a crash,
 * and the next connection works. */
static void test_failing_memory(void **state)
{
    struct fix *f = *state;
    memset(big, 'b', sizeof(big));
    f->reply = (struct nr_iov){big, 70000};
    for (uint64_t n = 1; n < 40; n++) {
        fix_hangup(f);
        fix_connect(f);
        feed_post(f, 100);
        feed_post(f, 300000);
        feed_chunks(f, 20, 5000);
        f->piece = 3000;
        while (f->e.free_blocks) { /* pools empty: every block is a new one */
            struct nr_block *b = f->e.free_blocks;
            f->e.free_blocks = b->next;
            nr_free(b);
        }
        f->e.n_free_blocks = 0;
        nr_buf_thread_done();
        nr_mem_fail_after(n, n % 2 == 0);
        for (int i = 0; i < 400 && !f->closed; i++) {
            if (f->events & EPOLLIN && f->in_at < f->in.len) {
                nr_conn_on_event(f->c, EPOLLIN);
            }
            if (!f->closed) {
                (void)nr_loop_turn(f->loop, 0);
            }
        }
        nr_mem_fail_after(0, false);
        pump(f);
        fix_hangup(f);
        fix_connect(f);
        feedz(f, "GET / HTTP/1.1\r\n" H "\r\n");
        pump(f);
        assert_statuses(f, "200 ");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_good_forms, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_forms, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_behind_good, setup, teardown),
        cmocka_unit_test_setup_teardown(test_response_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_out_of_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipeline_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_head_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_body_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_length_beyond_int64, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answer_in_head, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeouts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_deadline_while_working, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_close, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_drops_later, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_send_per_turn, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_allocation, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle_gives_memory_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failing_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
