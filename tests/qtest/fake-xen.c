/*
 * Xen's libraries without Xen: a stand-in for libxenstore, libxenevtchn,
 * libxengnttab and the little that starting a xenpv machine needs of others
 *
 * A test preloads it into QEMU, and plays the hypervisor, the toolstack and
 * the guest.  The environment names two file descriptors, see fake-xen.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>
#include <xenstore.h>
#include "fake-xen.h"

#define PAGE_SIZE 4096
#define HOME "/local/domain/0/"

struct xs_handle {
    int fd;
    GPtrArray *watches;         /* of Watch */
    GQueue events;              /* of what xs_check_watch() returns */
};

struct xenevtchn_handle {
    int fd;
    evtchn_port_t port;
    pid_t thread;               /* the last one that looked for an event */
};

typedef struct Watch {
    char *path;                 /* absolute */
    char *told;                 /* as it was asked for */
    char *token;
} Watch;

/* Protects everything below, and what the handles hold */
static GMutex lock;
static GHashTable *store;       /* from absolute path to value */
static GPtrArray *stores_open;  /* of struct xs_handle */
static GPtrArray *channels;     /* of xenevtchn_handle */

static int env_fd(const char *name)
{
    const char *fd = getenv(name);

    if (!fd) {
        fprintf(stderr, "fake-xen: %s is not set\n", name);
        abort();
    }
    return atoi(fd);
}

/* What has no state: any handle will do */

static char no_state;

int xc_interface_close(xc_interface *xch)
{
    return 0;
}

xenforeignmemory_handle *xenforeignmemory_open(xentoollog_logger *logger,
                                               unsigned open_flags)
{
    return (void *)&no_state;
}

int xenforeignmemory_close(xenforeignmemory_handle *fmem)
{
    return 0;
}

xendevicemodel_handle *xendevicemodel_open(xentoollog_logger *logger,
                                           unsigned int open_flags)
{
    return (void *)&no_state;
}

/* The store.  Transactions are not isolated: there is one client. */

static char *absolute(const char *path)
{
    return path[0] == '/' ? g_strdup(path) : g_strconcat(HOME, path, NULL);
}

static bool is_below(const char *path, const char *ancestor)
{
    size_t len = strlen(ancestor);

    return !strncmp(path, ancestor, len) &&
           (path[len] == '/' || path[len] == 0);
}

/* One allocation, which the caller of xs_check_watch() frees */
static char **new_event(const char *path, const char *token)
{
    size_t path_size = strlen(path) + 1;
    size_t token_size = strlen(token) + 1;
    char **event = malloc(2 * sizeof(char *) + path_size + token_size);

    event[XS_WATCH_PATH] = (char *)(event + 2);
    event[XS_WATCH_TOKEN] = event[XS_WATCH_PATH] + path_size;
    memcpy(event[XS_WATCH_PATH], path, path_size);
    memcpy(event[XS_WATCH_TOKEN], token, token_size);
    return event;
}

static void fire(struct xs_handle *h, Watch *w, const char *path)
{
    g_autofree char *told = g_strconcat(w->told, path + strlen(w->path), NULL);

    g_queue_push_tail(&h->events, new_event(told, w->token));
    eventfd_write(h->fd, 1);
}

static void changed(const char *path)
{
    for (guint i = 0; i < stores_open->len; i++) {
        struct xs_handle *h = g_ptr_array_index(stores_open, i);

        for (guint j = 0; j < h->watches->len; j++) {
            Watch *w = g_ptr_array_index(h->watches, j);

            if (is_below(path, w->path)) {
                fire(h, w, path);
            }
        }
    }
}

/* Create the nodes above @path */
static void add_ancestors(const char *path)
{
    for (const char *end = strchr(path + 1, '/'); end;
         end = strchr(end + 1, '/')) {
        g_autofree char *ancestor = g_strndup(path, end - path);

        if (!g_hash_table_contains(store, ancestor)) {
            g_hash_table_insert(store, g_steal_pointer(&ancestor),
                                g_strdup(""));
        }
    }
}

static void store_write(const char *path, char *value)
{
    add_ancestors(path);
    g_hash_table_insert(store, g_strdup(path), value);
    changed(path);
}

static void __attribute__((__constructor__)) init(void)
{
    store = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    stores_open = g_ptr_array_new();
    channels = g_ptr_array_new();
}

static void free_watch(void *opaque)
{
    Watch *w = opaque;

    g_free(w->path);
    g_free(w->told);
    g_free(w->token);
    g_free(w);
}

struct xs_handle *xs_open(unsigned long flags)
{
    struct xs_handle *h = g_new0(struct xs_handle, 1);

    h->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    h->watches = g_ptr_array_new_with_free_func(free_watch);
    g_mutex_lock(&lock);
    g_ptr_array_add(stores_open, h);
    g_mutex_unlock(&lock);
    return h;
}

void xs_close(struct xs_handle *h)
{
    g_mutex_lock(&lock);
    g_ptr_array_remove(stores_open, h);
    g_mutex_unlock(&lock);
    close(h->fd);
    g_ptr_array_unref(h->watches);
    g_queue_clear_full(&h->events, free);
    g_free(h);
}

int xs_fileno(struct xs_handle *h)
{
    return h->fd;
}

char *xs_get_domain_path(struct xs_handle *h, unsigned int domid)
{
    char path[32];

    snprintf(path, sizeof(path), "/local/domain/%u", domid);
    return strdup(path);
}

xs_transaction_t xs_transaction_start(struct xs_handle *h)
{
    return 1;
}

bool xs_transaction_end(struct xs_handle *h, xs_transaction_t t, bool discard)
{
    return true;
}

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path,
              unsigned int *len)
{
    g_autofree char *key = absolute(path);
    const char *value;
    char *copy = NULL;

    g_mutex_lock(&lock);
    value = g_hash_table_lookup(store, key);
    if (value) {
        copy = strdup(value);
        if (len) {
            *len = strlen(value);
        }
    }
    g_mutex_unlock(&lock);
    if (!copy) {
        errno = ENOENT;
    }
    return copy;
}

bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path,
              const void *data, unsigned int len)
{
    g_autofree char *key = absolute(path);

    g_mutex_lock(&lock);
    store_write(key, g_strndup(data, len));
    g_mutex_unlock(&lock);
    return true;
}

bool xs_mkdir(struct xs_handle *h, xs_transaction_t t, const char *path)
{
    g_autofree char *key = absolute(path);

    g_mutex_lock(&lock);
    if (!g_hash_table_contains(store, key)) {
        store_write(key, g_strdup(""));
    }
    g_mutex_unlock(&lock);
    return true;
}

bool xs_set_permissions(struct xs_handle *h, xs_transaction_t t,
                        const char *path, struct xs_permissions *perms,
                        unsigned int num_perms)
{
    return true;
}

static gboolean remove_below(void *key, void *value, void *ancestor)
{
    return is_below(key, ancestor);
}

bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path)
{
    g_autofree char *key = absolute(path);

    g_mutex_lock(&lock);
    g_hash_table_foreach_remove(store, remove_below, key);
    changed(key);
    g_mutex_unlock(&lock);
    return true;
}

/* Returns one allocation, which the caller frees */
char **xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path,
                    unsigned int *num)
{
    g_autofree char *key = absolute(path);
    g_autoptr(GString) names = g_string_new(NULL);
    size_t len = strlen(key);
    GHashTableIter iter;
    void *node;
    char **directory;
    char *name;
    bool found;

    *num = 0;
    g_mutex_lock(&lock);
    found = g_hash_table_contains(store, key);
    g_hash_table_iter_init(&iter, store);
    while (g_hash_table_iter_next(&iter, &node, NULL)) {
        const char *child = (char *)node + len + 1;

        if (strlen(node) > len && is_below(node, key) && !strchr(child, '/')) {
            g_string_append_len(names, child, strlen(child) + 1);
            ++*num;
        }
    }
    g_mutex_unlock(&lock);

    if (!found) {
        errno = ENOENT;
        return NULL;
    }
    directory = malloc(*num * sizeof(char *) + names->len + 1);
    name = memcpy(directory + *num, names->str, names->len + 1);
    for (unsigned int i = 0; i < *num; i++) {
        directory[i] = name;
        name += strlen(name) + 1;
    }
    return directory;
}

bool xs_watch(struct xs_handle *h, const char *path, const char *token)
{
    Watch *w = g_new(Watch, 1);

    w->path = absolute(path);
    w->told = g_strdup(path);
    w->token = g_strdup(token);
    g_mutex_lock(&lock);
    g_ptr_array_add(h->watches, w);
    fire(h, w, w->path);
    g_mutex_unlock(&lock);
    return true;
}

bool xs_unwatch(struct xs_handle *h, const char *path, const char *token)
{
    bool found = false;

    g_mutex_lock(&lock);
    for (guint i = 0; i < h->watches->len && !found; i++) {
        Watch *w = g_ptr_array_index(h->watches, i);

        if (!strcmp(w->told, path) && !strcmp(w->token, token)) {
            g_ptr_array_remove_index(h->watches, i);
            found = true;
        }
    }
    g_mutex_unlock(&lock);
    return found;
}

char **xs_check_watch(struct xs_handle *h)
{
    char **event;
    eventfd_t value;

    g_mutex_lock(&lock);
    event = g_queue_pop_head(&h->events);
    if (!event) {
        eventfd_read(h->fd, &value);
        errno = EAGAIN;
    }
    g_mutex_unlock(&lock);
    return event;
}

/* Event channels: the guest's port and ours have the same number */

xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger,
                                 unsigned int open_flags)
{
    xenevtchn_handle *xce = g_new0(xenevtchn_handle, 1);

    xce->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return xce;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    close(xce->fd);
    g_free(xce);
    return 0;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    return xce->fd;
}

xenevtchn_port_or_error_t
xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
                           evtchn_port_t remote_port)
{
    g_mutex_lock(&lock);
    xce->port = remote_port;
    g_ptr_array_add(channels, xce);
    g_mutex_unlock(&lock);
    return remote_port;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    g_mutex_lock(&lock);
    g_ptr_array_remove(channels, xce);
    g_mutex_unlock(&lock);
    return 0;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    return 0;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    eventfd_t value;

    if (eventfd_read(xce->fd, &value)) {
        return -1;
    }
    g_mutex_lock(&lock);
    xce->thread = syscall(SYS_gettid);
    g_mutex_unlock(&lock);
    return xce->port;
}

static xenevtchn_handle *find_channel(evtchn_port_t port)
{
    for (guint i = 0; i < channels->len; i++) {
        xenevtchn_handle *xce = g_ptr_array_index(channels, i);

        if (xce->port == port) {
            return xce;
        }
    }
    return NULL;
}

/* Grants: a reference is a page number in the shared memory */

xengnttab_handle *xengnttab_open(xentoollog_logger *logger,
                                 unsigned open_flags)
{
    return (void *)&no_state;
}

int xengnttab_close(xengnttab_handle *xgt)
{
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants)
{
    return 0;
}

void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count,
                                      uint32_t domid, uint32_t *refs, int prot)
{
    int fd = env_fd(FAKE_XEN_MEMORY);
    char *map = mmap(NULL, count * PAGE_SIZE, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (uint32_t i = 0; i < count; i++) {
        if (refs[i] >= FAKE_XEN_PAGES) {
            munmap(map, count * PAGE_SIZE);
            errno = EINVAL;
            return NULL;
        }
        mmap(map + i * PAGE_SIZE, PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED, fd,
             (off_t)refs[i] * PAGE_SIZE);
    }
    return map;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count)
{
    return munmap(start_address, count * PAGE_SIZE);
}

int xengnttab_grant_copy(xengnttab_handle *xgt, uint32_t count,
                         xengnttab_grant_copy_segment_t *segs)
{
    for (uint32_t i = 0; i < count; i++) {
        xengnttab_grant_copy_segment_t *seg = &segs[i];
        bool to_guest = seg->flags & GNTCOPY_dest_gref;
        uint32_t ref = to_guest ? seg->dest.foreign.ref
                                : seg->source.foreign.ref;
        uint16_t offset = to_guest ? seg->dest.foreign.offset
                                   : seg->source.foreign.offset;
        char *page = xengnttab_map_domain_grant_refs(xgt, 1, 0, &ref,
                                                     PROT_READ | PROT_WRITE);

        if (!page) {
            seg->status = GNTST_bad_gntref;
            continue;
        }
        if (to_guest) {
            memcpy(page + offset, seg->source.virt, seg->len);
        } else {
            memcpy(seg->dest.virt, page + offset, seg->len);
        }
        munmap(page, PAGE_SIZE);
        seg->status = GNTST_okay;
    }
    return 0;
}

/* What the test asks for: one line, and one line of answer */

static char *obey(char **words)
{
    const char *arg = words[1];
    char *answer = NULL;
    xenevtchn_handle *xce;

    g_mutex_lock(&lock);
    if (!strcmp(words[0], "write")) {
        store_write(arg, g_strdup(words[2]));
        answer = g_strdup("ok");
    } else if (!strcmp(words[0], "read")) {
        answer = g_strdup(g_hash_table_lookup(store, arg) ?: "");
    } else if (!strcmp(words[0], "kick")) {
        xce = find_channel(atoi(arg));
        if (xce) {
            eventfd_write(xce->fd, 1);
        }
        answer = g_strdup(xce ? "ok" : "none");
    } else if (!strcmp(words[0], "thread")) {
        xce = find_channel(atoi(arg));
        answer = g_strdup_printf("%d", xce ? xce->thread : 0);
    }
    g_mutex_unlock(&lock);
    return answer;
}

/* No stdio: exit() would wait for a thread that waits for input */
static void *serve(void *opaque)
{
    int fd = env_fd(FAKE_XEN_CONTROL);
    g_autoptr(GString) line = g_string_new(NULL);
    char c;

    while (read(fd, &c, 1) == 1) {
        if (c == '\n') {
            g_auto(GStrv) words = g_strsplit(line->str, " ", 3);
            g_autofree char *answer = obey(words);

            dprintf(fd, "%s\n", answer);
            g_string_truncate(line, 0);
        } else {
            g_string_append_c(line, c);
        }
    }
    return NULL;
}

/* QEMU opens this one once, first of all */
xc_interface *xc_interface_open(xentoollog_logger *logger,
                                xentoollog_logger *dombuild_logger,
                                unsigned open_flags)
{
    g_thread_unref(g_thread_new("fake-xen", serve, NULL));
    return (void *)&no_state;
}
