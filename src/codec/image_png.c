/* PNG by libpng.
 *
 * libpng reports errors by longjmp. That is confined: guarded() is the only function that calls
 * setjmp, and the steps below it keep all state in struct png_work, hold no cleanup attribute and
 * free nothing, so a jump over them loses nothing. Whoever made the png_work frees it.
 *
 * Ancillary chunks but tRNS are skipped unread: they cannot change the pixels here (gamma and
 * profiles are ignored), and compressed text or profiles are a way to make a small file cost much.
 * libpng expands palettes, small depths and tRNS and undoes interlacing; alpha and 16 bits are
 * brought to 8 here, with one correct rounding.
 *
 * INVARIANTS
 *  1. Rows are only written where row_bytes of libpng equals what the probe promised.
 *  2. A non-interlaced picture needs one row beside its result; an interlaced one the whole
 *     picture in the file's own depth, unless that already is the result's form.
 * Threads: pure functions.
 */
#include <png.h>
#include <setjmp.h>
#include <zlib.h>

#include "codec/image_priv.h"

struct png_work {
    png_structp png;
    png_infop info;
    struct nr_err *err;
    nr_status status;
    /* reading */
    struct nr_str file;
    size_t pos;
    const struct nr_image_info *probed;
    struct nr_image img;
    struct nr_buf *rows; /* one row, or all of an interlaced picture */
    /* writing */
    const struct nr_image *from;
    struct nr_text *out;
    int effort;
};

static void work_done(struct png_work *w)
{
    if (w->png != NULL && w->out != NULL) {
        png_destroy_write_struct(&w->png, &w->info);
    } else if (w->png != NULL) {
        png_destroy_read_struct(&w->png, &w->info, NULL);
    }
    nr_image_done(&w->img);
    nr_buf_unref(w->rows);
}

static nr_status guarded(struct png_work *w, void (*step)(struct png_work *))
{
    /* lint: allow setjmp: libpng's only way to stop; steps hold nothing that a jump would leak */
    if (setjmp(png_jmpbuf(w->png)) != 0) {
        return w->status;
    }
    step(w);
    return NARU_OK;
}

static _Noreturn void on_error(png_structp png, png_const_charp text)
{
    struct png_work *w = png_get_error_ptr(png);
    if (w->status == NARU_OK) {
        w->status =
            nr_fail(w->err, w->out != NULL ? NARU_INTERNAL : NARU_INVALID,
                    "PNG picture cannot be %s: %s", w->out != NULL ? "written" : "decoded", text);
    }
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void on_read(png_structp png, png_bytep dst, size_t n)
{
    struct png_work *w = png_get_io_ptr(png);
    if (n > w->file.len - w->pos) {
        png_error(png, "the file is cut short");
    }
    memcpy(dst, w->file.ptr + w->pos, n);
    w->pos += n;
}

static void fail_step(struct png_work *w, nr_status status)
{
    w->status = status;
    png_error(w->png, "stopped");
}

/* n samples of 16 bits, big-endian, to 8: round(v * 255 / 65535) */
static void narrow(const uint8_t *src, size_t n, uint8_t *dst)
{
    for (size_t i = 0; i < n; i++, src += 2) {
        uint32_t v = ((uint32_t)src[0] << 8) | src[1];
        dst[i] = (uint8_t)((v * 255 + 32895) >> 16);
    }
}

/* n pixels of 16-bit colour + alpha: composited on white, then to 8 bits, in one rounding. */
static void narrow_on_white(const uint8_t *src, size_t n, uint32_t channels, uint8_t *dst)
{
    const uint64_t unit = UINT64_C(65535) * 257;
    for (size_t i = 0; i < n; i++, src += 2 * (channels + 1), dst += channels) {
        uint64_t a = ((uint64_t)src[2 * channels] << 8) | src[2 * channels + 1];
        for (uint32_t c = 0; c < channels; c++) {
            uint64_t v = ((uint64_t)src[2 * c] << 8) | src[2 * c + 1];
            dst[c] = (uint8_t)((v * a + 65535 * (65535 - a) + unit / 2) / unit);
        }
    }
}

static void row_convert(const struct png_work *w, const uint8_t *src, uint8_t *dst)
{
    size_t n = w->img.width;
    uint32_t ch = w->img.channels;
    if (w->probed->bit_depth == 16 && w->probed->has_alpha) {
        narrow_on_white(src, n, ch, dst);
    } else if (w->probed->bit_depth == 16) {
        narrow(src, n * ch, dst);
    } else {
        nr_image_on_white(src, n, ch, dst);
    }
}

static void read_rows(struct png_work *w, int passes, size_t row_bytes)
{
    size_t out_bytes = nr_image_row_bytes(&w->img);
    uint8_t *out = nr_image_data(&w->img);
    bool direct = w->probed->bit_depth <= 8 && !w->probed->has_alpha;
    if (!direct) {
        w->rows = nr_buf_try_new(passes > 1 ? row_bytes * w->img.height : row_bytes);
        if (w->rows == NULL) {
            fail_step(w, nr_fail(w->err, NARU_NOMEM, "no memory for a PNG of %u x %u pixels",
                                 w->img.width, w->img.height));
        }
    }
    for (int pass = 0; pass < passes; pass++) {
        for (size_t y = 0; y < w->img.height; y++) {
            uint8_t *row = direct       ? out + y * out_bytes
                           : passes > 1 ? nr_buf_data(w->rows) + y * row_bytes
                                        : nr_buf_data(w->rows);
            png_read_row(w->png, row, NULL);
            if (!direct && pass == passes - 1) {
                row_convert(w, row, out + y * out_bytes);
            }
        }
    }
}

static void read_step(struct png_work *w)
{
    png_structp png = w->png;
    png_set_read_fn(png, w, on_read);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_user_limits(png, w->probed->stored_width, w->probed->stored_height);
    png_set_chunk_malloc_max(png, 1024 * 1024);
    png_set_chunk_cache_max(png, 16);
    png_read_info(png, w->info);
    png_set_expand(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, w->info);

    uint32_t width = png_get_image_width(png, w->info);
    uint32_t height = png_get_image_height(png, w->info);
    size_t row_bytes = png_get_rowbytes(png, w->info);
    uint32_t samples = w->probed->channels + (w->probed->has_alpha ? 1 : 0);
    size_t expected = (size_t)width * samples * (w->probed->bit_depth == 16 ? 2 : 1);
    if (width != w->probed->stored_width || height != w->probed->stored_height ||
        row_bytes != expected) {
        png_error(png, "chunks contradict each other");
    }
    nr_status st = nr_image_new(width, height, w->probed->channels, &w->img, w->err);
    if (st != NARU_OK) {
        fail_step(w, st);
    }
    read_rows(w, passes, row_bytes);
    png_read_end(png, NULL);
}

nr_status nr_png_decode(struct nr_str file, const struct nr_image_info *info, struct nr_image *img,
                        struct nr_err *err)
{
    nr_cleanup(work_done) struct png_work w = {.file = file, .probed = info, .err = err};
    w.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &w, on_error, on_warning);
    w.info = w.png != NULL ? png_create_info_struct(w.png) : NULL;
    if (w.info == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a PNG decoder");
    }
    nr_status st = guarded(&w, read_step);
    if (st == NARU_OK) {
        *img = w.img;
        w.img = (struct nr_image){0};
    }
    return st;
}

static void on_write(png_structp png, png_bytep data, size_t n)
{
    struct png_work *w = png_get_io_ptr(png);
    nr_status st = nr_image_emit(w->out, data, n, w->err);
    if (st != NARU_OK) {
        fail_step(w, st);
    }
}

static void on_flush(png_structp png)
{
    (void)png;
}

static void write_step(struct png_work *w)
{
    const struct nr_image *img = w->from;
    png_set_write_fn(w->png, w, on_write, on_flush);
    png_set_IHDR(w->png, w->info, img->width, img->height, 8,
                 img->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (w->effort == 0) {
        /* Photographs: the average filter and Huffman codes without a search for matches make files
         * within 5 % of libpng's default in an eighth of its time. */
        png_set_filter(w->png, PNG_FILTER_TYPE_BASE, PNG_FILTER_AVG);
        png_set_compression_level(w->png, 1);
        png_set_compression_strategy(w->png, Z_RLE);
    } else {
        png_set_compression_level(w->png, w->effort);
    }
    png_write_info(w->png, w->info);
    for (size_t y = 0; y < img->height; y++) {
        png_write_row(w->png, nr_image_data(img) + y * nr_image_row_bytes(img));
    }
    png_write_end(w->png, NULL);
}

nr_status nr_png_encode(const struct nr_image *img, const struct nr_image_encode_opts *opts,
                        struct nr_text *out, struct nr_err *err)
{
    nr_cleanup(work_done) struct png_work w = {
        .from = img,
        .out = out,
        .err = err,
        .effort = NR_MAX(0, NR_MIN(opts->effort, 9)),
    };
    w.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &w, on_error, on_warning);
    w.info = w.png != NULL ? png_create_info_struct(w.png) : NULL;
    if (w.info == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a PNG encoder");
    }
    return guarded(&w, write_step);
}
