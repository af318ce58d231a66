/* Parser of text-format protobuf over protobuf-c's descriptors.
 *
 * Why our own: protobuf-c reads the wire format only, and the C++ library would be the server's
 * largest dependency for one small file per model. Being ours, it can say where a mistake is and
 * what was probably meant.
 *
 * DESIGN. A scanner gives one token at a time, with its place; the parser keeps one frame per open
 * message on a stack of fixed size. Values are converted straight into the message, whose memory
 * comes from the caller's arena: arrays of repeated fields grow by doubling and leave the old one
 * behind, so at most twice the memory is used.
 *
 * INVARIANTS
 *  1. A message is attached to its parent when it is opened; on an error the caller throws the
 *     arena away, so nothing is taken apart.
 *  2. The capacity of a repeated field is never stored: it is the next power of two (at least 4)
 *     not less than its count.
 *  3. Every token lies within [text, text + len); nothing reads behind it, also without a NUL.
 *
 * Threads: none of its own; everything is on the caller's stack and arena.
 */
#include "codec/pbtxt.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "codec/pbfield.h"

enum token_kind {
    TOK_END,
    TOK_IDENT,
    TOK_NUMBER,
    TOK_STRING, /* quotes included */
    TOK_PUNCT
};

struct token {
    enum token_kind kind;
    struct nr_str text; /* within the source; empty at the end */
    uint32_t line, column;
};

struct frame {
    ProtobufCMessage *msg;
    const ProtobufCFieldDescriptor *field; /* of the parent that holds msg; NULL at the root */
    uint64_t seen;                         /* bit per field: given at least once */
    uint32_t line, column;                 /* of the opening bracket */
    char close;                            /* '}' or '>'; 0 at the root */
    bool in_list;                          /* opened within [ … ] */
};

struct parser {
    const char *at, *end, *line_start;
    uint32_t line;
    struct token tok; /* the next one, not consumed */
    const char *origin;
    struct nr_arena *arena;
    struct nr_err *err;
    unsigned depth; /* frames in use */
    struct frame frames[NR_PBTXT_MAX_DEPTH];
};

union value {
    uint32_t u32;
    int32_t i32;
    uint64_t u64;
    int64_t i64;
    float f;
    double d;
    protobuf_c_boolean b;
    char *text;
    ProtobufCBinaryData bytes;
    ProtobufCMessage *msg;
};

/* --- errors ----------------------------------------------------------------------------------- */

static nr_status fail_at(struct parser *p, nr_status status, uint32_t line, uint32_t column,
                         const char *fmt, ...) nr_printf(5, 6);
static nr_status fail_at(struct parser *p, nr_status status, uint32_t line, uint32_t column,
                         const char *fmt, ...)
{
    char text[NR_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return nr_fail(p->err, status, "%s:%u:%u: %s", p->origin, line, column, text);
}

#define FAIL(p, tok, ...) fail_at((p), NARU_INVALID, (tok)->line, (tok)->column, __VA_ARGS__)

static nr_status fail_memory(struct parser *p)
{
    return fail_at(p, NARU_NOMEM, p->tok.line, p->tok.column,
                   "the configuration needs more memory than is allowed for it");
}

/* A token as an error text shows it: short, and without bytes that would garble a terminal. */
static const char *shown(const struct token *t, char buf[48])
{
    if (t->kind == TOK_END) {
        return "the end of the file";
    }
    size_t n = 0;
    buf[n++] = '\'';
    for (size_t i = 0; i < t->text.len && n < 40; i++) {
        unsigned char c = (unsigned char)t->text.ptr[i];
        buf[n++] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    buf[n++] = '\'';
    buf[n] = '\0';
    return buf;
}

/* --- scanner ---------------------------------------------------------------------------------- */

static bool is_ident_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static void skip_blank(struct parser *p)
{
    while (p->at < p->end) {
        char c = *p->at;
        if (c == '\n') {
            p->line++;
            p->line_start = p->at + 1;
        } else if (c == '#') {
            const char *nl = memchr(p->at, '\n', (size_t)(p->end - p->at));
            p->at = nl ? nl : p->end;
            continue;
        } else if (c != ' ' && c != '\t' && c != '\r' && c != '\v' && c != '\f') {
            return;
        }
        p->at++;
    }
}

/* End of the number that starts at s: letters and dots included, so that "12ab" is one bad token,
 * and a sign directly behind the e of a decimal exponent. */
static const char *number_end(const char *s, const char *end)
{
    bool hex = end - s > 1 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    const char *at = s;
    while (at < end) {
        if (is_digit(*at) || is_ident_start(*at) || *at == '.') {
            at++;
        } else if ((*at == '-' || *at == '+') && !hex && at > s &&
                   (at[-1] == 'e' || at[-1] == 'E')) {
            at++;
        } else {
            break;
        }
    }
    return at;
}

static nr_status scan_string(struct parser *p, struct token *t, const char **ret_end)
{
    char quote = *p->at;
    const char *s = p->at + 1;
    while (s < p->end && *s != quote && *s != '\n') {
        s += *s == '\\' && p->end - s > 1 && s[1] != '\n' ? 2 : 1;
    }
    if (s >= p->end || *s != quote) {
        return FAIL(p, t, "this string has no closing %c on its line", quote);
    }
    *ret_end = s + 1;
    return NARU_OK;
}

/* Reads the next token into p->tok. */
static nr_status advance(struct parser *p)
{
    skip_blank(p);
    struct token *t = &p->tok;
    t->line = p->line;
    t->column = (uint32_t)(p->at - p->line_start) + 1;
    t->text = (struct nr_str){p->at, 0};
    if (p->at >= p->end) {
        t->kind = TOK_END;
        return NARU_OK;
    }
    const char *s = p->at;
    char c = *s;
    if (is_ident_start(c)) {
        t->kind = TOK_IDENT;
        while (s < p->end && (is_ident_start(*s) || is_digit(*s))) {
            s++;
        }
    } else if (is_digit(c) || (c == '.' && p->end - s > 1 && is_digit(s[1]))) {
        t->kind = TOK_NUMBER;
        s = number_end(s, p->end);
    } else if (c == '"' || c == '\'') {
        t->kind = TOK_STRING;
        nr_status st = scan_string(p, t, &s);
        if (st != NARU_OK) {
            return st;
        }
    } else if (c != '\0' && strchr("{}<>[]:,;-", c)) {
        t->kind = TOK_PUNCT;
        s++;
    } else {
        return FAIL(p, t, "byte 0x%02x means nothing here", (unsigned)(unsigned char)c);
    }
    t->text.len = (size_t)(s - p->at);
    p->at = s;
    return NARU_OK;
}

static bool is_punct(const struct token *t, char c)
{
    return t->kind == TOK_PUNCT && t->text.ptr[0] == c;
}

/* Consumes the punctuation c when it is next. */
static nr_status accept(struct parser *p, char c, bool *ret)
{
    *ret = is_punct(&p->tok, c);
    return *ret ? advance(p) : NARU_OK;
}

/* --- strings ---------------------------------------------------------------------------------- */

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | (c >> 6));
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | (c >> 12));
        out[1] = (char)(0x80 | ((c >> 6) & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | (c >> 18));
    out[1] = (char)(0x80 | ((c >> 12) & 0x3f));
    out[2] = (char)(0x80 | ((c >> 6) & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

static int digit_of(char c, unsigned base)
{
    int v = is_digit(c)            ? c - '0'
            : c >= 'a' && c <= 'f' ? c - 'a' + 10
            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                   : 99;
    return (unsigned)v < base ? v : -1;
}

/* Up to `max` digits at *s; how many were read. */
static unsigned digits(const char **s, const char *end, unsigned base, unsigned max, uint32_t *ret)
{
    unsigned n = 0;
    uint32_t v = 0;
    while (n < max && *s < end && digit_of(**s, base) >= 0) {
        v = v * base + (uint32_t)digit_of(**s, base);
        (*s)++;
        n++;
    }
    *ret = v;
    return n;
}

/* One escape; *s is behind the backslash. Returns the bytes written, 0 for an unknown or broken
 * escape. An escape's text is never shorter than its bytes. */
static size_t unescape(const char **s, const char *end, char *out)
{
    static const char from[] = "abfnrtv\\'\"?";
    static const char to[] = "\a\b\f\n\r\t\v\\'\"?";
    char c = **s;
    uint32_t v;
    if (c >= '0' && c <= '7') {
        (void)digits(s, end, 8, 3, &v);
        *out = (char)v;
        return v <= 0xff;
    }
    (*s)++;
    if (c == 'x' || c == 'X') {
        unsigned n = digits(s, end, 16, 2, &v);
        *out = (char)v;
        return n > 0;
    }
    if (c == 'u' || c == 'U') {
        unsigned want = c == 'u' ? 4 : 8;
        bool ok =
            digits(s, end, 16, want, &v) == want && v <= 0x10ffff && !(v >= 0xd800 && v <= 0xdfff);
        return ok ? put_utf8(out, v) : 0;
    }
    const char *known = c ? strchr(from, c) : NULL;
    if (!known) {
        return 0;
    }
    *out = to[known - from];
    return 1;
}

/* Appends the value of one literal (quotes included) to out; false: a bad escape. */
static bool append_literal(struct nr_str literal, char *out, size_t *len)
{
    const char *s = literal.ptr + 1;
    const char *end = literal.ptr + literal.len - 1;
    while (s < end) {
        if (*s != '\\') {
            out[(*len)++] = *s++;
            continue;
        }
        s++;
        size_t n = s < end ? unescape(&s, end, out + *len) : 0;
        if (n == 0) {
            return false;
        }
        *len += n;
    }
    return true;
}

/* The value of all adjacent literals from the current token on, into the arena, NUL behind. */
static nr_status string_value(struct parser *p, const ProtobufCFieldDescriptor *f, char **ret,
                              size_t *ret_len)
{
    struct token first = p->tok;
    if (first.kind != TOK_STRING) {
        char buf[48];
        return FAIL(p, &first, "%s is a string and needs quotes: expected \"…\", found %s", f->name,
                    shown(&first, buf));
    }
    /* first pass: how long all adjacent literals are; second pass: their values */
    const char *at = p->at, *line_start = p->line_start;
    uint32_t line = p->line;
    size_t raw = 0;
    nr_status st = NARU_OK;
    while (st == NARU_OK && p->tok.kind == TOK_STRING) {
        raw += p->tok.text.len;
        st = advance(p);
    }
    if (st != NARU_OK) {
        return st;
    }
    p->at = at;
    p->line_start = line_start;
    p->line = line;
    p->tok = first;
    char *out = nr_arena_try_alloc(p->arena, raw);
    if (!out) {
        return fail_memory(p);
    }
    size_t len = 0;
    while (p->tok.kind == TOK_STRING) {
        if (!append_literal(p->tok.text, out, &len)) {
            return FAIL(p, &p->tok,
                        "this string has an escape that is none of \\n \\t \\\" \\\\ \\ooo \\xhh "
                        "\\uhhhh and so on");
        }
        st = advance(p);
        NR_ASSERT(st == NARU_OK); /* as in the first pass */
    }
    out[len] = '\0'; /* in place of a quote */
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        if (memchr(out, 0, len)) {
            return FAIL(p, &first, "%s must not contain a NUL character", f->name);
        }
        if (!nr_str_is_utf8((struct nr_str){out, len})) {
            return FAIL(p, &first, "%s is not valid UTF-8", f->name);
        }
    }
    *ret = out;
    *ret_len = len;
    return NARU_OK;
}

/* --- scalars ---------------------------------------------------------------------------------- */

/* Decimal, 0octal or 0xhex; false when it is none or above 64 bits. */
static bool unsigned_value(struct nr_str s, uint64_t *ret)
{
    if (s.len < 2 || s.ptr[0] != '0') {
        return nr_str_to_u64(s, ret);
    }
    unsigned base = s.ptr[1] == 'x' || s.ptr[1] == 'X' ? 16 : 8;
    size_t i = base == 16 ? 2 : 1;
    if (i >= s.len) {
        return false;
    }
    uint64_t v = 0;
    for (; i < s.len; i++) {
        int d = digit_of(s.ptr[i], base);
        if (d < 0 || __builtin_mul_overflow(v, (uint64_t)base, &v) ||
            __builtin_add_overflow(v, (uint64_t)d, &v)) {
            return false;
        }
    }
    *ret = v;
    return true;
}

/* [-] number within [min, max], as the bits of an int64 or a uint64. */
static nr_status integer_value(struct parser *p, const ProtobufCFieldDescriptor *f, int64_t min,
                               uint64_t max, uint64_t *ret)
{
    struct token first = p->tok;
    bool negative;
    nr_status st = accept(p, '-', &negative);
    if (st != NARU_OK) {
        return st;
    }
    char buf[48];
    uint64_t v;
    bool number = p->tok.kind == TOK_NUMBER;
    if (!number || !unsigned_value(p->tok.text, &v) ||
        v > (negative ? (uint64_t)0 - (uint64_t)min : max)) {
        return FAIL(p, &first, "%s must be a whole number from %lld to %llu, found %s%s", f->name,
                    (long long)min, (unsigned long long)max, negative ? "-" : "",
                    shown(&p->tok, buf));
    }
    *ret = negative ? (uint64_t)0 - v : v;
    return advance(p);
}

static nr_status float_value(struct parser *p, const ProtobufCFieldDescriptor *f, double *ret)
{
    struct token first = p->tok;
    bool negative;
    nr_status st = accept(p, '-', &negative);
    if (st != NARU_OK) {
        return st;
    }
    struct nr_str s = p->tok.text;
    double v = 0;
    bool ok = false;
    if (p->tok.kind == TOK_IDENT) {
        if (nr_str_eq_nocase(s, NR_STR("inf")) || nr_str_eq_nocase(s, NR_STR("infinity"))) {
            v = (double)INFINITY;
            ok = true;
        } else if (nr_str_eq_nocase(s, NR_STR("nan"))) {
            v = (double)NAN;
            ok = true;
        }
    } else if (p->tok.kind == TOK_NUMBER) {
        if (s.len > 1 && (s.ptr[s.len - 1] == 'f' || s.ptr[s.len - 1] == 'F')) {
            s.len--;
        }
        ok = nr_str_to_double(s, &v);
    }
    if (!ok) {
        char buf[48];
        return FAIL(p, &first, "%s must be a number, found %s", f->name, shown(&p->tok, buf));
    }
    *ret = negative && !isnan(v) ? -v : v; /* one nan only */
    return advance(p);
}

static nr_status bool_value(struct parser *p, const ProtobufCFieldDescriptor *f,
                            protobuf_c_boolean *ret)
{
    static const char *const yes[] = {"true", "True", "t", "1"};
    static const char *const no[] = {"false", "False", "f", "0"};
    for (size_t i = 0; i < NR_COUNT(yes) && p->tok.kind != TOK_STRING; i++) {
        if (nr_str_is(p->tok.text, yes[i]) || nr_str_is(p->tok.text, no[i])) {
            *ret = nr_str_is(p->tok.text, yes[i]);
            return advance(p);
        }
    }
    char buf[48];
    return FAIL(p, &p->tok, "%s must be true or false, found %s", f->name, shown(&p->tok, buf));
}

static nr_status enum_value(struct parser *p, const ProtobufCFieldDescriptor *f, int32_t *ret)
{
    const ProtobufCEnumDescriptor *d = f->descriptor;
    const ProtobufCEnumValue *near = NULL;
    unsigned near_distance = UINT32_MAX;
    uint64_t number = 0;
    bool by_number = p->tok.kind == TOK_NUMBER && unsigned_value(p->tok.text, &number);
    for (unsigned i = 0; i < d->n_values && (by_number || p->tok.kind == TOK_IDENT); i++) {
        const ProtobufCEnumValue *v = &d->values[i];
        if (by_number ? v->value >= 0 && (uint64_t)v->value == number
                      : nr_str_is(p->tok.text, v->name)) {
            *ret = v->value;
            return advance(p);
        }
        unsigned distance = nr_str_distance(p->tok.text, nr_str_from(v->name));
        if (distance < near_distance) {
            near_distance = distance;
            near = v;
        }
    }
    char buf[48];
    if (near && !by_number && near_distance <= 1 + p->tok.text.len / 3) {
        return FAIL(p, &p->tok, "%s is no value of %s: did you mean %s?", shown(&p->tok, buf),
                    f->name, near->name);
    }
    return FAIL(p, &p->tok, "%s is no value of %s: expected %s … %s", shown(&p->tok, buf), f->name,
                d->values[0].name, d->values[d->n_values - 1].name);
}

static nr_status scalar_value(struct parser *p, const ProtobufCFieldDescriptor *f, union value *v)
{
    nr_status st;
    size_t len;
    uint64_t bits = 0;
    double d = 0;
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        st = integer_value(p, f, INT32_MIN, INT32_MAX, &bits);
        v->i32 = (int32_t)(int64_t)bits;
        return st;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        st = integer_value(p, f, 0, UINT32_MAX, &bits);
        v->u32 = (uint32_t)bits;
        return st;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        st = integer_value(p, f, INT64_MIN, INT64_MAX, &bits);
        v->i64 = (int64_t)bits;
        return st;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return integer_value(p, f, 0, UINT64_MAX, &v->u64);
    case PROTOBUF_C_TYPE_FLOAT:
        st = float_value(p, f, &d);
        v->f = (float)d;
        return st;
    case PROTOBUF_C_TYPE_DOUBLE:
        return float_value(p, f, &v->d);
    case PROTOBUF_C_TYPE_BOOL:
        return bool_value(p, f, &v->b);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_value(p, f, &v->i32);
    case PROTOBUF_C_TYPE_STRING:
        return string_value(p, f, &v->text, &len);
    case PROTOBUF_C_TYPE_BYTES: {
        char *data = NULL;
        st = string_value(p, f, &data, &v->bytes.len);
        v->bytes.data = (uint8_t *)data;
        return st;
    }
    case PROTOBUF_C_TYPE_MESSAGE:
        break;
    }
    NR_ASSERT(false && "messages are no scalars");
    return NARU_INTERNAL;
}

/* --- storing ---------------------------------------------------------------------------------- */

static struct frame *top(struct parser *p)
{
    return &p->frames[p->depth - 1];
}

/* Notes that field f is given here; refuses a second time and a second member of a oneof. */
static nr_status note_given(struct parser *p, const ProtobufCFieldDescriptor *f,
                            const struct token *where)
{
    struct frame *fr = top(p);
    const ProtobufCMessageDescriptor *d = fr->msg->descriptor;
    uint64_t bit = UINT64_C(1) << (f - d->fields);
    if (f->label != PROTOBUF_C_LABEL_REPEATED) {
        if (fr->seen & bit) {
            return FAIL(p, where, "%s is given twice in this %s", f->name, d->short_name);
        }
        for (unsigned i = 0; i < d->n_fields; i++) {
            if ((fr->seen >> i & 1) != 0 && nr_pbfield_same_oneof(f, &d->fields[i])) {
                return FAIL(p, where, "%s and %s exclude each other: give one of them", f->name,
                            d->fields[i].name);
            }
        }
    }
    fr->seen |= bit;
    return NARU_OK;
}

/* Appends or sets; v holds a value of f's type. */
static nr_status store(struct parser *p, const ProtobufCFieldDescriptor *f, const union value *v)
{
    ProtobufCMessage *m = top(p)->msg;
    size_t size = nr_pbfield_size(f);
    void *at = nr_pbfield_at(m, f);
    if (f->label != PROTOBUF_C_LABEL_REPEATED) {
        memcpy(at, v, size);
        if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0) {
            memcpy((char *)m + f->quantifier_offset, &f->id, sizeof f->id);
        }
        return NARU_OK;
    }
    size_t n = nr_pbfield_count(m, f);
    char *array = *(char **)at;
    if (n == 0 || (n >= 4 && (n & (n - 1)) == 0)) { /* invariant 2: full */
        size_t capacity = n == 0 ? 4 : n * 2;
        char *more = nr_arena_try_array(p->arena, capacity, size);
        if (!more) {
            return fail_memory(p);
        }
        if (n > 0) {
            memcpy(more, array, n * size);
        }
        array = more;
        *(char **)at = array;
    }
    memcpy(array + n * size, v, size);
    n++;
    memcpy((char *)m + f->quantifier_offset, &n, sizeof n);
    return NARU_OK;
}

static nr_status message_new(struct parser *p, const ProtobufCMessageDescriptor *d,
                             ProtobufCMessage **ret)
{
    NR_ASSERT(d->n_fields <= NR_PBFIELD_MAX);
    ProtobufCMessage *m = nr_arena_try_array(p->arena, 1, d->sizeof_message);
    if (!m) {
        (void)fail_memory(p);
        return NARU_NOMEM; /* said here too: the caller's check is then proof enough */
    }
    protobuf_c_message_init(d, m);
    *ret = m;
    return NARU_OK;
}

/* Opens a message of field f; the current token is its bracket. */
static nr_status open_message(struct parser *p, const ProtobufCFieldDescriptor *f, bool in_list)
{
    struct token bracket = p->tok;
    char buf[48];
    if (!is_punct(&bracket, '{') && !is_punct(&bracket, '<')) {
        return FAIL(p, &bracket, "%s is a group of fields: expected '{', found %s", f->name,
                    shown(&bracket, buf));
    }
    if (p->depth == NR_PBTXT_MAX_DEPTH) {
        return fail_at(p, NARU_TOO_LARGE, bracket.line, bracket.column,
                       "nested deeper than %d levels", NR_PBTXT_MAX_DEPTH);
    }
    union value v;
    nr_status st = message_new(p, f->descriptor, &v.msg);
    if (st == NARU_OK) {
        st = store(p, f, &v);
    }
    if (st != NARU_OK) {
        return st;
    }
    p->frames[p->depth++] = (struct frame){.msg = v.msg,
                                           .field = f,
                                           .line = bracket.line,
                                           .column = bracket.column,
                                           .close = bracket.text.ptr[0] == '{' ? '}' : '>',
                                           .in_list = in_list};
    return advance(p);
}

static bool same_key(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    const ProtobufCFieldDescriptor *key = &a->descriptor->fields[0];
    const void *x = nr_pbfield_at(a, key), *y = nr_pbfield_at(b, key);
    if (key->type == PROTOBUF_C_TYPE_STRING) {
        return strcmp(*(char *const *)x, *(char *const *)y) == 0;
    }
    return memcmp(x, y, nr_pbfield_size(key)) == 0;
}

/* The entry that was just closed is the last of its map. */
static nr_status map_entry_closed(struct parser *p, const struct frame *entry)
{
    ProtobufCMessage *parent = top(p)->msg;
    const ProtobufCFieldDescriptor *f = entry->field;
    const ProtobufCFieldDescriptor *value = &entry->msg->descriptor->fields[1];
    if (value->type == PROTOBUF_C_TYPE_MESSAGE && nr_pbfield_count(entry->msg, value) == 0) {
        ProtobufCMessage *empty = NULL;
        nr_status st = message_new(p, value->descriptor, &empty);
        if (st != NARU_OK) {
            return st;
        }
        *(ProtobufCMessage **)nr_pbfield_at(entry->msg, value) = empty;
    }
    size_t n = nr_pbfield_count(parent, f);
    if (n > NR_PBTXT_MAX_MAP) {
        return fail_at(p, NARU_TOO_LARGE, entry->line, entry->column, "%s has more than %d entries",
                       f->name, NR_PBTXT_MAX_MAP);
    }
    ProtobufCMessage **all = *(ProtobufCMessage ***)nr_pbfield_at(parent, f);
    for (size_t i = 0; i + 1 < n; i++) {
        if (same_key(all[i], entry->msg)) {
            /* the later one wins. The array may now be larger than invariant 2 says, never
             * smaller, so that the next append at worst grows it too early. */
            all[i] = entry->msg;
            n--;
            memcpy((char *)parent + f->quantifier_offset, &n, sizeof n);
            break;
        }
    }
    return NARU_OK;
}

/* --- grammar ---------------------------------------------------------------------------------- */

static nr_status fail_unknown(struct parser *p, const struct token *name)
{
    const ProtobufCMessageDescriptor *d = top(p)->msg->descriptor;
    const char *near = NULL;
    unsigned near_distance = UINT32_MAX;
    for (unsigned i = 0; i < d->n_fields; i++) {
        unsigned distance = nr_str_distance(name->text, nr_str_from(d->fields[i].name));
        if (distance < near_distance) {
            near_distance = distance;
            near = d->fields[i].name;
        }
    }
    char buf[48];
    if (near && near_distance <= 1 + name->text.len / 3) {
        return FAIL(p, name, "%s has no field %s: did you mean '%s'?", d->short_name,
                    shown(name, buf), near);
    }
    struct nr_text list;
    nr_text_init(&list, 320);
    for (unsigned i = 0; i < d->n_fields && list.len < 256; i++) {
        nr_text_fmt(&list, "%s%s", i ? ", " : "", d->fields[i].name);
    }
    nr_status st =
        FAIL(p, name, "%s has no field %s; its fields: %s%s", d->short_name, shown(name, buf),
             list.data ? list.data : "none", list.len >= 256 ? ", …" : "");
    nr_text_done(&list);
    return st;
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *d,
                                                  struct nr_str name)
{
    for (unsigned i = 0; i < d->n_fields; i++) {
        if (nr_str_is(name, d->fields[i].name)) {
            return &d->fields[i];
        }
    }
    return NULL;
}

/* One `,` or `;` may follow a field. */
static nr_status separator(struct parser *p)
{
    return is_punct(&p->tok, ',') || is_punct(&p->tok, ';') ? advance(p) : NARU_OK;
}

/* Behind the [ of a scalar list, up to and with the ]. */
static nr_status scalar_list(struct parser *p, const ProtobufCFieldDescriptor *f)
{
    bool closed, comma;
    nr_status st = accept(p, ']', &closed);
    while (st == NARU_OK && !closed) {
        union value v = {0};
        st = scalar_value(p, f, &v);
        if (st == NARU_OK) {
            st = store(p, f, &v);
        }
        if (st == NARU_OK) {
            st = accept(p, ',', &comma);
        }
        if (st == NARU_OK && !comma) {
            if (!is_punct(&p->tok, ']')) {
                char buf[48];
                return FAIL(p, &p->tok, "expected ',' or ']' in the list of %s, found %s", f->name,
                            shown(&p->tok, buf));
            }
            st = accept(p, ']', &closed);
        }
    }
    return st;
}

/* The token behind the field's name and colon is current. Leaves a frame open for a message. */
static nr_status field_value(struct parser *p, const ProtobufCFieldDescriptor *f)
{
    bool list, closed;
    if (is_punct(&p->tok, '[') && f->label != PROTOBUF_C_LABEL_REPEATED) {
        return FAIL(p, &p->tok, "%s takes one value, not a list", f->name);
    }
    nr_status st = accept(p, '[', &list);
    if (st != NARU_OK) {
        return st;
    }
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
        if (list) {
            st = accept(p, ']', &closed);
            if (st != NARU_OK || closed) {
                return st == NARU_OK ? separator(p) : st;
            }
        }
        return open_message(p, f, list);
    }
    if (list) {
        st = scalar_list(p, f);
    } else {
        union value v = {0};
        st = scalar_value(p, f, &v);
        if (st == NARU_OK) {
            st = store(p, f, &v);
        }
    }
    return st == NARU_OK ? separator(p) : st;
}

/* One field, from its name on. */
static nr_status field(struct parser *p)
{
    struct token name = p->tok;
    char buf[48];
    if (is_punct(&name, '[')) {
        return FAIL(p, &name, "extensions and Any messages ([…]) are not part of a configuration");
    }
    if (name.kind != TOK_IDENT) {
        return FAIL(p, &name, "expected a field's name, found %s", shown(&name, buf));
    }
    const ProtobufCFieldDescriptor *f = find_field(top(p)->msg->descriptor, name.text);
    if (!f) {
        return fail_unknown(p, &name);
    }
    bool colon;
    nr_status st = note_given(p, f, &name);
    if (st == NARU_OK) {
        st = advance(p);
    }
    if (st == NARU_OK) {
        st = accept(p, ':', &colon);
    }
    if (st != NARU_OK) {
        return st;
    }
    if (!colon && f->type != PROTOBUF_C_TYPE_MESSAGE) {
        return FAIL(p, &p->tok, "expected ':' after %s, found %s", f->name, shown(&p->tok, buf));
    }
    return field_value(p, f);
}

/* The current token closes the top frame (not the root). */
static nr_status close_message(struct parser *p)
{
    struct frame done = *top(p);
    p->depth--;
    nr_status st = advance(p);
    if (st == NARU_OK && nr_pbfield_is_map(done.field)) {
        st = map_entry_closed(p, &done);
    }
    if (st != NARU_OK || !done.in_list) {
        return st == NARU_OK ? separator(p) : st;
    }
    bool more, closed;
    st = accept(p, ',', &more);
    if (st != NARU_OK || more) {
        return st == NARU_OK ? open_message(p, done.field, true) : st;
    }
    st = accept(p, ']', &closed);
    if (st == NARU_OK && !closed) {
        char buf[48];
        return FAIL(p, &p->tok, "expected ',' or ']' in the list of %s, found %s", done.field->name,
                    shown(&p->tok, buf));
    }
    return st == NARU_OK ? separator(p) : st;
}

nr_status nr_pbtxt_parse(const ProtobufCMessageDescriptor *desc, struct nr_str text,
                         const char *origin, struct nr_arena *a, ProtobufCMessage **ret,
                         uint64_t *given, struct nr_err *err)
{
    struct parser p = {.at = text.ptr,
                       .end = text.ptr + text.len,
                       .line_start = text.ptr,
                       .line = 1,
                       .origin = origin,
                       .arena = a,
                       .err = err};
    ProtobufCMessage *root = NULL;
    nr_status st = advance(&p);
    if (st == NARU_OK) {
        st = message_new(&p, desc, &root);
    }
    if (st != NARU_OK) {
        return st;
    }
    p.frames[p.depth++] = (struct frame){.msg = root};
    while (st == NARU_OK) {
        struct frame *fr = top(&p);
        if (p.tok.kind == TOK_END) {
            if (!fr->field) {
                break;
            }
            return FAIL(&p, fr, "the '%c' of %s is never closed", fr->close == '}' ? '{' : '<',
                        fr->field->name);
        }
        st = fr->close && is_punct(&p.tok, fr->close) ? close_message(&p) : field(&p);
    }
    if (st == NARU_OK) {
        *ret = root;
        if (given) {
            *given = p.frames[0].seen;
        }
    }
    return st;
}

bool nr_pbtxt_given(const ProtobufCMessageDescriptor *desc, uint64_t given, const char *name)
{
    const ProtobufCFieldDescriptor *f = find_field(desc, nr_str_from(name));
    NR_ASSERT(f != NULL);
    return (given >> (f - desc->fields) & 1) != 0;
}
