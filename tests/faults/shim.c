/* A disk that fails on demand, for LD_PRELOAD: every call that changes or syncs a file below one folder is counted,
 * may be logged, and may fail or kill the process. It reaches whatever runs in the process, SQLite too.
 *
 * Set by the environment, read at start and again by faults_read_environment():
 *   FAULTS_ROOT    folder whose files are meant; nothing happens without it
 *   FAULTS_CALLS   which kinds count, comma separated: write fsync rename truncate unlink mkdir flock fcntl
 *   FAULTS_PATH    only paths with this text in them
 *   FAULTS_AT      number of the call that fails, from 1 on; 0: none
 *   FAULTS_ACTION  an errno (28 is ENOSPC), "kill": SIGKILL before the call, "torn": SIGKILL after half of a write,
 *                  "pretend": success without doing anything
 *   FAULTS_STICKY  1: all calls from that one on fail
 *   FAULTS_SWITCH  calls count only while this file exists
 *   FAULTS_LOG     a line per call that counts: its kind, its path, and the new path of a rename
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, FAIL, TORN, PRETEND };

static struct {
    char root[4096], calls[256], path[256], watched[4096];
    long at, count;
    int action, sticky, log;
} faults = {.log = -1};
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

static void copy_variable(char *to, size_t room, const char *name) {
    const char *value = getenv(name);
    snprintf(to, room, "%s", value ? value : "");
}

__attribute__((constructor, visibility("default"))) void faults_read_environment(void) {
    char number[32], action[32], log[4096];
    copy_variable(faults.root, sizeof faults.root, "FAULTS_ROOT");
    copy_variable(faults.calls, sizeof faults.calls, "FAULTS_CALLS");
    copy_variable(faults.path, sizeof faults.path, "FAULTS_PATH");
    copy_variable(faults.watched, sizeof faults.watched, "FAULTS_SWITCH");
    copy_variable(action, sizeof action, "FAULTS_ACTION");
    faults.action = !strcmp(action, "kill") ? -1 : !strcmp(action, "torn") ? -2 : !strcmp(action, "pretend") ? -3 : atoi(action);
    copy_variable(number, sizeof number, "FAULTS_AT");
    faults.at = atol(number);
    copy_variable(number, sizeof number, "FAULTS_STICKY");
    faults.sticky = atoi(number);
    faults.count = 0;
    copy_variable(log, sizeof log, "FAULTS_LOG");
    if (faults.log >= 0) close(faults.log);
    faults.log = *log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

static int listed(const char *kind) {
    size_t length = strlen(kind);
    for (const char *at = faults.calls; (at = strstr(at, kind)) != NULL; at += length)
        if ((at == faults.calls || at[-1] == ',') && (at[length] == ',' || !at[length])) return 1;
    return 0;
}

/* What is to become of a call; errno is set where it fails. Raw system calls only: nothing here may count itself. */
static int judge(const char *kind, const char *path, const char *other) {
    int saved = errno, verdict = PASS;
    if (!*faults.root || strncmp(path, faults.root, strlen(faults.root)) || !listed(kind)) return PASS;
    if (*faults.path && !strstr(path, faults.path) && !(other && strstr(other, faults.path))) return PASS;
    if (*faults.watched && syscall(SYS_faccessat, AT_FDCWD, faults.watched, F_OK)) {
        errno = saved;
        return PASS;
    }
    pthread_mutex_lock(&guard);
    long number = ++faults.count;
    if (faults.log >= 0) {
        char line[9000];
        int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", kind, path, other ? other : "");
        (void)!syscall(SYS_write, faults.log, line, (size_t)length);
    }
    pthread_mutex_unlock(&guard);
    errno = saved;
    if (faults.at && (number == faults.at || (faults.sticky && number > faults.at))) {
        if (faults.action == -2 && !strcmp(kind, "write")) return TORN;
        if (faults.action == -3) return PRETEND;
        if (faults.action < 0) syscall(SYS_kill, getpid(), SIGKILL);
        errno = faults.action;
        verdict = FAIL;
    }
    return verdict;
}

static int judge_descriptor(const char *kind, int descriptor) {
    char link[64], path[4096];
    int saved = errno;
    if (!*faults.root) return PASS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return PASS;
    path[length] = 0;
    return judge(kind, path, NULL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *data, size_t size) {
    switch (judge_descriptor("write", descriptor)) {
    case FAIL: return -1;
    case PRETEND: return (ssize_t)size;
    case TORN: syscall(SYS_write, descriptor, data, size / 2); raise(SIGKILL);
    }
    return syscall(SYS_write, descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    switch (judge_descriptor("write", descriptor)) {
    case FAIL: return -1;
    case PRETEND: return (ssize_t)size;
    case TORN: syscall(SYS_pwrite64, descriptor, data, size / 2, offset); raise(SIGKILL);
    }
    return syscall(SYS_pwrite64, descriptor, data, size, offset);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    int verdict = judge_descriptor("write", descriptor);
    if (verdict == TORN) raise(SIGKILL);
    return verdict == FAIL ? -1 : REAL(writev)(descriptor, parts, count);
}

#define DESCRIPTOR_CALL(name, kind, parameters, arguments)      \
    int name parameters {                                       \
        int verdict = judge_descriptor(kind, descriptor);       \
        if (verdict == FAIL) return -1;                         \
        if (verdict == PRETEND) return 0;                       \
        return REAL(name) arguments;                            \
    }

DESCRIPTOR_CALL(fsync, "fsync", (int descriptor), (descriptor))
DESCRIPTOR_CALL(fdatasync, "fsync", (int descriptor), (descriptor))
DESCRIPTOR_CALL(flock, "flock", (int descriptor, int operation), (descriptor, operation))
DESCRIPTOR_CALL(ftruncate, "truncate", (int descriptor, off_t size), (descriptor, size))
DESCRIPTOR_CALL(ftruncate64, "truncate", (int descriptor, off64_t size), (descriptor, size))

int rename(const char *from, const char *to) {
    int verdict = judge("rename", from, to);
    return verdict == FAIL ? -1 : verdict == PRETEND ? 0 : REAL(rename)(from, to);
}

int unlink(const char *path) {
    int verdict = judge("unlink", path, NULL);
    return verdict == FAIL ? -1 : verdict == PRETEND ? 0 : REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode) {
    /* A folder that exists already changes nothing. */
    int verdict = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) ? judge("mkdir", path, NULL) : PASS;
    return verdict == FAIL ? -1 : verdict == PRETEND ? 0 : REAL(mkdir)(path, mode);
}

/* Only locks are of interest; the argument of every other command fits a pointer. */
int fcntl64(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) {
        int verdict = judge_descriptor("fcntl", descriptor);
        if (verdict == FAIL) return -1;
        if (verdict == PRETEND) return 0;
    }
    return REAL(fcntl64)(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(descriptor, command, argument);
}
