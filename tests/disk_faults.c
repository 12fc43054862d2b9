/* Preloaded into a test process: counts the writes below a folder, makes one of them fail, and logs their order.
 *
 * fault_set(prefix, error, at, lasting): the operation number `at` below `prefix` fails with `error`, and with `lasting` all later
 * ones fail too. at = 0: none fails. fault_count() returns the number of operations since then. fault_log(path) names the file
 * for the log; NULL: no log.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char prefix[PATH_MAX];
static int failure, at, lasting, count, log_file = -1;

void fault_set(const char *folder, int error, int number, int stays) {
    snprintf(prefix, sizeof prefix, "%s", folder);
    failure = error, at = number, lasting = stays, count = 0;
}
int fault_count(void) { return count; }
void fault_log(const char *path) {
    if (log_file >= 0) close(log_file);
    log_file = -1;
    if (path) log_file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
}

static int fails(const char *what, const char *path, const char *target) {
    if (!prefix[0] || strncmp(target ? target : path, prefix, strlen(prefix))) return 0;
    count++;
    if (at && (count == at || (lasting && count > at))) {
        errno = failure;
        return 1;
    }
    if (log_file >= 0) dprintf(log_file, "%s\t%s\t%s\n", what, path, target ? target : "");
    return 0;
}
static int fails_at(const char *what, int file) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t size = file == log_file ? -1 : readlink(name, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(what, path, NULL);
}
#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int fsync(int file) { return fails_at("fsync", file) ? -1 : REAL(int, fsync, int)(file); }
ssize_t write(int file, const void *data, size_t size) {
    return fails_at("write", file) ? -1 : REAL(ssize_t, write, int, const void *, size_t)(file, data, size);
}
int rename(const char *from, const char *to) {
    return fails("rename", from, to) ? -1 : REAL(int, rename, const char *, const char *)(from, to);
}
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path, NULL) ? -1 : REAL(int, mkdir, const char *, mode_t)(path, mode); }
int link(const char *from, const char *to) {
    return fails("link", from, to) ? -1 : REAL(int, link, const char *, const char *)(from, to);
}
#define OPEN(name)                                                                                                                \
    int name(const char *path, int flags, ...) {                                                                                  \
        va_list rest;                                                                                                             \
        va_start(rest, flags);                                                                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                                   \
        va_end(rest);                                                                                                             \
        if (flags & O_CREAT && fails("create", path, NULL)) return -1;                                                            \
        return REAL(int, name, const char *, int, ...)(path, flags, mode);                                                        \
    }
OPEN(open)
OPEN(open64)
