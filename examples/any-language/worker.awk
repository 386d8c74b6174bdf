#!/bin/sh
# Counts the words of a text. It reads each call as a line of NAME='value' pairs. awk reads from its stdin and writes to
# its stdout, so sh connects these with descriptors 3 and 4. mawk waits for many lines without `-W interactive`.
program=$(cat <<'PROGRAM'
# Split the line of a call into the array env. A quote inside a value is '\''.
function parse(line,    name, value, end) {
    split("", env)
    while (match(line, /^ ?[A-Za-z_][A-Za-z0-9_]*='/)) {
        name = substr(line, 1, RLENGTH - 2)
        sub(/^ /, "", name)
        line = substr(line, RLENGTH + 1)
        value = ""
        while (substr(line, end = index(line, "'"), 4) == "'\\''") {
            value = value substr(line, 1, end)
            line = substr(line, end + 4)
        }
        env[name] = value substr(line, 1, end - 1)
        line = substr(line, end + 1)
    }
}

# Return the exit code of the call.
function count_words(    text, parts, words) {
    while ((getline text < env["INPUT_FILE_PATH"]) > 0) words += split(text, parts)
    close(env["INPUT_FILE_PATH"])
    if (!words) {
        print "the text has no words" > "/dev/stderr"
        return 1
    }
    calls++ # in place of a model: it stays in memory
    print words " words, call " calls " of this worker" > (env["TMP_OUTPUT_DIR"] "/words.txt")
    return close(env["TMP_OUTPUT_DIR"] "/words.txt") != 0
}

BEGIN { print "ready sh"; fflush() }
{ parse($0); print "done " count_words(); fflush() }
PROGRAM
)
exec mawk -W interactive "$program" <&3 >&4 3<&- 4>&-
