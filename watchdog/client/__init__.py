"""The client of `watchdog invoke`: send files to a service, and keep the answers.

::

    service.py       the URL, the token, the proxy and the certificates
    source.py        one input: a file or stdin, as base64 or as it is
    exchange.py      one request and its answer; calls that the service refuses for now are sent again
    refusal.py       an answer that reports an error -> the type of this error
    plain.py         the answer to an ordinary call
    event_stream.py  server-sent events: bytes -> events
    live.py          the answer to a call with --live
    verdict.py       what is known about a call that succeeded
    names.py         names of answers
    folder.py        answers become files below one directory, each one whole or not at all
    target.py        where an answer goes: stdout or a directory
    progress.py      the progress bars and the live log on a terminal
    descriptors.py   how many calls at the same time the limit of open files allows
    shown_text.py    whether the live log has already shown the whole answer
"""
