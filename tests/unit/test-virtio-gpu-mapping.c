/*
 * Virtio GPU: every order in which blobs are mapped, unmapped and reset
 *
 * The state machine is driven by a model of the device: a queue whose head
 * may be suspended, a renderer that can be blocked by others and can refuse
 * to unmap, regions that are freed whenever somebody else says so, and
 * resets. All sequences of events up to a length are run, each of them to
 * the point where everything has come to rest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../../hw/display/virtio-gpu-mapping.h"

#define MAX_BLOBS 2
#define MAX_DEPTH 9

/* What happens to one blob... */
enum {
    EV_MAP,         /* the guest creates it where it is not there, and maps */
    EV_UNMAP,       /* the guest unmaps it */
    EV_UNREF,       /* the guest destroys it */
    EV_FREED,       /* nobody uses its region any more */
    EV_PER_BLOB,
};

/* ... and to the device */
enum {
    EV_RESET,
    EV_BLOCK,       /* the display blocks the renderer... */
    EV_UNBLOCK,     /* ... and no longer */
    EV_REFUSE,      /* the renderer will refuse the next unmap */
    EV_GLOBAL,
};

typedef struct Blob {
    VirtIOGPUMappingState state;
    bool exists;
    bool in_renderer;   /* the renderer has it mapped */
    bool in_guest;      /* the region is visible to the guest */
    bool in_use;        /* the region is there, visible or not */
} Blob;

typedef struct Command {
    int event;
    int blob;
} Command;

typedef struct Model {
    Blob blob[MAX_BLOBS];
    Command queue[MAX_DEPTH];
    int head, tail;
    int answers[MAX_DEPTH];
    int blocked;        /* renderer_blocked */
    int others;         /* who of these is the display */
    bool reset;         /* waits for the renderer */
    bool refuse;
} Model;

static int blobs;
static int depth;
static unsigned long sequences;
static int path[MAX_DEPTH];

/* The device's part of an unmap. Returns: whether it went well */
static bool unmap(Model *m, Blob *b, bool *suspended)
{
    switch (virtio_gpu_mapping_unmap(&b->state)) {
    case VIRTIO_GPU_UNMAP_NOTHING:
        return true;
    case VIRTIO_GPU_UNMAP_START:
        /* once per mapping: the guest cannot lose it twice */
        g_assert_true(b->in_guest);
        b->in_guest = false;
        m->blocked++;
        *suspended = true;
        return true;
    case VIRTIO_GPU_UNMAP_WAIT:
        *suspended = true;
        return true;
    case VIRTIO_GPU_UNMAP_FINISH:
        /* never under somebody who uses it, and once per mapping */
        g_assert_false(b->in_use);
        g_assert_true(b->in_renderer);
        if (m->refuse) {
            m->refuse = false;
            return false;
        }
        b->in_renderer = false;
        virtio_gpu_mapping_unmapped(&b->state);
        return true;
    }
    g_assert_not_reached();
}

static void destroy(Blob *b)
{
    /* The renderer frees the memory */
    g_assert_false(b->in_use);
    *b = (Blob) { 0 };
}

/* Returns: whether the command is done, well or not */
static bool execute(Model *m, const Command *cmd)
{
    Blob *b = &m->blob[cmd->blob];
    bool suspended = false;

    switch (cmd->event) {
    case EV_MAP:
        b->exists = true;
        if (virtio_gpu_mapping_may_map(b->state)) {
            g_assert_false(b->in_renderer || b->in_use);
            b->in_renderer = b->in_guest = b->in_use = true;
            virtio_gpu_mapping_mapped(&b->state);
        }
        break;
    case EV_UNMAP:
        if (b->exists) {
            unmap(m, b, &suspended);
        }
        break;
    case EV_UNREF:
        if (b->exists && unmap(m, b, &suspended) && !suspended) {
            destroy(b);
        }
        break;
    }
    return !suspended;
}

/* The main loop, until it has nothing to do */
static void run(Model *m)
{
    if (m->reset && !m->blocked) {
        for (int i = 0; i < blobs; i++) {
            bool suspended = false;

            unmap(m, &m->blob[i], &suspended);
            g_assert_false(suspended);
            destroy(&m->blob[i]);
        }
        m->reset = false;
    }
    while (!m->reset && !m->blocked && m->head < m->tail &&
           execute(m, &m->queue[m->head])) {
        m->answers[m->head++]++;
    }
}

static void check(const Model *m)
{
    int in_flight = 0;

    for (int i = 0; i < blobs; i++) {
        const Blob *b = &m->blob[i];
        bool started = b->state == VIRTIO_GPU_MAPPING_UNMAP_STARTED;

        g_assert_cmpint(b->in_guest, ==,
                        b->state == VIRTIO_GPU_MAPPING_MAPPED);
        g_assert_cmpint(b->in_use, ==, b->in_guest || started);
        g_assert_cmpint(b->in_renderer, ==,
                        b->state != VIRTIO_GPU_MAPPING_NONE);
        g_assert_true(b->exists || !b->in_renderer);
        in_flight += started;
        if (m->reset) {
            g_assert_false(b->in_guest);
        }
    }
    g_assert_cmpint(m->blocked, ==, m->others + in_flight);
    for (int i = 0; i < m->tail; i++) {
        g_assert_cmpint(m->answers[i], ==, i < m->head);
    }
    if (!m->blocked) {
        /* nothing is left lying */
        g_assert_false(m->reset);
        g_assert_cmpint(m->head, ==, m->tail);
    }
}

static void region_freed(Model *m, Blob *b)
{
    g_assert_true(b->in_use);
    b->in_use = false;
    virtio_gpu_mapping_region_freed(&b->state);
    m->blocked--;
}

/* Returns: false where this cannot happen now */
static bool happen(Model *m, int event)
{
    Blob *b = &m->blob[event / EV_PER_BLOB];

    if (event < blobs * EV_PER_BLOB) {
        switch (event % EV_PER_BLOB) {
        case EV_FREED:
            if (!b->in_use || b->in_guest) {
                return false;
            }
            region_freed(m, b);
            break;
        default:
            m->queue[m->tail++] = (Command) { event % EV_PER_BLOB,
                                              event / EV_PER_BLOB };
            break;
        }
    } else {
        switch (event - blobs * EV_PER_BLOB) {
        case EV_RESET:
            for (int i = 0; i < blobs; i++) {
                bool suspended;

                if (m->blob[i].state == VIRTIO_GPU_MAPPING_MAPPED) {
                    unmap(m, &m->blob[i], &suspended);
                }
            }
            /* Nobody waits for these answers any more */
            m->tail = m->head;
            m->reset = true;
            break;
        case EV_BLOCK:
            m->blocked++;
            m->others++;
            break;
        case EV_UNBLOCK:
            if (!m->others) {
                return false;
            }
            m->blocked--;
            m->others--;
            break;
        case EV_REFUSE:
            if (m->refuse) {
                return false;
            }
            m->refuse = true;
            break;
        }
    }
    run(m);
    check(m);
    return true;
}

/* Everybody lets go of everything: then all must be answered */
static void come_to_rest(Model m)
{
    while (m.others) {
        happen(&m, blobs * EV_PER_BLOB + EV_UNBLOCK);
    }
    while (m.blocked) {
        bool any = false;

        for (int i = 0; i < blobs; i++) {
            any |= happen(&m, i * EV_PER_BLOB + EV_FREED);
        }
        g_assert_true(any);
    }
    g_assert_cmpint(m.head, ==, m.tail);

    /* and the device can be used, whatever happened to it */
    m.refuse = false;
    m.head = m.tail = 0;
    memset(m.answers, 0, sizeof(m.answers));
    happen(&m, blobs * EV_PER_BLOB + EV_RESET);
    while (happen(&m, EV_FREED)) {
        ;
    }
    if (blobs > 1) {
        happen(&m, EV_PER_BLOB + EV_FREED);
    }
    happen(&m, EV_MAP);
    g_assert_true(m.blob[0].in_guest);
    sequences++;
}

static void explore(const Model *from, int length)
{
    int events = blobs * EV_PER_BLOB + EV_GLOBAL;

    come_to_rest(*from);
    if (length == depth) {
        return;
    }
    for (int event = 0; event < events; event++) {
        Model m = *from;

        path[length] = event;
        if (happen(&m, event)) {
            explore(&m, length + 1);
        }
    }
}

/* Where an assertion fails: how it came about */
static void tell_path(int sig)
{
    for (int i = 0; i < depth; i++) {
        fprintf(stderr, "%s%d", i ? " " : "# events: ", path[i]);
    }
    fputc('\n', stderr);
}

static void test_orders(int how_many, int how_long)
{
    struct sigaction tell = { .sa_handler = tell_path,
                              .sa_flags = SA_RESETHAND };
    struct sigaction before;
    Model m = { 0 };

    blobs = how_many;
    depth = how_long;
    sequences = 0;
    sigaction(SIGABRT, &tell, &before);
    explore(&m, 0);
    sigaction(SIGABRT, &before, NULL);
    g_test_message("%lu sequences of up to %d events", sequences, depth);
    g_assert_cmpuint(sequences, >, 10000);
}

static void test_one_blob(void)
{
    test_orders(1, g_test_slow() ? 9 : 8);
}

static void test_two_blobs(void)
{
    test_orders(2, g_test_slow() ? 8 : 7);
}

/* The picture in the header, and that there is no other arrow */
static void test_transitions(void)
{
    VirtIOGPUMappingState s = VIRTIO_GPU_MAPPING_NONE;

    g_assert_true(virtio_gpu_mapping_may_map(s));
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_NOTHING);
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "none");
    virtio_gpu_mapping_mapped(&s);
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "mapped");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_START);
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "unmap-started");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_WAIT);
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_WAIT);
    virtio_gpu_mapping_region_freed(&s);
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "unmap-completed");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_FINISH);
    /* the renderer refused: it is asked again */
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_FINISH);
    virtio_gpu_mapping_unmapped(&s);
    g_assert_cmpint(s, ==, VIRTIO_GPU_MAPPING_NONE);
    g_assert_cmpstr(virtio_gpu_mapping_state_str(42), ==, "invalid");
}

typedef struct Impossible {
    void (*event)(VirtIOGPUMappingState *state);
    VirtIOGPUMappingState state;
    const char *message;
} Impossible;

static void test_impossible(const void *opaque)
{
    const Impossible *test = opaque;
    VirtIOGPUMappingState state = test->state;

    if (g_test_subprocess()) {
        test->event(&state);
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(test->message);
}

#define MAPPED "*cannot become 'mapped' while it is "
#define FREED "*cannot become 'unmap-completed' while it is "
#define UNMAPPED "*cannot become 'none' while it is "

static const Impossible impossible[] = {
    { virtio_gpu_mapping_mapped, VIRTIO_GPU_MAPPING_MAPPED,
      MAPPED "'mapped'*" },
    { virtio_gpu_mapping_mapped, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
      MAPPED "'unmap-started'*" },
    { virtio_gpu_mapping_mapped, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
      MAPPED "'unmap-completed'*" },
    { virtio_gpu_mapping_region_freed, VIRTIO_GPU_MAPPING_NONE,
      FREED "'none'*" },
    { virtio_gpu_mapping_region_freed, VIRTIO_GPU_MAPPING_MAPPED,
      FREED "'mapped'*" },
    { virtio_gpu_mapping_region_freed, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
      FREED "'unmap-completed'*" },
    { virtio_gpu_mapping_unmapped, VIRTIO_GPU_MAPPING_NONE,
      UNMAPPED "'none'*" },
    { virtio_gpu_mapping_unmapped, VIRTIO_GPU_MAPPING_MAPPED,
      UNMAPPED "'mapped'*" },
    { virtio_gpu_mapping_unmapped, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
      UNMAPPED "'unmap-started'*" },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/virtio-gpu-mapping/transitions", test_transitions);
    for (int i = 0; i < ARRAY_SIZE(impossible); i++) {
        g_autofree char *name = g_strdup_printf(
            "/virtio-gpu-mapping/impossible/%d", i);

        g_test_add_data_func(name, &impossible[i], test_impossible);
    }
    g_test_add_func("/virtio-gpu-mapping/orders/one-blob", test_one_blob);
    g_test_add_func("/virtio-gpu-mapping/orders/two-blobs", test_two_blobs);
    return g_test_run();
}
