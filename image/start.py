"""Start the program of the self-contained tree. The launcher runs ``start.py DESCRIPTOR CALLED_AS ARGUMENT…``.

The launcher has started this process without the image's environment, and has written this environment unchanged into
a memory file. From here on the program works as if it had been started with the image's environment. Scripts get this
environment unchanged.
"""

import os
import sys
import time

# Variables that change the behaviour of glibc or OpenSSL while a program runs. Those of glibc are the variables of the
# locale, and the variables that glibc ignores in set-user-id programs (sysdeps/generic/unsecvars.h). The image's
# values are for the image's libraries, not for the libraries of the tree.
_FOR_LIBRARIES = frozenset(
    "GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LANG LANGUAGE LOCALDOMAIN LOCPATH NIS_PATH NLSPATH "
    "RESOLV_HOST_CONF RES_OPTIONS TZDIR CTLOG_FILE".split()
)
_FOR_LIBRARIES_BY_PREFIX = ("LD_", "LC_", "MALLOC_", "OPENSSL_")


def _main() -> None:
    descriptor, called_as = int(sys.argv[1]), sys.argv[2]
    environ = _image_environment(descriptor)
    sys.argv[:] = [called_as, *sys.argv[3:]]
    # Python runs without the module `site`, so the path has no other entries: no .pth file is read, and no package of
    # the user or of the image is found.
    sys.path.append(os.path.join(os.path.dirname(os.__file__), "site-packages"))
    for name, value in environ.items():
        if name and name not in _FOR_LIBRARIES and not name.startswith(_FOR_LIBRARIES_BY_PREFIX):
            os.environ[name] = value
    # The interpreter started without the variable TZ, so the time zone must be set again.
    time.tzset()
    _set_process_name()

    from watchdog.__main__ import main

    sys.exit(main(environ))


def _image_environment(descriptor: int) -> dict[str, str]:
    environ: dict[str, str] = {}
    with open(descriptor, "rb") as file:
        for entry in file.read().split(b"\0"):
            name, equals, value = entry.partition(b"=")
            # If a name appears twice, the first value counts, as for getenv(3) and in os.environ.
            if equals:
                environ.setdefault(os.fsdecode(name), os.fsdecode(value))
    return environ


def _set_process_name() -> None:
    """Set the name that `ps` and `top` show. Otherwise they show the name of the loader."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write("watchdog")
    except OSError:  # /proc is possibly read-only, or not mounted
        pass


_main()
