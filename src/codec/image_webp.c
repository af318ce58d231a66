/* WebP by libwebp: decoding straight into the result, or by way of RGBA when there is alpha (the
 * library would blend on black, or not at all); encoding lossy or lossless.
 *
 * INVARIANT: the library writes into memory of ours, sized by the header that it read itself.
 * Threads: pure functions.
 */
#include <webp/decode.h>
#include <webp/encode.h>

#include "codec/image_priv.h"

static const char *decode_text(VP8StatusCode code)
{
    switch (code) {
    case VP8_STATUS_NOT_ENOUGH_DATA:
        return "the file is cut short";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return "it uses a feature that is not supported";
    default:
        return "its data is broken";
    }
}

nr_status nr_webp_decode(struct nr_str file, const struct nr_image_info *info, struct nr_image *img,
                         struct nr_err *err)
{
    nr_cleanup(nr_image_done) struct nr_image made = {0};
    nr_status st = nr_image_new(info->stored_width, info->stored_height, 3, &made, err);
    if (st != NARU_OK) {
        return st;
    }
    size_t pixels = (size_t)made.width * made.height;
    size_t samples = info->has_alpha ? 4 : 3;
    nr_cleanup(nr_image_buf_done) struct nr_buf *rgba = NULL;
    if (info->has_alpha && (rgba = nr_buf_try_new(pixels * 4)) == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a WebP of %u x %u pixels", made.width,
                       made.height);
    }
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config)) {
        return nr_fail(err, NARU_INTERNAL, "libwebp at run time is not the one built against");
    }
    config.output.colorspace = info->has_alpha ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = info->has_alpha ? nr_buf_data(rgba) : nr_image_data(&made);
    config.output.u.RGBA.stride = (int)(made.width * samples);
    config.output.u.RGBA.size = pixels * samples;
    VP8StatusCode code = WebPDecode((const uint8_t *)file.ptr, file.len, &config);
    WebPFreeDecBuffer(&config.output);
    if (code != VP8_STATUS_OK) {
        return nr_fail(err, code == VP8_STATUS_OUT_OF_MEMORY ? NARU_NOMEM : NARU_INVALID,
                       "WebP picture cannot be decoded: %s",
                       code == VP8_STATUS_OUT_OF_MEMORY ? "no memory" : decode_text(code));
    }
    if (info->has_alpha) {
        nr_image_on_white(nr_buf_data(rgba), pixels, 3, nr_image_data(&made));
    }
    *img = made;
    made = (struct nr_image){0};
    return NARU_OK;
}

struct sink {
    struct nr_text *out;
    struct nr_err *err;
    nr_status status;
};

static int on_write(const uint8_t *data, size_t len, const WebPPicture *pic)
{
    struct sink *s = pic->custom_ptr;
    s->status = nr_image_emit(s->out, data, len, s->err);
    return s->status == NARU_OK;
}

static nr_status encode_rgb(const struct nr_image *rgb, const WebPConfig *config, struct sink *sink)
{
    WebPPicture pic;
    if (!WebPPictureInit(&pic)) {
        return nr_fail(sink->err, NARU_INTERNAL,
                       "libwebp at run time is not the one built against");
    }
    pic.use_argb = config->lossless;
    pic.width = (int)rgb->width;
    pic.height = (int)rgb->height;
    pic.writer = on_write;
    pic.custom_ptr = sink;
    bool ok = WebPPictureImportRGB(&pic, nr_image_data(rgb), (int)nr_image_row_bytes(rgb)) &&
              WebPEncode(config, &pic);
    WebPEncodingError code = pic.error_code;
    WebPPictureFree(&pic);
    if (ok) {
        return NARU_OK;
    }
    if (sink->status != NARU_OK) {
        return sink->status;
    }
    bool nomem =
        code == VP8_ENC_ERROR_OUT_OF_MEMORY || code == VP8_ENC_ERROR_BITSTREAM_OUT_OF_MEMORY;
    return nr_fail(sink->err, nomem ? NARU_NOMEM : NARU_INTERNAL,
                   "WebP picture cannot be written (libwebp error %d)", (int)code);
}

nr_status nr_webp_encode(const struct nr_image *img, const struct nr_image_encode_opts *opts,
                         struct nr_text *out, struct nr_err *err)
{
    if (img->width > WEBP_MAX_DIMENSION || img->height > WEBP_MAX_DIMENSION) {
        return nr_fail(err, NARU_TOO_LARGE,
                       "a picture of %u x %u pixels cannot be WebP (at most %d a side): ask for "
                       "png or jpeg",
                       img->width, img->height, WEBP_MAX_DIMENSION);
    }
    WebPConfig config;
    float quality = (float)(opts->quality > 0 ? opts->quality : NR_IMAGE_QUALITY);
    if (!WebPConfigPreset(&config, WEBP_PRESET_DEFAULT, quality)) {
        return nr_fail(err, NARU_INTERNAL, "libwebp at run time is not the one built against");
    }
    config.method = opts->effort > 0 ? NR_MIN(opts->effort, 6) : 2;
    if (opts->lossless) {
        config.lossless = 1;
        config.exact = 1;
        config.quality = 50; /* for lossless: how hard to try */
    }
    nr_cleanup(nr_image_done) struct nr_image rgb;
    nr_status st = nr_image_to_color(img, NR_IMAGE_RGB, &rgb, err);
    if (st != NARU_OK) {
        return st;
    }
    struct sink sink = {.out = out, .err = err, .status = NARU_OK};
    return encode_rgb(&rgb, &config, &sink);
}
