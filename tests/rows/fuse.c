/* SPDX-License-Identifier: MIT */
/* fuse.c - see fuse.h. Owns the server's process, one at a time. */
#include "fuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "rows.h"

enum { FILE_NODE = 2 };

static pid_t server = -1;
static int file_exists; /* the server's */

struct request {
    struct fuse_in_header header;
    char body[1 << 17];
};

static void reply(int fd, const struct request *request, int error, const void *body, size_t len)
{
    struct fuse_out_header header = {(uint32_t)(sizeof(header) + len), -error,
                                     request->header.unique};
    struct iovec parts[2] = {{&header, sizeof(header)}, {(void *)(uintptr_t)body, len}};
    if (writev(fd, parts, 2) < 0)
        return; /* the asker was interrupted */
}

static struct fuse_attr attributes(uint64_t node)
{
    return (struct fuse_attr){
        .ino = node, .mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600, .nlink = 1};
}

static void reply_entry(int fd, const struct request *request, int opened)
{
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {.entry = {.nodeid = FILE_NODE, .attr = attributes(FILE_NODE)}};
    reply(fd, request, 0, &out, opened ? sizeof(out) : sizeof(out.entry));
}

static void reply_start(int fd, const struct request *request)
{
    const struct fuse_init_in *in = (const void *)request->body;
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION, .minor = in->minor, .max_write = 4096};
    if (out.minor > FUSE_KERNEL_MINOR_VERSION)
        out.minor = FUSE_KERNEL_MINOR_VERSION;
    reply(fd, request, 0, &out, sizeof(out));
}

static void answer(int fd, const struct request *request)
{
    struct fuse_attr_out attr = {.attr = attributes(request->header.nodeid)};
    struct fuse_statfs_out statfs = {.st = {.bsize = 4096, .namelen = 255}};
    struct fuse_open_out open = {0};
    switch (request->header.opcode) {
    case FUSE_INIT:
        reply_start(fd, request);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
        break; /* no answer */
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        reply(fd, request, 0, &attr, sizeof(attr));
        break;
    case FUSE_STATFS:
        reply(fd, request, 0, &statfs, sizeof(statfs));
        break;
    case FUSE_LOOKUP:
        if (file_exists)
            reply_entry(fd, request, 0);
        else
            reply(fd, request, ENOENT, NULL, 0);
        break;
    case FUSE_CREATE:
        file_exists = 1;
        reply_entry(fd, request, 1);
        break;
    case FUSE_OPEN:
        reply(fd, request, 0, &open, sizeof(open));
        break;
    case FUSE_UNLINK:
        file_exists = 0;
        reply(fd, request, 0, NULL, 0);
        break;
    case FUSE_RELEASE:
    case FUSE_FLUSH:
        reply(fd, request, 0, NULL, 0);
        break;
    default:
        reply(fd, request, ENOSYS, NULL, 0);
    }
}

static int serve(void *arg)
{
    int fd = *(int *)arg;
    static struct request request;
    while (read(fd, &request, sizeof(request)) >= (ssize_t)sizeof(request.header) || errno == EINTR)
        answer(fd, &request);
    return 0;
}

int fuse_mount(const char *where)
{
    char options[80];
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    if (fd < 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("shmalloc-test", where, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
        fprintf(stderr, "not possible here: a FUSE mount: %s\n", strerror(errno));
        close(fd);
        return NOT_POSSIBLE;
    }
    server = start_child(serve, &fd);
    close(fd);
    return 0;
}

void fuse_end(const char *where)
{
    umount2(where, MNT_DETACH);
    kill_child(server);
}
