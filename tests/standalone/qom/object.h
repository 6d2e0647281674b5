/*
 * Stand-in for QEMU's object.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_OBJECT_H
#define QEMU_OBJECT_H

typedef struct Object {
    unsigned ref;
    char *path;
} Object;

typedef struct TypeInfo {
    const char *name;
    const char *parent;
    size_t instance_size;
} TypeInfo;

#define TYPE_OBJECT "object"
#define OBJECT(obj) ((Object *)(obj))

static size_t instance_size;

static inline void type_register_static(const TypeInfo *info)
{
    instance_size = info->instance_size;
}

static inline Object *object_new(const char *type)
{
    Object *obj = (Object *)g_malloc0(instance_size);

    obj->ref = 1;
    return obj;
}

static inline void object_ref(Object *obj)
{
    __atomic_fetch_add(&obj->ref, 1, __ATOMIC_SEQ_CST);
}

static inline void object_unref(Object *obj)
{
    if (__atomic_fetch_sub(&obj->ref, 1, __ATOMIC_SEQ_CST) == 1) {
        g_free(obj->path);
        g_free(obj);
    }
}

static inline Object *object_get_root(void)
{
    return NULL;
}

static inline void object_property_add_child(Object *parent, const char *name,
                                             Object *child)
{
    child->path = g_strdup_printf("/%s", name);
    object_ref(child);
}

static inline void object_unparent(Object *obj)
{
    object_unref(obj);
}

static inline char *object_get_canonical_path(const Object *obj)
{
    return g_strdup(obj->path);
}

#endif
