/* Starts the program of a self-contained tree in any container, with any libraries and settings.
 *
 *     bin/watchdog ─► lib/ld.so ─► libexec/cpython ─► libexec/start.py
 *
 * The launcher is linked statically with musl, so it needs no library of the container. In a static program, the
 * start-up code of musl reads no variable of the environment. A static glibc would obey GLIBC_TUNABLES.
 *
 * The environment belongs to the image and its script. Many of its variables would also change this program
 * (LD_PRELOAD, GLIBC_TUNABLES, MALLOC_*, LC_ALL, OPENSSL_CONF, and variables that a later glibc may read). So the
 * interpreter gets none of them. The launcher writes the whole environment unchanged into a memory file, and start.py
 * gets the descriptor of this file as its first argument.
 *
 * The program has this launcher as its sys.executable, under the name python3. Called by this name, the launcher starts
 * a Python without the program and without the image's environment.
 *
 * The launcher uses memory only on the stack. It changes nothing in the process except the descriptor and the blocked
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

/* The value of MFD_NOEXEC_SEAL, which headers from before Linux 6.3 do not define. */
#define NOEXEC_SEAL 0x0008U

static int fail(const char *what, const char *path)
{
    int reason = errno;
    dprintf(2, "watchdog: %s %s: %s\n", what, path, strerror(reason));
    /* A shell returns the same code for a command that exists and cannot be run. */
    return 126;
}

/* Finds the root of the tree, at any path. It is two levels above this file. It is one level above if this file is a
 * copy of one of the links in the root. Returns -1 on failure. */
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

/* Blocks signals. PID 1 does not receive a signal without a handler. A blocked signal waits until the program has set
 * its handlers, which is the first thing that the program does. */
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

/* Writes the unchanged environment into a memory file, with a NUL after each entry. Returns the descriptor, or -1. */
static int keep_environment(void)
{
    /* If memory files must not be executable (vm.memfd_noexec=2), Linux 6.3 to 6.5 refuse to make one without this
     * flag. Older kernels do not know the flag. */
    int made = memfd_create("image-environment", NOEXEC_SEAL);
    if (made < 0 && errno == EINVAL)
        made = memfd_create("image-environment", 0);
    if (made < 0)
        return -1;
    /* If a standard stream is closed, the file may have got its number. Then printed text would go into the file. */
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
    /* As early as possible, because signals that arrive before this are lost. */
    if (!is_python)
        hold_signals_back();

    char root[PATH_MAX];
    if (find_root(root, sizeof root) < 0)
        return fail("cannot find its own files through", "/proc/self/exe");
    /* In a list of directories, the loader reads ':' and ';' as the end of a path, and '$' as the start of a variable.
     * It would not find the libraries of the tree, and would use those of the image. */
    if (strpbrk(root, ":;$") != NULL) {
        errno = EINVAL;
        return fail("cannot run from a path that contains ':', ';' or '$':", root);
    }

    char loader[PATH_MAX + 64], libraries[PATH_MAX + 64], interpreter[PATH_MAX + 64], executable[PATH_MAX + 64],
        start[PATH_MAX + 64], openssl[PATH_MAX + 64], modules[PATH_MAX + 64], descriptor[16];
    snprintf(loader, sizeof loader, "%s/lib/ld.so", root);
    snprintf(libraries, sizeof libraries, "%s/lib", root);
    snprintf(interpreter, sizeof interpreter, "%s/libexec/cpython", root);
    snprintf(executable, sizeof executable, "%s/libexec/python3", root);
    snprintf(start, sizeof start, "%s/libexec/start.py", root);
    /* At the paths that are compiled into OpenSSL, the image may have settings and providers of another version. */
    snprintf(openssl, sizeof openssl, "OPENSSL_CONF=%s/etc/ssl/openssl.cnf", root);
    snprintf(modules, sizeof modules, "OPENSSL_MODULES=%s/lib/ossl-modules", root);

    /* With LC_ALL=C, no locale file of the image is read, and Python sets no LC_CTYPE (PEP 538). */
    char *environment[] = {"LC_ALL=C", openssl, modules, NULL};

    char *fixed[] = {
        loader, "--inhibit-cache", "--library-path", libraries, "--argv0", executable, interpreter,
        /* -I: ignore PYTHON* variables and the user's packages. -S: no module `site`, because its sitecustomize may
         * lead into the image. -B: write no byte code. utf8: use UTF-8 with any locale. */
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

    /* Check that all parts exist. Otherwise the loader and the interpreter report a missing part with other texts and
     * exit codes. */
    const char *parts[] = {loader, interpreter, start};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (access(parts[i], R_OK) < 0)
            return fail("cannot start", parts[i]);
    execve(loader, arguments, environment);
    return fail("cannot start", loader);
}
