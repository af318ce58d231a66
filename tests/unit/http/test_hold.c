/* Exchanges that the app answers while it still uses them: what stays, and that nobody waits for it. */
#include "http_harness.h"

#define GET "GET /a HTTP/1.1\r\nhost: a\r\n\r\n"
#define POST "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"

static struct fix *open_with(const char *requests)
{
    struct fix *f = fix_new();
    f->mode = ANSWER_LATER;
    f->cancel_leaves_open = true;
    feedz(f, requests);
    pump(f);
    return f;
}

static const char *sent(struct fix *f)
{
    nr_text_add(&f->out, "", 1);
    f->out.len--;
    return f->out.data;
}

static void test_connection_goes_on(void **state)
{
    (void)state;
    struct fix *f = open_with(POST);
    struct nr_exchange *x = f->seen[0].x;
    struct nr_str body = x->body;
    nr_exchange_hold(x);
    assert_ptr_not_equal(nr_exchange_arena(x), &x->arena);
    answer(f, x);
    pump(f);
    assert_int_equal(f->n_done, 0);
    assert_non_null(strstr(sent(f), "200 OK"));
    /* the next requests of the connection, in memory that the held one looks at */
    for (unsigned i = 1; i < 40; i++) {
        feedz(f, "POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nXXXX");
        pump(f);
        assert_int_equal(f->n_seen, i + 1);
        answer(f, f->seen[i].x);
        pump(f);
        assert_int_equal(f->n_done, i);
    }
    assert_memory_equal(body.ptr, "body", 4);
    assert_true(nr_str_is(x->path, "/a"));
    assert_string_equal(x->peer->text, "memory");
    nr_exchange_release(x);
    assert_int_equal(f->n_done, 40);
    assert_true(f->seen[0].done);
    fix_free(f);
}

static void test_answers_in_order(void **state)
{
    (void)state;
    struct fix *f = open_with(GET GET GET);
    struct nr_exchange *second = f->seen[1].x;
    nr_exchange_hold(second);
    answer(f, second); /* kept until the first one is answered */
    pump(f);
    assert_int_equal(f->out.len, 0);
    answer(f, f->seen[0].x);
    pump(f);
    assert_int_equal(f->n_done, 1);
    answer(f, f->seen[2].x);
    pump(f);
    assert_int_equal(f->n_done, 2);
    nr_exchange_release(second);
    assert_int_equal(f->n_done, 3);
    fix_free(f);
}

/* Released before its bytes are gone: done when they are. */
static void test_released_first(void **state)
{
    (void)state;
    struct fix *f = open_with(GET);
    struct nr_exchange *x = f->seen[0].x;
    nr_exchange_hold(x);
    f->room = 0;
    answer(f, x);
    pump(f);
    nr_exchange_release(x);
    pump(f);
    assert_int_equal(f->n_done, 0);
    f->room = SIZE_MAX;
    pump(f);
    assert_int_equal(f->n_done, 1);
    fix_free(f);
}

/* A client that has gone: its connection is another's, the exchange still somebody's. */
static void test_client_gone(void **state)
{
    (void)state;
    struct fix *f = open_with(POST);
    struct nr_exchange *x = f->seen[0].x;
    nr_conn_on_event(f->c, EPOLLERR | EPOLLHUP);
    pump(f);
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->seen[0].why, NR_CANCEL_RESET);
    assert_int_equal(atomic_load(&f->e.open), 1); /* its place is still taken */
    nr_exchange_hold(x);
    answer(f, x);
    pump(f);
    assert_int_equal(atomic_load(&f->e.open), 0);
    assert_int_equal(f->n_done, 0);
    const struct nr_peer other = {.text = "somebody else"};
    atomic_fetch_add(&f->e.open, 1);
    f->closed = false;
    f->c = nr_conn_open(&f->e, &wire, f, -1, &other);
    pump(f);
    assert_string_equal(x->peer->text, "memory");
    assert_memory_equal(x->body.ptr, "body", 4);
    nr_exchange_release(x);
    assert_int_equal(f->n_done, 1);
    fix_free(f);
}

static void test_half_close_then_deadline(void **state)
{
    (void)state;
    struct fix *f = open_with("GET /a HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 20m\r\n\r\n");
    f->fin = true;
    pump(f);
    assert_int_equal(f->n_cancel, 1);
    assert_int_equal(f->seen[0].why, NR_CANCEL_HALF_CLOSE);
    wait_ns(f, 21 * NR_MS_NS);
    assert_int_equal(f->n_cancel, 2);
    assert_int_equal(f->seen[0].why, NR_CANCEL_DEADLINE);
    answer(f, f->seen[0].x);
    pump(f);
    assert_int_equal(f->n_done, 1);
    assert_true(f->closed);
    fix_free(f);
}

static void test_deadline_field(void **state)
{
    (void)state;
    struct fix *f = open_with("GET /a HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 50u\r\n\r\n" GET);
    assert_int_equal(f->seen[0].x->deadline_ns, f->seen[0].x->start_ns + 50000);
    assert_int_equal(f->seen[1].x->deadline_ns, 0);
    wait_ns(f, NR_MS_NS);
    assert_int_equal(f->n_cancel, 1);
    fix_hangup(f);
    fix_free(f);
    f = open_with("GET /a HTTP/1.1\r\nhost: a\r\ngrpc-timeout: soon\r\n\r\n");
    assert_non_null(strstr(sent(f), "400 Bad Request"));
    assert_non_null(strstr(sent(f), "malformed grpc-timeout"));
    fix_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connection_goes_on),       cmocka_unit_test(test_answers_in_order),
        cmocka_unit_test(test_released_first),           cmocka_unit_test(test_client_gone),
        cmocka_unit_test(test_half_close_then_deadline), cmocka_unit_test(test_deadline_field)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
