/* Writers of JSON and of text-format protobuf over protobuf-c's descriptors.
 *
 * DESIGN. Both walk the message with one frame per open message; a frame remembers the field and,
 * within a repeated message field, the element it has come to. The two differ in what they leave
 * out and in punctuation, so each has a step function of its own over the shared frames and the
 * shared scalar.
 *
 * INVARIANTS
 *  1. frames[0..depth) are open; each has had its opening bracket written and not its closing one.
 *  2. `element` is meaningful only while `inside` is set.
 */
#include "codec/pbwrite.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "codec/base64.h"
#include "codec/pbfield.h"

#define MAX_DEPTH 64

struct frame {
    const ProtobufCMessage *msg;
    uint8_t order[NR_PBFIELD_MAX];
    unsigned pos;   /* index into order */
    size_t element; /* next element of the field at pos */
    bool inside;    /* a repeated message field is open */
    bool first;     /* nothing written in this message yet */
};

struct writer {
    struct nr_text *out;
    bool json;
    unsigned depth;
    struct frame *frames; /* [MAX_DEPTH], on the heap: 6 KiB */
};

static void push(struct writer *w, const ProtobufCMessage *m)
{
    if (w->depth == MAX_DEPTH) {
        w->out->failed = true;
        return;
    }
    struct frame *fr = &w->frames[w->depth++];
    *fr = (struct frame){.msg = m, .first = true};
    nr_pbfield_order(m->descriptor, fr->order);
}

/* Shortest decimal that gives the same number again. */
static void number(struct nr_text *out, double v, bool is_float)
{
    char buf[40];
    for (int digits = is_float ? 6 : 15; digits <= 17; digits++) {
        int n = snprintf(buf, sizeof buf, "%.*g", digits, v);
        double back;
        if (n > 0 && nr_str_to_double((struct nr_str){buf, (size_t)n}, &back) &&
            (is_float ? (float)back == (float)v : back == v)) {
            break;
        }
    }
    nr_text_str(out, buf);
}

static void real(struct writer *w, double v, bool is_float)
{
    if (isnan(v)) {
        nr_text_str(w->out, w->json ? "\"NaN\"" : "nan");
    } else if (isinf(v)) {
        const char *text =
            w->json ? (v < 0 ? "\"-Infinity\"" : "\"Infinity\"") : (v < 0 ? "-inf" : "inf");
        nr_text_str(w->out, text);
    } else {
        number(w->out, v, is_float);
    }
}

/* A string of the text form: quotes, backslashes and control bytes escaped; with `all`, every byte
 * that is not printable ASCII too (bytes fields need not be UTF-8). */
static void quoted(struct nr_text *out, struct nr_str s, bool all)
{
    nr_text_str(out, "\"");
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c == '"' || c == '\\') {
            nr_text_fmt(out, "\\%c", c);
        } else if (c == '\n') {
            nr_text_str(out, "\\n");
        } else if (c < 0x20 || c == 0x7f || (all && c > 0x7f)) {
            nr_text_fmt(out, "\\%03o", c);
        } else {
            nr_text_add(out, &c, 1);
        }
    }
    nr_text_str(out, "\"");
}

static void bytes(struct writer *w, const ProtobufCBinaryData *b)
{
    if (!w->json) {
        quoted(w->out, (struct nr_str){(const char *)b->data, b->len}, true);
        return;
    }
    size_t len = nr_base64_encoded_len(b->len);
    nr_text_str(w->out, "\"");
    if (nr_text_reserve(w->out, len + 1)) {
        nr_base64_encode(b->data, b->len, w->out->data + w->out->len);
        w->out->len += len;
        w->out->data[w->out->len] = '\0';
    }
    nr_text_str(w->out, "\"");
}

static void enumerator(struct writer *w, const ProtobufCFieldDescriptor *f, int32_t number_)
{
    const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(f->descriptor, number_);
    if (v) {
        nr_text_fmt(w->out, w->json ? "\"%s\"" : "%s", v->name);
    } else {
        nr_text_fmt(w->out, "%d", number_);
    }
}

static void scalar(struct writer *w, const ProtobufCFieldDescriptor *f, const void *at)
{
    struct nr_text *out = w->out;
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        nr_text_fmt(out, "%" PRId32, *(const int32_t *)at);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        nr_text_fmt(out, "%" PRIu32, *(const uint32_t *)at);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        nr_text_fmt(out, "%" PRId64, *(const int64_t *)at);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        nr_text_fmt(out, "%" PRIu64, *(const uint64_t *)at);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        real(w, (double)*(const float *)at, true);
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        real(w, *(const double *)at, false);
        break;
    case PROTOBUF_C_TYPE_BOOL:
        nr_text_str(out, *(const protobuf_c_boolean *)at ? "true" : "false");
        break;
    case PROTOBUF_C_TYPE_ENUM:
        enumerator(w, f, *(const int32_t *)at);
        break;
    case PROTOBUF_C_TYPE_STRING: {
        struct nr_str s = nr_str_from(*(char *const *)at);
        if (w->json) {
            nr_text_json(out, s);
        } else {
            quoted(out, s, false);
        }
        break;
    }
    case PROTOBUF_C_TYPE_BYTES:
        bytes(w, at);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        NR_ASSERT(false && "messages are no scalars");
    }
}

static void scalars(struct writer *w, const struct frame *fr, const ProtobufCFieldDescriptor *f,
                    const char *between)
{
    size_t n = nr_pbfield_count(fr->msg, f);
    nr_text_str(w->out, "[");
    for (size_t i = 0; i < n && !w->out->failed; i++) {
        nr_text_str(w->out, i ? between : "");
        scalar(w, f, nr_pbfield_get(fr->msg, f, i));
    }
    nr_text_str(w->out, "]");
}

/* --- JSON ------------------------------------------------------------------------------------- */

/* The next element of the repeated message field that is open in fr. */
static void json_element(struct writer *w, struct frame *fr, const ProtobufCFieldDescriptor *f)
{
    bool map = nr_pbfield_is_map(f);
    size_t n = nr_pbfield_count(fr->msg, f);
    if (fr->element == n) {
        nr_text_str(w->out, map ? "}" : "]");
        fr->inside = false;
        fr->pos++;
        return;
    }
    const ProtobufCMessage *m = *(ProtobufCMessage *const *)nr_pbfield_get(fr->msg, f, fr->element);
    nr_text_str(w->out, fr->element++ ? "," : "");
    if (map) {
        const ProtobufCFieldDescriptor *key = &m->descriptor->fields[0];
        const ProtobufCFieldDescriptor *value = &m->descriptor->fields[1];
        bool text = key->type == PROTOBUF_C_TYPE_STRING;
        nr_text_str(w->out, text ? "" : "\"");
        scalar(w, key, nr_pbfield_at(m, key));
        nr_text_str(w->out, text ? ":" : "\":");
        if (value->type != PROTOBUF_C_TYPE_MESSAGE) {
            scalar(w, value, nr_pbfield_at(m, value));
            return;
        }
        m = *(ProtobufCMessage *const *)nr_pbfield_at(m, value);
        if (!m) {
            nr_text_str(w->out, "{}");
            return;
        }
    }
    nr_text_str(w->out, "{");
    push(w, m);
}

static void json_step(struct writer *w, struct frame *fr)
{
    const ProtobufCMessageDescriptor *d = fr->msg->descriptor;
    if (fr->pos == d->n_fields) {
        nr_text_str(w->out, "}");
        w->depth--;
        return;
    }
    const ProtobufCFieldDescriptor *f = &d->fields[fr->order[fr->pos]];
    if (fr->inside) {
        json_element(w, fr, f);
        return;
    }
    bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED;
    if (!repeated && nr_pbfield_count(fr->msg, f) == 0) {
        fr->pos++;
        return;
    }
    nr_text_fmt(w->out, "%s\"%s\":", fr->first ? "" : ",", f->name);
    fr->first = false;
    if (f->type == PROTOBUF_C_TYPE_MESSAGE && repeated) {
        nr_text_str(w->out, nr_pbfield_is_map(f) ? "{" : "[");
        fr->inside = true;
        fr->element = 0;
        return;
    }
    fr->pos++;
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
        nr_text_str(w->out, "{");
        push(w, *(ProtobufCMessage *const *)nr_pbfield_at(fr->msg, f));
    } else if (repeated) {
        scalars(w, fr, f, ",");
    } else {
        scalar(w, f, nr_pbfield_at(fr->msg, f));
    }
}

/* --- text ------------------------------------------------------------------------------------- */

static void indent(struct writer *w)
{
    nr_text_fmt(w->out, "%*s", (int)(w->depth - 1) * 2, "");
}

static void text_step(struct writer *w, struct frame *fr)
{
    const ProtobufCMessageDescriptor *d = fr->msg->descriptor;
    if (fr->pos == d->n_fields) {
        w->depth--;
        if (w->depth > 0) {
            indent(w);
            nr_text_str(w->out, "}\n");
        }
        return;
    }
    const ProtobufCFieldDescriptor *f = &d->fields[fr->order[fr->pos]];
    if (!fr->inside && nr_pbfield_is_default(fr->msg, f)) {
        fr->pos++;
        return;
    }
    if (f->type != PROTOBUF_C_TYPE_MESSAGE) {
        indent(w);
        nr_text_fmt(w->out, "%s: ", f->name);
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            scalars(w, fr, f, ", ");
        } else {
            scalar(w, f, nr_pbfield_at(fr->msg, f));
        }
        nr_text_str(w->out, "\n");
        fr->pos++;
        return;
    }
    size_t i = fr->inside ? fr->element : 0;
    if (i == nr_pbfield_count(fr->msg, f)) {
        fr->inside = false;
        fr->pos++;
        return;
    }
    fr->inside = true;
    fr->element = i + 1;
    indent(w);
    nr_text_fmt(w->out, "%s {\n", f->name);
    push(w, *(ProtobufCMessage *const *)nr_pbfield_get(fr->msg, f, i));
}

static void write_message(const ProtobufCMessage *m, struct nr_text *out, bool json)
{
    struct writer w = {.out = out, .json = json, .frames = nr_new_array(struct frame, MAX_DEPTH)};
    nr_text_str(out, json ? "{" : "");
    push(&w, m);
    while (w.depth > 0 && !out->failed) {
        struct frame *fr = &w.frames[w.depth - 1];
        if (json) {
            json_step(&w, fr);
        } else {
            text_step(&w, fr);
        }
    }
    nr_free(w.frames);
}

void nr_pbwrite_json(const ProtobufCMessage *m, struct nr_text *out)
{
    write_message(m, out, true);
}

void nr_pbwrite_text(const ProtobufCMessage *m, struct nr_text *out)
{
    write_message(m, out, false);
}
