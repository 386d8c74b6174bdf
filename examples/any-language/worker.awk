#!/usr/bin/awk -f
# Counts the words of a text. It reads each call as a line of NAME='value' pairs. Some kinds of awk read ahead and would
# wait for more than one line, so a shell reads each line for it.
BEGIN {
    read_call = "IFS= read -r call <&3 && printf '%s\\n' \"$call\""
    answers = "/dev/fd/4"
    print "ready sh" > answers
    fflush(answers)
    while ((read_call | getline line) > 0) {
        close(read_call)
        parse(line)
        print "done " count_words(env["INPUT_FILE_PATH"], env["TMP_OUTPUT_DIR"] "/words.txt") > answers
        fflush(answers)
    }
}

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
function count_words(input, output,    text, parts, words) {
    while ((getline text < input) > 0) words += split(text, parts)
    close(input)
    if (!words) {
        print "the text has no words" > "/dev/stderr"
        return 1
    }
    calls++ # in place of a model: it stays in memory
    print words " words, call " calls " of this worker" > output
    return close(output) != 0
}
