/* Starts the program of a self-contained tree in any container, whatever libraries and settings that container has.
 *
 *     bin/watchdog ─► lib/ld.so ─► libexec/cpython ─► libexec/start.py
 *
 * Linked statically, against musl: it needs no library of the container and, unlike glibc's, musl's start-up code reads
 * no variable of the environment (in a static program; GLIBC_TUNABLES would bend a static glibc).
 *
 * The environment belongs to the image and its script. Much in it would act on this process, too (LD_PRELOAD,
 * GLIBC_TUNABLES, MALLOC_*, LC_ALL, OPENSSL_CONF, and what a later glibc may read), so none of it is handed to the
 * interpreter: it goes, byte for byte, into a memory file whose descriptor is the start file's first argument.
 *
 * Called as python3, which is sys.executable of the program it starts, it is a Python without the program and without
 * the image's environment.
 *
 * It allocates no memory but on the stack, and leaves everything as it found it but for the descriptor and the blocked
 * signals. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern char **environ;

/* MFD_NOEXEC_SEAL, which libraries' headers of before Linux 6.3 do not have. */
#define NOEXEC_SEAL 0x0008U

static int fail(const char *what, const char *path)
{
    int reason = errno;
    dprintf(2, "watchdog: %s %s: %s\n", what, path, strerror(reason));
    /* What a shell gives for a command that is there and cannot be run. */
    return 126;
}

/* The tree's root, wherever it was copied or mounted: two levels above this file, or one where copying made a file of a
 * link at the top. Returns -1 on failure. */
static int find_root(char *root, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", root, size - 1);
    if (length < 0)
        return -1;
    root[length] = '\0';
    for (int levels = 0; levels < 2; levels++) {
        char *slash = strrchr(root, '/');
        if (slash == NULL)
            return errno = ENOENT, -1;
        *slash = '\0';
        char loader[PATH_MAX + 64];
        snprintf(loader, sizeof loader, "%s/lib/ld.so", root);
        if (access(loader, F_OK) == 0)
            break;
    }
    return 0;
}

/* As PID 1, a signal without a handler is lost: blocked ones wait for those that the program sets first of all. */
static void hold_signals_back(void)
{
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGHUP);
    sigprocmask(SIG_BLOCK, &held, NULL);
}

static int write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0)
            return -1;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

/* The environment as it came, each entry with its NUL. Returns the descriptor, or -1. */
static int keep_environment(void)
{
    /* Where memory files must not be executed (vm.memfd_noexec=2), Linux 6.3 to 6.5 refuse one that does not say so;
     * older ones do not know the flag. */
    int made = memfd_create("image-environment", NOEXEC_SEAL);
    if (made < 0 && errno == EINVAL)
        made = memfd_create("image-environment", 0);
    if (made < 0)
        return -1;
    /* Not in the place of a standard stream that is closed: what is printed would go into it. */
    int fd = fcntl(made, F_DUPFD, 3);
    if (fd < 0)
        return -1;
    close(made);
    for (char **entry = environ; *entry != NULL; entry++)
        if (write_all(fd, *entry, strlen(*entry) + 1) < 0)
            return -1;
    return lseek(fd, 0, SEEK_SET) < 0 ? -1 : fd;
}

int main(int argc, char **argv)
{
    const char *name = argc > 0 ? strrchr(argv[0], '/') : NULL;
    name = name != NULL ? name + 1 : argc > 0 ? argv[0] : "";
    int is_python = strcmp(name, "python3") == 0;
    /* First of all: those that come before it are lost. */
    if (!is_python)
        hold_signals_back();

    char root[PATH_MAX];
    if (find_root(root, sizeof root) < 0)
        return fail("cannot find its own files by", "/proc/self/exe");
    /* To the loader these end or begin something in a list of directories, and it would go on to those of the image. */
    if (strpbrk(root, ":;$") != NULL) {
        errno = EINVAL;
        return fail("cannot run from a path with ':', ';' or '$' in it:", root);
    }

    char loader[PATH_MAX + 64], libraries[PATH_MAX + 64], interpreter[PATH_MAX + 64], executable[PATH_MAX + 64],
        start[PATH_MAX + 64], openssl[PATH_MAX + 64], modules[PATH_MAX + 64], descriptor[16];
    snprintf(loader, sizeof loader, "%s/lib/ld.so", root);
    snprintf(libraries, sizeof libraries, "%s/lib", root);
    snprintf(interpreter, sizeof interpreter, "%s/libexec/cpython", root);
    snprintf(executable, sizeof executable, "%s/libexec/python3", root);
    snprintf(start, sizeof start, "%s/libexec/start.py", root);
    /* The paths compiled into OpenSSL are the image's: another version's settings and providers. */
    snprintf(openssl, sizeof openssl, "OPENSSL_CONF=%s/etc/ssl/openssl.cnf", root);
    snprintf(modules, sizeof modules, "OPENSSL_MODULES=%s/lib/ossl-modules", root);

    /* LC_ALL=C: no locale file of the image is read, and Python sets no LC_CTYPE (PEP 538). */
    char *environment[] = {"LC_ALL=C", openssl, modules, NULL};

    char *fixed[] = {
        loader, "--inhibit-cache", "--library-path", libraries, "--argv0", executable, interpreter,
        /* Isolated from PYTHON* and the user's packages; no site: its sitecustomize may lead into the image; no byte
         * code written; UTF-8 whatever the locale. */
        "-I", "-S", "-B", "-X", "utf8",
    };
    size_t count = sizeof fixed / sizeof fixed[0];
    char *arguments[count + 3 + (argc > 0 ? (size_t)argc : 0) + 1];
    memcpy(arguments, fixed, sizeof fixed);
    if (!is_python) {
        int fd = keep_environment();
        if (fd < 0)
            return fail("cannot keep the environment in", "a memory file");
        snprintf(descriptor, sizeof descriptor, "%d", fd);
        arguments[count++] = start;
        arguments[count++] = descriptor;
        arguments[count++] = (char *)name;
    }
    for (int i = 1; i < argc; i++)
        arguments[count++] = argv[i];
    arguments[count] = NULL;

    /* The loader and the interpreter would tell of each other's absence in their own words and codes. */
    const char *parts[] = {loader, interpreter, start};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (access(parts[i], R_OK) < 0)
            return fail("cannot start", parts[i]);
    execve(loader, arguments, environment);
    return fail("cannot start", loader);
}
