/* Responses in parts over HTTP/1.1: framing, order, a slow reader, a reader that goes. */
#include "http_harness.h"

#define GET "GET /s HTTP/1.1\r\nhost: a\r\n\r\n"

struct text_part {
    struct nr_part part;
    char text[64];
    bool done;
};

static void on_part_done(struct nr_part *p)
{
    struct text_part *t = nr_container_of(p, struct text_part, part);
    assert_false(t->done);
    t->done = true;
}

static void say(struct nr_exchange *x, struct text_part *t, const char *text)
{
    snprintf(t->text, sizeof(t->text), "%s", text);
    t->done = false;
    t->part = (struct nr_part){.data = t->text, .len = strlen(t->text), .done = on_part_done};
    nr_exchange_write(x, &t->part);
}

static struct nr_exchange *begin(struct fix *f, unsigned i)
{
    const struct nr_response r = {.status = 200, .content_type = NR_STR_INIT("text/event-stream")};
    struct nr_exchange *x = f->seen[i].x;
    nr_exchange_begin(x, &r);
    return x;
}

static void end(struct fix *f, unsigned i)
{
    struct nr_exchange *x = f->seen[i].x;
    f->seen[i].x = NULL;
    nr_exchange_end(x, 0, NR_STR(""));
}

static const char *body(struct fix *f)
{
    nr_text_add(&f->out, "", 1);
    f->out.len--;
    const char *at = strstr(f->out.data, "\r\n\r\n");
    assert_non_null(at);
    return at + 4;
}

static struct fix *open_with(const char *requests)
{
    struct fix *f = fix_new();
    f->mode = ANSWER_LATER;
    feedz(f, requests);
    pump(f);
    return f;
}

static void test_chunks(void **state)
{
    (void)state;
    struct fix *f = open_with(GET);
    struct text_part a, b, none;
    struct nr_exchange *x = begin(f, 0);
    say(x, &a, "data: 1\n\n");
    pump(f);
    assert_true(a.done);
    assert_string_equal(body(f), "9\r\ndata: 1\n\n\r\n");
    assert_non_null(strstr(f->out.data, "transfer-encoding: chunked\r\n"));
    assert_null(strstr(f->out.data, "content-length"));
    say(x, &none, ""); /* would end the body if it were sent */
    say(x, &b, "0123456789abcdefgh");
    end(f, 0);
    pump(f);
    assert_true(none.done && b.done);
    assert_string_equal(body(f), "9\r\ndata: 1\n\n\r\n12\r\n0123456789abcdefgh\r\n0\r\n\r\n");
    assert_int_equal(f->n_done, 1);
    assert_false(f->closed);
    nr_text_clear(&f->out); /* the connection goes on */
    feedz(f, GET);
    pump(f);
    assert_int_equal(f->n_seen, 2);
    begin(f, 1);
    end(f, 1);
    pump(f);
    assert_string_equal(body(f), "0\r\n\r\n");
    fix_free(f);
}

static void test_http_1_0_ends_with_the_connection(void **state)
{
    (void)state;
    struct fix *f = open_with("GET /s HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    struct text_part a;
    say(begin(f, 0), &a, "all of it");
    end(f, 0);
    pump(f);
    assert_string_equal(body(f), "all of it");
    assert_null(strstr(f->out.data, "chunked"));
    assert_true(f->shut || f->closed);
    fix_free(f);
}

static void test_head_has_no_parts(void **state)
{
    (void)state;
    struct fix *f = open_with("HEAD /s HTTP/1.1\r\nhost: a\r\n\r\n");
    struct text_part a;
    say(begin(f, 0), &a, "not sent");
    end(f, 0);
    pump(f);
    assert_true(a.done);
    assert_string_equal(body(f), "");
    assert_int_equal(f->n_done, 1);
    fix_free(f);
}

/* Pipelined requests are answered in their order, whoever begins first. */
static void test_order(void **state)
{
    (void)state;
    struct fix *f = open_with(GET GET GET);
    struct text_part a, b, c;
    assert_int_equal(f->n_seen, 3);
    say(begin(f, 1), &b, "second");
    end(f, 1);
    pump(f);
    assert_int_equal(f->out.len, 0);
    assert_false(b.done);
    answer(f, f->seen[2].x);
    struct nr_exchange *x = begin(f, 0);
    say(x, &a, "first");
    pump(f);
    assert_true(a.done && !b.done);
    say(x, &c, "more");
    end(f, 0);
    pump(f);
    assert_true(b.done && c.done);
    const char *one = strstr(f->out.data, "first"), *two = strstr(f->out.data, "second");
    assert_non_null(one);
    assert_true(two > one);
    nr_text_add(&f->out, "", 1);
    assert_true(strstr(two, "\r\n\r\nok") != NULL);
    assert_int_equal(f->n_done, 3);
    fix_free(f);
}

/* Parts beyond what may wait in the output stay with their writer. */
static void test_slow_reader(void **state)
{
    (void)state;
    struct fix *f = open_with(GET);
    static char large[NR_OUT_HIGH_BYTES];
    memset(large, 'x', sizeof(large));
    struct text_part parts[4];
    f->room = 0;
    struct nr_exchange *x = begin(f, 0);
    for (unsigned i = 0; i < 4; i++) {
        parts[i].done = false;
        parts[i].part = (struct nr_part){.data = large, .len = sizeof(large), .done = on_part_done};
        nr_exchange_write(x, &parts[i].part);
    }
    pump(f);
    assert_true(parts[0].done);
    assert_false(parts[1].done);
    f->room = SIZE_MAX;
    pump(f);
    assert_true(parts[1].done && parts[2].done && parts[3].done);
    end(f, 0);
    pump(f);
    assert_true(f->out.len > 4 * sizeof(large));
    assert_memory_equal(f->out.data + f->out.len - 7, "\r\n0\r\n\r\n", 7);
    fix_free(f);
}

/* A part may be written from within `done` of the one before, as often as one likes. */
struct chain {
    struct nr_part part;
    struct nr_exchange *x;
    unsigned left;
};

static void next_in_chain(struct nr_part *p)
{
    struct chain *c = nr_container_of(p, struct chain, part);
    if (c->left-- > 0) {
        nr_exchange_write(c->x, p);
    }
}

static void test_chain(void **state)
{
    (void)state;
    struct fix *f = open_with(GET);
    struct chain c = {.part = {.data = "ab", .len = 2, .done = next_in_chain}, .left = 100000};
    c.x = begin(f, 0);
    nr_exchange_write(c.x, &c.part); /* a recursion would end the stack here */
    pump(f);
    end(f, 0);
    pump(f);
    assert_int_equal(strlen(body(f)), 100001 * 7 + 5);
    fix_free(f);
}

static void test_reader_goes(void **state)
{
    (void)state;
    struct fix *f = open_with(GET);
    struct text_part a, b;
    f->room = 0;
    f->cancel_leaves_open = true;
    struct nr_exchange *x = begin(f, 0);
    static char large[NR_OUT_HIGH_BYTES];
    struct text_part full = {.part = {.data = large, .len = sizeof(large), .done = on_part_done}};
    nr_exchange_write(x, &full.part);
    say(x, &a, "waits");
    pump(f);
    assert_false(a.done);
    nr_conn_kill(f->c, NR_CANCEL_RESET);
    pump(f);
    assert_true(a.done);
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->n_done, 0);
    say(x, &b, "into nothing");
    assert_true(b.done);
    end(f, 0);
    pump(f);
    assert_int_equal(f->n_done, 1);
    fix_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_http_1_0_ends_with_the_connection),
        cmocka_unit_test(test_head_has_no_parts),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_reader_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
