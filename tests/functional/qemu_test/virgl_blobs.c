/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * OpenGL buffers with persistent mappings, for a guest with virtio-gpu-gl:
 * each of them is a blob that the host maps into the device's window.
 *
 * Usage: virgl_blobs ROUNDS BUFFERS BYTES
 *
 * A round creates and maps that many buffers, writes to half of them, has the
 * host copy these to the other half, and compares what is seen there.  With
 * 0 rounds the first one does not end: it copies again and again.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES3/gl31.h>
#include <GLES2/gl2ext.h>

#define FLAGS (GL_MAP_READ_BIT | GL_MAP_WRITE_BIT | \
               GL_MAP_PERSISTENT_BIT_EXT | GL_MAP_COHERENT_BIT_EXT)
#define MAX_BUFFERS 64

/* Who fails leaves the cleaning up to the kernel. */
static void check(bool ok, const char *what)
{
    if (!ok) {
        printf("%s failed: EGL 0x%x, GL 0x%x\n", what, eglGetError(),
               eglGetCurrentContext() ? glGetError() : 0);
        exit(1);
    }
}

/* Without any surface, on the first GPU that there is. */
static EGLDisplay start(void)
{
    static const EGLint attributes[] = {
        EGL_CONTEXT_MAJOR_VERSION, 3, EGL_CONTEXT_MINOR_VERSION, 1, EGL_NONE
    };
    EGLDisplay display;
    EGLContext context;

    display = eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS_MESA,
                                    EGL_DEFAULT_DISPLAY, NULL);
    check(eglInitialize(display, NULL, NULL), "eglInitialize");
    check(eglBindAPI(EGL_OPENGL_ES_API), "eglBindAPI");
    context = eglCreateContext(display, EGL_NO_CONFIG_KHR, EGL_NO_CONTEXT,
                               attributes);
    check(context != EGL_NO_CONTEXT, "eglCreateContext");
    check(eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context),
          "eglMakeCurrent");
    check(strstr((const char *)glGetString(GL_EXTENSIONS),
                 "GL_EXT_buffer_storage"), "GL_EXT_buffer_storage");
    return display;
}

/*
 * Mesa keeps deleted buffers for the next ones of that size; they go for sure
 * when all that it has goes.
 */
static void stop(EGLDisplay display)
{
    EGLContext context = eglGetCurrentContext();

    check(eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE,
                         EGL_NO_CONTEXT), "eglMakeCurrent");
    check(eglDestroyContext(display, context), "eglDestroyContext");
    check(eglTerminate(display), "eglTerminate");
}

static void copy(unsigned round, unsigned pairs, GLsizeiptr bytes,
                 const GLuint *name, uint32_t *const *map)
{
    size_t words = bytes / sizeof(uint32_t);
    uint32_t pattern = round * 2654435761u;
    unsigned i;
    size_t k;

    for (i = 0; i < pairs; i++) {
        for (k = 0; k < words; k++) {
            map[i][k] = pattern + i * words + k;
            map[pairs + i][k] = 0;
        }
        glBindBuffer(GL_COPY_READ_BUFFER, name[i]);
        glBindBuffer(GL_COPY_WRITE_BUFFER, name[pairs + i]);
        glCopyBufferSubData(GL_COPY_READ_BUFFER, GL_COPY_WRITE_BUFFER,
                            0, 0, bytes);
    }
    glFinish();
    check(glGetError() == GL_NO_ERROR, "glCopyBufferSubData");
    for (i = 0; i < pairs; i++) {
        for (k = 0; k < words; k++) {
            if (map[pairs + i][k] != (uint32_t)(pattern + i * words + k)) {
                printf("round %u, buffer %u, word %zu: 0x%x, not 0x%x\n",
                       round, i, k, map[pairs + i][k],
                       (uint32_t)(pattern + i * words + k));
                exit(1);
            }
        }
    }
}

int main(int argc, char **argv)
{
    PFNGLBUFFERSTORAGEEXTPROC buffer_storage;
    unsigned rounds, buffers, round, i;
    GLuint name[MAX_BUFFERS];
    uint32_t *map[MAX_BUFFERS];
    EGLDisplay display;
    GLsizeiptr bytes;

    rounds = argc == 4 ? atoi(argv[1]) : 0;
    buffers = argc == 4 ? atoi(argv[2]) : 0;
    bytes = argc == 4 ? atol(argv[3]) : 0;
    if (!buffers || buffers % 2 || buffers > MAX_BUFFERS || bytes <= 0) {
        fprintf(stderr, "usage: %s ROUNDS BUFFERS BYTES\n", argv[0]);
        return 2;
    }

    for (round = 1; round <= rounds || !rounds; round++) {
        display = start();
        if (round == 1) {
            printf("renderer: %s\n", glGetString(GL_RENDERER));
            fflush(stdout);
        }
        buffer_storage = (PFNGLBUFFERSTORAGEEXTPROC)
            eglGetProcAddress("glBufferStorageEXT");
        glGenBuffers(buffers, name);
        for (i = 0; i < buffers; i++) {
            glBindBuffer(GL_COPY_READ_BUFFER, name[i]);
            buffer_storage(GL_COPY_READ_BUFFER, bytes, NULL, FLAGS);
            map[i] = glMapBufferRange(GL_COPY_READ_BUFFER, 0, bytes, FLAGS);
            check(map[i], "glMapBufferRange");
        }
        do {
            copy(round, buffers / 2, bytes, name, map);
        } while (!rounds);
        for (i = 0; i < buffers; i++) {
            glBindBuffer(GL_COPY_READ_BUFFER, name[i]);
            check(glUnmapBuffer(GL_COPY_READ_BUFFER), "glUnmapBuffer");
        }
        glDeleteBuffers(buffers, name);
        stop(display);
    }
    printf("compared: %u\n", rounds * (buffers / 2));
    return 0;
}
