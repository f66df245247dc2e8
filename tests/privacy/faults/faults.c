/* A disk that stops at a chosen system call, and remembers what a power cut would leave.

   Preloaded into a process, it counts the calls that change files under a folder. At the chosen one it kills
   the process, after half of the bytes if it is a write and tearing is on. Each fsync of a file copies its
   content to OUT/i<inode>; each fsync of the folder writes OUT/n<name> with the inode for every name in it.
   Together these are the state that the standard promises after a power cut: nothing that was not synced. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX], out[PATH_MAX];
static long left = -1, seen = 0;
static int tearing = 0;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void fault_arm(const char *folder, const char *image, long at, int torn) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(out, sizeof out, "%s", image);
    left = at;
    tearing = torn;
    seen = 0;
}

long fault_seen(void) { return seen; }

static int under(const char *path) { return left >= 0 && !strncmp(path, root, strlen(root)); }

static int watched(int fd) {
    char link[64], path[PATH_MAX];
    if (left < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return under(path);
}

static int now(void) {
    seen++;
    return left > 0 && --left == 0;
}

static void stop(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static void keep(int fd) {
    char path[PATH_MAX + 64], link[64], buffer[65536];
    struct stat s;
    if (fstat(fd, &s)) abort();
    if (S_ISDIR(s.st_mode)) {
        DIR *old = opendir(out);
        for (struct dirent *e; (e = readdir(old));) {
            if (e->d_name[0] != 'n') continue;
            snprintf(path, sizeof path, "%s/%s", out, e->d_name);
            REAL(unlink)(path);
        }
        closedir(old);
        DIR *names = opendir(root);
        for (struct dirent *e; (e = readdir(names));) {
            if (e->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/n%s", out, e->d_name);
            FILE *f = fopen(path, "w");
            fprintf(f, "%lu", (unsigned long)e->d_ino);
            fclose(f);
        }
        closedir(names);
        return;
    }
    snprintf(path, sizeof path, "%s/i%lu", out, (unsigned long)s.st_ino);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int from = REAL(open)(link, O_RDONLY), to = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (from < 0 || to < 0) abort();
    for (ssize_t n; (n = read(from, buffer, sizeof buffer)) > 0;)
        if (REAL(write)(to, buffer, n) != n) abort();
    close(from);
    close(to);
}

ssize_t write(int fd, const void *b, size_t n) {
    if (watched(fd) && now()) { if (tearing) REAL(write)(fd, b, n / 2); stop(); }
    return REAL(write)(fd, b, n);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) {
    if (watched(fd) && now()) { if (tearing) REAL(pwrite)(fd, b, n / 2, at); stop(); }
    return REAL(pwrite)(fd, b, n, at);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) {
    if (watched(fd) && now()) { if (tearing) REAL(pwrite64)(fd, b, n / 2, at); stop(); }
    return REAL(pwrite64)(fd, b, n, at);
}
int fsync(int fd) {
    int w = watched(fd);
    if (w && now()) stop();
    int r = REAL(fsync)(fd);
    if (w && !r) keep(fd);
    return r;
}
int fdatasync(int fd) {
    int w = watched(fd);
    if (w && now()) stop();
    int r = REAL(fdatasync)(fd);
    if (w && !r) keep(fd);
    return r;
}
int ftruncate(int fd, off_t n) {
    if (watched(fd) && now()) stop();
    return REAL(ftruncate)(fd, n);
}
int ftruncate64(int fd, off64_t n) {
    if (watched(fd) && now()) stop();
    return REAL(ftruncate64)(fd, n);
}
int link(const char *a, const char *b) {
    if (under(b) && now()) stop();
    return REAL(link)(a, b);
}
int linkat(int da, const char *a, int db, const char *b, int f) {
    if (under(b) && now()) stop();
    return REAL(linkat)(da, a, db, b, f);
}
int unlink(const char *path) {
    if (under(path)) {
        struct stat s;
        char image[PATH_MAX + 64];
        if (now()) stop();
        if (!stat(path, &s) && s.st_nlink == 1) {
            snprintf(image, sizeof image, "%s/u%lu", out, (unsigned long)s.st_ino);
            close(REAL(open)(image, O_WRONLY | O_CREAT, 0600));
        }
    }
    return REAL(unlink)(path);
}
static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    struct stat s;
    int fresh = (flags & O_CREAT) && under(path) && stat(path, &s);
    if (fresh && now()) stop();
    int fd = real(path, flags, mode);
    if (fresh && fd >= 0 && !fstat(fd, &s)) {
        /* A new file on an inode that a removed one had: the old content is not the new one's. */
        char image[PATH_MAX + 64];
        snprintf(image, sizeof image, "%s/u%lu", out, (unsigned long)s.st_ino);
        if (!REAL(unlink)(image)) {
            snprintf(image, sizeof image, "%s/i%lu", out, (unsigned long)s.st_ino);
            REAL(unlink)(image);
        }
    }
    return fd;
}
int open(const char *path, int flags, ...) {
    va_list a;
    va_start(a, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(a, mode_t) : 0;
    va_end(a);
    return opened(REAL(open), path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list a;
    va_start(a, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(a, mode_t) : 0;
    va_end(a);
    return opened(REAL(open64), path, flags, mode);
}
