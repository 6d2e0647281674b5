/*
 * Test that it does not matter how a stream of JSON is cut into pieces
 *
 * Random streams are parsed byte by byte, and in larger pieces.  Each time the
 * same values and errors have to come out, each after the same byte.
 *
 * JSON_STREAM_RUNS in the environment is how many streams there are.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/json-parser.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"

typedef struct Stream {
    JSONMessageParser parser;
    GString *log;
} Stream;

static void log_message(void *opaque, QObject *json, Error *err)
{
    Stream *s = opaque;
    GString *text;

    g_assert(!json != !err);
    if (err) {
        g_string_append_printf(s->log, "error: %s\n", error_get_pretty(err));
        error_free(err);
    } else {
        text = qobject_to_json(json);
        g_string_append_printf(s->log, "%s\n", text->str);
        g_string_free(text, true);
        qobject_unref(json);
    }
}

static void stream_begin(Stream *s)
{
    s->log = g_string_new(NULL);
    json_message_parser_init(&s->parser, log_message, s, NULL);
}

/* Return what came out, to be freed with g_free() */
static char *stream_end(Stream *s)
{
    g_string_append_printf(s->log, "end in line %d, column %d\n",
                           s->parser.lexer.y, s->parser.lexer.x);
    json_message_parser_flush(&s->parser);
    json_message_parser_destroy(&s->parser);
    return g_string_free(s->log, false);
}

/* What a stream is made of: what is legal, nearly legal, and far from it */
static const char *const pieces[] = {
    "{\"execute\":\"query-status\"}", "{\"exec-oob\":\"x\",\"id\":", "\r\n",
    "{", "}", "[", "]", ":", ",", "\"", "'", "\\", " ", "\t", "\n", "\"a\"",
    "'b'", "\"a\":", "true", "null", "nul", "0", "-1", "12345678901234567890",
    "1e5", "1.", "0.5", "\\u00e9", "\\ud83d\\ude00", "\\ud800", "\\q", "%",
    "%p", "%%", "\xc3\xa9", "\xc3", "\x80", "\xf0\x9f\x98\x80", "\xfe", "\xff",
    "\x7f", "\x01", "abcdefghijklmnopqrstuvwxyz", "\"quo'te\"", "'quo\"te'",
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"", "1]", "[[[", "]]]", "{}", "[]",
};

static GString *random_stream(void)
{
    GString *str = g_string_new(NULL);
    int i, j, len, n = g_test_rand_int_range(1, 24);

    for (i = 0; i < n; i++) {
        switch (g_test_rand_int_range(0, 12)) {
        case 0:         /* any byte, zero too */
            g_string_append_c(str, g_test_rand_int_range(0, 256));
            break;
        case 1:         /* a string that is longer than most */
            len = g_test_rand_int_range(0, 300);
            g_string_append_c(str, '"');
            for (j = 0; j < len; j++) {
                g_string_append_c(str, g_test_rand_int_range(0x20, 0x7f));
            }
            g_string_append_c(str, '"');
            break;
        default:
            g_string_append(str, pieces[g_test_rand_int_range(
                                            0, ARRAY_SIZE(pieces))]);
        }
    }
    return str;
}

/* Feed @size bytes, say after which of them something was emitted */
static void feed_one_by_one(Stream *s, const char *buf, size_t size)
{
    size_t pos = 0;

    while (pos < size) {
        pos += json_message_parser_feed_one(&s->parser, buf + pos, size - pos);
        if (s->parser.emitted) {
            g_string_append_printf(s->log, "at %zu\n", pos);
        }
    }
}

static char *byte_by_byte(const GString *str, bool where)
{
    Stream s;
    size_t i;

    stream_begin(&s);
    for (i = 0; i < str->len; i++) {
        s.parser.emitted = false;
        json_message_parser_feed(&s.parser, str->str + i, 1);
        if (where && s.parser.emitted) {
            g_string_append_printf(s.log, "at %zu\n", i + 1);
        }
    }
    return stream_end(&s);
}

static void check_stream(const GString *str)
{
    g_autofree char *bytes = byte_by_byte(str, false);
    g_autofree char *bytes_where = byte_by_byte(str, true);
    g_autofree char *whole = NULL;
    g_autofree char *cut = NULL;
    g_autofree char *one = NULL;
    size_t pos, len;
    Stream s;

    stream_begin(&s);
    json_message_parser_feed(&s.parser, str->str, str->len);
    whole = stream_end(&s);
    g_assert_cmpstr(whole, ==, bytes);

    stream_begin(&s);
    for (pos = 0; pos < str->len; pos += len) {
        len = MIN(g_test_rand_int_range(1, 40), str->len - pos);
        json_message_parser_feed(&s.parser, str->str + pos, len);
    }
    cut = stream_end(&s);
    g_assert_cmpstr(cut, ==, bytes);

    stream_begin(&s);
    feed_one_by_one(&s, str->str, str->len);
    one = stream_end(&s);
    g_assert_cmpstr(one, ==, bytes_where);
}

static void test_random(void)
{
    const char *runs = g_getenv("JSON_STREAM_RUNS");
    int i, n = runs ? atoi(runs) : 5000;
    GString *str;

    for (i = 0; i < n; i++) {
        str = random_stream();
        check_stream(str);
        g_string_free(str, true);
    }
}

/* The connection may close, and a read may end, after each byte */
static void test_each_cut(void)
{
    static const char text[] =
        "{\"execute\":\"a\\u00e9\xc3\xa9\",\"id\":[1,-2.5e1,'x\"']}\n"
        "1]}garbage\xff[true,nul]{\"exec-oob\":\"%d\"}";
    size_t len = strlen(text), i, j;

    for (i = 0; i <= len; i++) {
        GString *str = g_string_new_len(text, i);
        g_autofree char *bytes = byte_by_byte(str, false);

        for (j = 0; j <= i; j++) {
            g_autofree char *cut = NULL;
            Stream s;

            stream_begin(&s);
            json_message_parser_feed(&s.parser, text, j);
            json_message_parser_feed(&s.parser, text + j, i - j);
            cut = stream_end(&s);
            g_assert_cmpstr(cut, ==, bytes);
        }
        g_string_free(str, true);
    }
}

/* Is a string refused as soon as it is too long? */
static void test_too_long(void)
{
    GString *str = g_string_new("\"");
    g_autofree char *bytes = NULL;
    g_autofree char *one = NULL;
    Stream s;

    g_string_set_size(str, 64 * 1024 * 1024 + 20);
    memset(str->str + 1, '1', str->len - 1);

    bytes = byte_by_byte(str, true);
    stream_begin(&s);
    feed_one_by_one(&s, str->str, str->len);
    one = stream_end(&s);
    g_assert_true(g_str_equal(one, bytes));
    g_string_free(str, true);
}

static void drop_message(void *opaque, QObject *json, Error *err)
{
    g_assert_null(err);
    qobject_unref(json);
}

/* The CPU time for a stream in pieces of @size, in us: the best of 10 */
static int64_t feed_time(const GString *str, size_t size)
{
    clock_t start, best = 0;
    JSONMessageParser parser;
    size_t pos;
    int i;

    for (i = 0; i < 10; i++) {
        json_message_parser_init(&parser, drop_message, NULL, NULL);
        start = clock();
        for (pos = 0; pos < str->len; pos += size) {
            json_message_parser_feed(&parser, str->str + pos,
                                     MIN(size, str->len - pos));
        }
        start = clock() - start;
        best = i ? MIN(best, start) : start;
        json_message_parser_destroy(&parser);
    }
    return best * 1000000LL / CLOCKS_PER_SEC;
}

/* A long string is not taken character by character */
static void test_long_string(void)
{
    g_autofree char *text = g_strnfill(16 * 1024, 'x');
    GString *str = g_string_new(NULL);
    int64_t bytes, blocks;
    int i;

    for (i = 0; i < 64; i++) {
        g_string_append_printf(str, "\"%s\"", text);
    }
    bytes = feed_time(str, 1);
    blocks = feed_time(str, 4096);
    g_test_message("%zu bytes: %" PRId64 " us one by one, %" PRId64
                   " us in blocks", str->len, bytes, blocks);
    g_assert_cmpint(blocks * 2, <, bytes);
    g_string_free(str, true);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/json-stream/random", test_random);
    g_test_add_func("/json-stream/each-cut", test_each_cut);
    g_test_add_func("/json-stream/too-long", test_too_long);
    g_test_add_func("/json-stream/long-string", test_long_string);

    return g_test_run();
}
