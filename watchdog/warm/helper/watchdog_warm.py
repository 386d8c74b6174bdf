"""Load a model once, and answer many calls of oscar-watchdog with it. For Python 3.6 or later, without other files.

    @watchdog_warm.serve  # or @watchdog_warm.serve(fork=True): each call runs in a forked process
    def call(input_path, output_dir): ...  # input_path is None if the call has no input

Or import modules once, with all that they load, and run an unchanged program in a forked process for each call:
    python3 watchdog_warm.py --preload torch,my_model -- predict.py -i @INPUT -o @OUTPUT/result.json
Without the server's descriptors 3 (calls) and 4 (answers) it runs once, with the variables of the environment."""

import atexit, contextlib, gc, importlib, json, os, re, runpy, sys, threading  # noqa: E401, I001

_calls, _flush_c = None, bool
with contextlib.suppress(OSError, ImportError, AttributeError):
    # Only descriptors from the server are inheritable. Reading or writing 0 bytes fails if the mode is wrong.
    if os.get_inheritable(3) and os.get_inheritable(4) and os.read(3, 0) == b"" and os.write(4, b"") == 0:
        _calls, _answers = open(3, "rb"), open(4, "wb", buffering=0)  # noqa: SIM115
        for _fd in (3, 4):  # no process that a call starts may have them
            os.set_inheritable(_fd, False)
        getattr(os, "register_at_fork", dict)(after_in_child=lambda: _calls.raw.close() or _answers.close())
        _flush_c = importlib.import_module("ctypes").CDLL(None).fflush


def serve(function=None, fork=False):
    if function is None:
        return lambda function: serve(function, fork)
    if not _calls:
        function(os.environ.get("INPUT_FILE_PATH"), os.environ.get("TMP_OUTPUT_DIR"))
        return function
    own, directory = dict(os.environb), os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
    if fork and threads > 1:
        print(f"watchdog_warm: a forked call has 1 of {threads} threads, so libraries may hang", file=sys.stderr)
    _exit_code(gc.collect)
    _answers.write(b"ready fork\n" if fork else b"ready\n")
    for line in _calls:
        pairs = json.loads(line)["env"].items()  # bytes that are not UTF-8 are lone surrogates
        os.environb.update([text.encode("utf-8", "surrogateescape") for text in pair] for pair in pairs)
        action = (_run_in_child, function) if fork else (function,)
        code = _exit_code(*action, os.environ.get("INPUT_FILE_PATH"), os.environ.get("TMP_OUTPUT_DIR"))
        for name in os.environb.keys() - own.keys():
            del os.environb[name]
        os.environb.update(own.items() - os.environb.items())
        os.fchdir(directory)
        _answers.write(b"done %d\n" % code)
    return function


def _run_in_child(*action):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    with contextlib.suppress(BaseException):  # end like a program, without the parent's exit functions or destructors
        if sys.version_info < (3, 7):  # noqa: UP036
            _calls.raw.close(), _answers.close(), importlib.import_module("random").seed()
        atexit._clear()
        code = _exit_code(*action)
        _exit_code(threading._shutdown)
        _exit_code(atexit._run_exitfuncs)
        os._exit(code)
    os._exit(1)


def _exit_code(action, *arguments):
    """Call a function, write out all that it printed, and return the exit code with which Python would end."""
    code = 0
    try:
        action(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, (int, type(None))) else print(end.code, file=sys.stderr) or 1
    except BaseException:
        code = sys.__excepthook__(*sys.exc_info()) or 1
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if not getattr(stream, "closed", stream is None):
            stream.flush()
    _flush_c(None)
    return (code or 0) & 255


if __name__ == "__main__":
    is_module = sys.argv[4:5] == ["-m"]
    program, *words = sys.argv[4 + is_module :] or [""]
    if sys.argv[1:4:2] != ["--preload", "--"] or not (program if is_module else os.path.isfile(program)):
        why = f"there is no file {program!r}; " if program and not os.path.isfile(program) else ""
        sys.exit(print(f"{why}use: --preload MODULE,MODULE -- PROGRAM.py (or -m MODULE) ARGS", file=sys.stderr) or 2)
    sys.path[0] = os.path.dirname(os.path.realpath(program))  # with -m, this is the working directory
    list(map(importlib.import_module, sys.argv[2].split(",")))
    main = sys.modules["__main__"] = type(sys)("__main__")

    @serve(fork=True)
    def call(input_path, output_dir):
        paths = {"@INPUT": input_path or "", "@OUTPUT": output_dir or ""}
        sys.argv = [program, *(re.sub("@INPUT|@OUTPUT", lambda found: paths[found[0]], word) for word in words)]
        atexit.register(lambda: vars(main).update(dict.fromkeys(vars(main).keys() - {"__builtins__"})))  # close files
        if is_module:
            return runpy._run_module_as_main(program)
        main.__file__ = os.path.abspath(program)
        with open(program, "rb") as file:
            return exec(compile(file.read(), main.__file__, "exec"), vars(main))
