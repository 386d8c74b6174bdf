"""The locale of the server does not change which texts of callers it can handle."""

from __future__ import annotations

from running_server import StartServer

# Python then uses ASCII for file names and variables. Without the last two, it would use UTF-8 instead of this locale.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TOKEN = "right-token-of-32-characters-here"


def test_texts_of_callers_may_have_any_characters_in_a_locale_without_utf_8(start_server: StartServer) -> None:
    script = """printf '%s ' "$Http_X_Price"; basename "$INPUT_FILE_PATH"; echo x > "$TMP_OUTPUT_DIR/5€" """
    server = start_server(script, WATCHDOG_AUTH_TOKEN=TOKEN, **ASCII)
    request = "POST /?input=raw&output=json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n"
    wrong = server.raw(f"{request}Authorization: Bearer 5€\r\n\r\n".encode())
    assert wrong.startswith(b"HTTP/1.1 401 ")
    right = f"{request}Authorization: Bearer {TOKEN}\r\nX-Price: 5€\r\nX-Filename: %E2%82%AC.txt\r\n\r\n"
    answer = server.raw(right.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert '"stdout":"5€ €.txt\\n"'.encode() in answer
    assert '"name":"5€"'.encode() in answer
