"""Starts the program of the self-contained tree: ``start.py DESCRIPTOR CALLED_AS ARGUMENT…``, run by the launcher.

The launcher has kept the image's environment away from this process: it lies, byte for byte, in a memory file. From
here on the program works with it as if it had been started with it, and scripts get it as it came.
"""

import os
import sys
import time

# What glibc obeys while a program runs (its own list of what a set-id program must not: sysdeps/generic/unsecvars.h,
# and the locale), and OpenSSL. The image's values are meant for the image's libraries, not for those of the tree.
_FOR_LIBRARIES = frozenset(
    "GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LANG LANGUAGE LOCALDOMAIN LOCPATH NIS_PATH NLSPATH "
    "RESOLV_HOST_CONF RES_OPTIONS TZDIR CTLOG_FILE".split()
)
_FOR_LIBRARIES_BY_PREFIX = ("LD_", "LC_", "MALLOC_", "OPENSSL_")


def _main() -> None:
    descriptor, called_as = int(sys.argv[1]), sys.argv[2]
    environ = _image_environment(descriptor)
    sys.argv[:] = [called_as, *sys.argv[3:]]
    # Without `site`, nothing else is on the path: no .pth file, no package of the user or of the image.
    sys.path.append(os.path.join(os.path.dirname(os.__file__), "site-packages"))
    for name, value in environ.items():
        if name and name not in _FOR_LIBRARIES and not name.startswith(_FOR_LIBRARIES_BY_PREFIX):
            os.environ[name] = value
    # The interpreter has set its time zone already, without TZ.
    time.tzset()
    _tell_name()

    from watchdog.__main__ import main

    sys.exit(main(environ))


def _image_environment(descriptor: int) -> dict[str, str]:
    environ: dict[str, str] = {}
    with open(descriptor, "rb") as file:
        for entry in file.read().split(b"\0"):
            name, equals, value = entry.partition(b"=")
            # Of a name that is there twice the first counts, as for getenv(3) and in os.environ.
            if equals:
                environ.setdefault(os.fsdecode(name), os.fsdecode(value))
    return environ


def _tell_name() -> None:
    """`ps` and `top` would call this process by the name of the loader."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write("watchdog")
    except OSError:  # /proc may be read-only, or not there
        pass


_main()
