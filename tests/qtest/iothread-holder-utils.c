/*
 * What tests of the holders of IOThreads share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "iothread-holder-utils.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"

void add_node(QTestState *s, const char *name)
{
    qtest_qmp_assert_success(s,
        "{ 'execute': 'blockdev-add', 'arguments': {"
        " 'driver': 'null-co', 'node-name': %s, 'read-zeroes': true } }",
        name);
}

void assert_error(QDict *rsp, const char *text)
{
    const char *desc;

    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    if (!strstr(desc, text)) {
        g_error("'%s' not in error '%s'", text, desc);
    }
    qobject_unref(rsp);
}

void assert_object_del_fails(QTestState *s, const char *id, const char *error)
{
    assert_error(qtest_qmp(s, "{ 'execute': 'object-del',"
                              " 'arguments': { 'id': %s } }", id), error);
}

void object_del(QTestState *s, const char *id)
{
    qtest_qmp_assert_success(s, "{ 'execute': 'object-del',"
                                " 'arguments': { 'id': %s } }", id);
}

void object_add(QTestState *s, const char *id)
{
    qtest_qmp_assert_success(s,
        "{ 'execute': 'object-add',"
        " 'arguments': { 'qom-type': 'iothread', 'id': %s } }", id);
}

void complete_unplug(QTestState *s, const char *id)
{
    bool gone = false;

    qtest_system_reset_nowait(s);
    while (!gone) {
        QDict *event = qtest_qmp_eventwait_ref(s, "DEVICE_DELETED");
        QDict *data = qdict_get_qdict(event, "data");

        gone = !g_strcmp0(qdict_get_try_str(data, "device"), id);
        qobject_unref(event);
    }
}

void unplug(QTestState *s, const char *id)
{
    qtest_qmp_device_del_send(s, id);
    complete_unplug(s, id);
}

static QDict *find_iothread(QDict *rsp, const char *iothread)
{
    QDict *found = NULL;
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(info, "id"), iothread)) {
            g_assert_null(found);
            found = info;
        }
    }
    return found;
}

QList *find_holders(QDict *rsp, const char *iothread)
{
    QDict *info = find_iothread(rsp, iothread);

    return info ? qdict_get_qlist(info, "holders") : NULL;
}

bool has_iothread(QTestState *s, const char *iothread)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    bool has = find_iothread(rsp, iothread);

    qobject_unref(rsp);
    return has;
}

char *task_of(QTestState *s, const char *iothread)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    QDict *info = find_iothread(rsp, iothread);
    char *task = g_strdup_printf("/proc/%d/task/%" PRId64, qtest_pid(s),
                                 qdict_get_int(info, "thread-id"));

    qobject_unref(rsp);
    return task;
}

static void append_holder(GString *words, QDict *holder)
{
    const char *type = qdict_get_str(holder, "type");
    const char *node = qdict_get_try_str(holder, "node-name");
    const char *separator = ":";
    const QListEntry *vq;
    QList *vqs;

    if (!strcmp(type, "block-export")) {
        g_string_append_printf(words, "export/%s/%s",
                               qdict_get_str(holder, "id"), node);
    } else if (!strcmp(type, "block-node")) {
        g_string_append_printf(words, "node/%s", node);
    } else if (!strcmp(type, "job")) {
        g_string_append_printf(words, "job/%s", qdict_get_str(holder, "id"));
    } else if (!strcmp(type, "monitor")) {
        g_string_append_printf(words, "monitor/%s",
                               qdict_get_str(holder, "id"));
    } else {
        g_assert_cmpstr(type, ==, "qom-object");
        g_string_append(words, qdict_get_try_str(holder, "device") ?:
                               qdict_get_str(holder, "qom-path"));
        vqs = qdict_get_qlist(holder, "vqs");
        if (vqs) {
            QLIST_FOREACH_ENTRY(vqs, vq) {
                QNum *num = qobject_to(QNum, qlist_entry_obj(vq));

                g_string_append_printf(words, "%s%" PRId64, separator,
                                       qnum_get_int(num));
                separator = ",";
            }
        }
    }
}

char *query_holders(QTestState *s, const char *iothread)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads',"
                              " 'arguments': { 'internal': true } }");
    QList *holders = find_holders(rsp, iothread);
    GString *words = g_string_new("");
    const QListEntry *entry;

    if (!holders) {
        qobject_unref(rsp);
        return g_string_free(words, true);
    }
    QLIST_FOREACH_ENTRY(holders, entry) {
        g_string_append(words, words->len ? " " : "");
        append_holder(words, qobject_to(QDict, qlist_entry_obj(entry)));
    }
    qobject_unref(rsp);
    return g_string_free(words, false);
}

void assert_holders(QTestState *s, const char *io0, const char *io1)
{
    g_autofree char *holders0 = query_holders(s, "io0");
    g_autofree char *holders1 = query_holders(s, "io1");

    g_assert_cmpstr(holders0, ==, io0);
    g_assert_cmpstr(holders1, ==, io1);
}

QTestState *start_stock(const char *args)
{
    if (!getenv(STOCK_BINARY)) {
        g_test_skip(STOCK_BINARY " is not set");
        return NULL;
    }
    return qtest_init_ext(STOCK_BINARY, args, NULL, true);
}

bool dies_with_stock(const char *message)
{
    if (!getenv(STOCK_BINARY)) {
        g_test_skip(STOCK_BINARY " is not set");
        return false;
    }
    if (g_test_subprocess()) {
        /* what is freed is overwritten, so that its next use shows */
        g_setenv("MALLOC_PERTURB_", "85", true);
        return true;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(message);
    return false;
}
